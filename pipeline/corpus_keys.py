"""Keys of all jobs that read texts: how their text files are written."""

from typing import Any

from pydantic import Field, field_validator

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
        try:
            "".encode(value or "utf-8")
        except LookupError as cause:
            raise ValueError("Python knows no encoding of that name; try utf-8, latin-1") from cause
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

    @property
    def file_format(self) -> TextFormat:
        """Those that were named."""
        return TextFormat(self.encoding, self.delimiter)
