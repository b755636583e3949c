"""Job files: YAML, then options of the command line, then `--set key=value`; later ones win.

A job is a flat, frozen pydantic model. Every key has one line of description, which is also its
help and error text. Everything that can be refused is refused here, before a model loads. Types and
keys that several jobs have are here too: paths of this machine, numbers of bytes, how text files
are written.
"""

import codecs
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from encodings import aliases
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from ..cache_schemas.errors import JobError
from ..cache_schemas.locations import Source, expand_home, shown
from ..stages.corpus.files import require_use
from ..stages.corpus.reading import EACH_ANSWER, OPTIONAL, column_name
from ..stages.corpus.text_files import TextFormat

_TAB = ("\\t", "tab")
_PREFIXES = "KMGT"
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def refuse_url(path: Path, what: str = "cache") -> Path:
    """A path of this machine; one that looks like a URL was meant as one."""
    path = Path(expand_home(str(path)))
    if url := re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.*)", str(path)):
        message = "looks like a URL; name a local file or folder"
        if what == "cache":
            message = (
                "looks like a URL; name a local folder (`armada cache pull` and `push` copy caches "
                "from and to a URL)"
            )
        raise JobError(f"{what} {url[1]}://{url[2]}: {message}")
    return path


LocalFolder = Annotated[Path, AfterValidator(refuse_url)]


def _one_is_a_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


_OneOrMore = BeforeValidator(_one_is_a_list, json_schema_input_type=str | tuple[str, ...])
Corpora = Annotated[tuple[Source, ...], _OneOrMore]
Names = Annotated[tuple[str, ...], _OneOrMore]
"""Several, or one by itself."""


def _one_of_a_list(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    names = [value] if not isinstance(value, list | tuple) else list(value)
    if not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"{names}: name at least one column, and none twice")
    return names[0] if len(names) == 1 else value


MEASURES = (
    "figures to compare beside the metric, such as agreement, teacher_kl, ece or macro_f1; default "
    "ece and measures by a teacher, where all runs have them"
)
"""Description of a key of `ablate` and `report`."""

LabelColumns = Annotated[
    str | Annotated[tuple[str, ...], Field(min_length=2)],
    BeforeValidator(
        _one_of_a_list,
        json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)],
    ),
]
"""A column of labels, or one for each class or output."""

Separator = Annotated[str, Field(min_length=1, max_length=8)]
"""Text between the labels of a cell."""


def _parse_bytes(value: Any) -> Any:
    """Bytes of a text like '50GiB' (powers of 1024) or '50GB' (of 1000); other types as they are.

    Raises ValueError for another text."""
    if not isinstance(value, str):
        return value
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError("is not a number of bytes, such as 50GiB")
    number, prefix, binary = match.groups()
    power = 1 + _PREFIXES.index(prefix.upper()) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


ByteCount = Annotated[
    int, Field(ge=1), BeforeValidator(_parse_bytes, json_schema_input_type=int | str)
]


class Job(BaseModel):
    """Base of all jobs. `~` in its paths is written out; as JSON and as text it shows no password
    of a URL, for jobs are written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _at_home(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, tuple):
            return tuple(cls._at_home(each, info) for each in value)
        return refuse_url(value, str(info.field_name)) if isinstance(value, Path) else value

    @model_serializer(mode="wrap", when_used="json")
    def _to_be_shown(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = shown(plain(self))
        return document

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, shown(value)) for name, value in super().__repr_args__()]


class TextFormatKeys(Job):
    """Format of text files."""

    encoding: str | None = Field(
        default=None,
        description="encoding of CSV, TSV and JSON files, such as latin-1 or utf-16; default by "
        "their first bytes, or utf-8",
    )
    delimiter: str | None = Field(
        default=None, description="field separator of CSV files, such as ';' or tab"
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
            raise ValueError(f"is not an encoding known to Python{hint}") from cause
        try:
            "".encode(value)
        except (LookupError, UnicodeError) as cause:
            raise ValueError(
                "is no encoding of texts; name a text encoding, such as utf-8, utf-16 or latin-1"
            ) from cause
        return value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _is_one_character(cls, value: Any) -> Any:
        value = "\t" if value in _TAB else value
        if value is not None and (
            not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in '"\r\n'
        ):
            raise ValueError(
                "is not a single character that can separate fields, such as ',', ';' or tab"
            )
        return value

    @model_validator(mode="after")
    def _is_of_use(self) -> Self:
        named = [getattr(self, key, ()) for key in ("corpus", "train", "validation")]
        require_use(self.file_format, [source for sources in named for source in sources or ()])
        return self

    @property
    def file_format(self) -> TextFormat:
        """The keys that were set."""
        return TextFormat(self.encoding, self.delimiter)


ModelT = TypeVar("ModelT", bound=BaseModel)


def collect_keys(
    file: Path | None, options: Mapping[str, Any], settings: Iterable[str]
) -> dict[str, Any]:
    """The keys of a job: those of the file, then options that were given (not None, not empty),
    then KEY=VALUE settings with YAML values. Raises JobError."""
    keys = _read(refuse_url(file, "job file")) if file else {}
    keys |= {key: value for key, value in options.items() if value not in (None, (), [])}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise JobError(f"--set {setting}: is not KEY=VALUE")
        keys = with_key(keys, key.strip(), _parse(setting, value))
    return keys


def with_key(keys: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Keys with one more, or changed; `objectives.1.weight` is a key inside of others, where a
    number counts the items of a list from 0. Raises JobError where there is no such way."""
    first, dot, rest = key.partition(".")
    if not dot:
        return {**keys, key: value}
    return {**keys, first: _changed(keys.get(first), rest, value, key)}


