"""Keys of all jobs that read texts: how their text files are written."""

import codecs
import difflib
from encodings import aliases
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from ..stages.corpus.files import require_use
from ..stages.corpus.text_files import TextFormat
from .jobs import Job

_TAB = ("\\t", "tab")


class TextFormatKeys(Job):
    """How text files are written."""

    encoding: str | None = Field(
        default=None,
        description="encoding of CSV, TSV and JSON files, such as latin-1 or utf-16; default by "
        "their first bytes, or utf-8",
    )
    delimiter: str | None = Field(
        default=None, description="what parts the fields of CSV files, such as ';' or tab"
    )

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            codecs.lookup(value)
        except LookupError as cause:
            near = difflib.get_close_matches(value.lower(), aliases.aliases, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; try utf-8, utf-16 or latin-1"
            raise ValueError(f"Python knows no encoding of that name{hint}") from cause
        try:
            "".encode(value)
        except (LookupError, UnicodeError) as cause:
            raise ValueError(
                "is no encoding of texts; name how characters were written, such as utf-8, utf-16 "
                "or latin-1"
            ) from cause
        return value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _is_one_character(cls, value: Any) -> Any:
        value = "\t" if value in _TAB else value
        if value is not None and (
            not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in '"\r\n'
        ):
            raise ValueError("is not one character that can part fields, such as ',', ';' or tab")
        return value

    @model_validator(mode="after")
    def _is_of_use(self) -> Self:
        named = [getattr(self, key, ()) for key in ("corpus", "train", "validation")]
        require_use(self.file_format, [source for sources in named for source in sources or ()])
        return self

    @property
    def file_format(self) -> TextFormat:
        """Those that were named."""
        return TextFormat(self.encoding, self.delimiter)