def _changed(inside: Any, key: str, value: Any, whole: str) -> Any:
    first, dot, rest = key.partition(".")
    if isinstance(inside, Mapping):
        return {**inside, first: _changed(inside.get(first), rest, value, whole) if dot else value}
    if not isinstance(inside, list | tuple):
        raise JobError(f"job key {whole!r}: {first!r} does not exist")
    if not first.isdecimal() or int(first) >= len(inside):
        raise JobError(
            f"job key {whole!r}: {first!r} is not one of the {len(inside)} items, counted from 0"
        )
    changed = list(inside)
    changed[int(first)] = _changed(changed[int(first)], rest, value, whole) if dot else value
    return changed


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise JobError(
            f"job file {file}: cannot be read: {' '.join(str(cause).split())}"
        ) from cause
    if not isinstance(content, dict):
        raise JobError(f"job file {file}: is not a mapping of keys to values")
    return content


def _parse(setting: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as cause:
        raise JobError(f"--set {setting}: the value is not YAML; quote it") from cause


def make(model: type[ModelT], keys: Mapping[str, Any], what: str = "job") -> ModelT:
    """A model of `keys`; raises JobError with the first wrong key, its value and its meaning."""
    try:
        return model.model_validate(dict(keys))
    except ValidationError as error:
        raise JobError(_explain(model, error, what)) from error


def require_two_responses(text_column: Sequence[str], rejected_column: str) -> None:
    """Raise JobError for columns that cannot hold a preferred response, the last of `text_column`,
    and a rejected one in each row."""
    for column in (text_column[-1], rejected_column):
        if column[-1] in (OPTIONAL, EACH_ANSWER):
            raise JobError(
                f"rejected_column: a pair of responses needs both in each row; write "
                f"{column_name(column)!r} without {column[-1]!r}"
            )
    if rejected_column in map(column_name, text_column):
        raise JobError(
            f"rejected_column {rejected_column!r}: is in text_column too; leave it out there (the "
            "preferred response is the last of text_column)"
        )


def made_rules(value: Any, kinds: Mapping[str, type[BaseModel]], key: str) -> Any:
    """The rules `{rule: NAME, ...}` of a list, each of one of `kinds` by name; None as it is.
    Raises JobError that names a rule by its index, with the first wrong key."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise JobError(
            f"job key {key!r}: {value!r} is not a list of rules, each {{rule: NAME, ...}}"
        )
    return tuple(_made_rule(each, kinds, f"{key}.{number}") for number, each in enumerate(value))


def _made_rule(keys: Any, kinds: Mapping[str, type[BaseModel]], what: str) -> Any:
    if isinstance(keys, tuple(kinds.values())):
        return keys
    name = keys.get("rule") if isinstance(keys, Mapping) else None
    if name is None:
        raise JobError(
            f"{what}: {keys!r} is not {{rule: NAME, ...}}; name one of the rules {', '.join(kinds)}"
        )
    if not isinstance(name, str) or name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, n=1)
        hint = f"; did you mean {near[0]!r}? Rules are" if near else "; rules are"
        raise JobError(f"{what}: rule {name!r} is unknown{hint} {', '.join(kinds)}")
    told = f"{what} ({name})"
    try:
        return make(kinds[name], keys, told)
    except JobError as error:
        if str(error).startswith(told):
            raise
        raise JobError(f"{told}: {error}") from error


def _explain(model: type[BaseModel], error: ValidationError, what: str) -> str:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else what
    inside = ".".join(map(str, first["loc"]))
    if len(first["loc"]) > 1 and first["type"] in ("extra_forbidden", "missing"):
        problem = "missing" if first["type"] == "missing" else "unknown"
        return f"{what} key {inside!r} is {problem}"
    if first["type"] == "extra_forbidden":
        return unknown_key(what, key, model.model_fields)
    meaning = model.model_fields[key].description if key in model.model_fields else None
    about = f" ({meaning})" if meaning else ""
    if first["type"] == "missing":
        return f"{what} key {key!r} is missing{about}"
    message = first["msg"].removeprefix("Value error, ")
    value = f" {first['input']!r}:" if first["loc"] else ""
    return f"{what} key {key!r}:{value} {message}{about}" if first["loc"] else message


def unknown_key(what: str, key: str, known: Iterable[str]) -> str:
    """One line about a key that does not exist."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"; did you mean {near[0]!r}? Keys are" if near else "; keys are"
    return f"{what} key {key!r} is unknown{hint} {', '.join(names)}"
