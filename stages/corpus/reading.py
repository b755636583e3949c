"""The rows of a source as examples, block by block, each checked once.

Values of columns become what a corpus holds: texts, ids, labels, or chats as segments of text. A
chat is a list of turns, each with a role and a content; in a column `messages` it is read up to its
last answer; with `messages*` each answer of the assistant is an example, with all turns before it
as its prompt. A row that is null or blank stops the run and is named, with the number of such rows
in its file, or is skipped and listed with `skip_bad_rows`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.chats import Turns, asking_turns, chat_problem, chat_segment
from ...cache_schemas.errors import CorpusError
from ...cache_schemas.keys import IntArray
from ..pictures import PictureError, picture_segment
from .files import KINDS, Wanted, fields_of, read_blocks
from .located import kind_of
from .text_files import NAME_ENCODING, TextFormat, not_utf8

EACH_ANSWER = "*"
"""Suffix of a column of chats of which every answer is an example."""


def holds_chats(kind: pa.DataType) -> bool:
    """Whether a column of that type is one of lists of objects."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_struct(kind.value_type))


def read_chats(
    column: pa.ChunkedArray, prompts_only: bool
) -> tuple[list[Turns | None], dict[int, str]]:
    """The chats, and row -> problem; `prompts_only`: no answer is needed."""
    chats = column.to_pylist()
    found = ((row, chat_problem(_known(chat), prompts_only)) for row, chat in enumerate(chats))
    return chats, {row: problem for row, problem in found if problem is not None}


def chat_examples(
    chats: Sequence[Turns | None], rows: IntArray, each_answer: bool, prompts_only: bool
) -> tuple[pa.Array, IntArray]:
    """The segments of the chats of some rows, none of them with a problem, and the row of each;
    `prompts_only`: each up to the prompt of its last answer."""
    segments, owners = list[str](), list[int]()
    for row in rows.tolist():
        turns = _known(chats[row]) or []
        if prompts_only:
            segments.append(chat_segment(asking_turns(turns)))
            owners.append(row)
            continue
        ends = [index for index, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
        for end in ends if each_answer else ends[-1:]:
            segments.append(chat_segment(turns[:end]))
            owners.append(row)
    return pa.array(segments, pa.large_string()), np.array(owners, dtype=np.int64)


def _known(turns: Turns | None) -> Turns | None:
    """The turns without null fields: columns of objects have all fields in every row."""
    if turns is None:
        return None
    return [
        {name: value for name, value in turn.items() if value is not None} if turn else {}
        for turn in turns
    ]


_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
_BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())


def text_values(source: str, name: str, column: pa.ChunkedArray, first: int) -> pa.Array:
    """Texts as Arrow's large strings, nulls kept; the first is in row `first` (from 0) of its file.
    Raises CorpusError for other types."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind not in (*_TEXT_TYPES, *_BYTES_TYPES) and not pa.types.is_null(kind):
        hint = ", and chats must be the only text column" if holds_chats(kind) else ""
        if pa.types.is_list(kind) and kind.value_type in _TEXT_TYPES:
            hint = "; write a row for each text"
        if fields := fields_of(name, kind):
            hint = f"; name one of its fields: {fields}"
        raise CorpusError(f"corpus {source}: column {name!r} holds {column.type}, not text{hint}")
    try:
        # 64-bit offsets: a column may hold more than 2 GiB of text.
        whole = _whole(column, pa.large_string())
        whole.validate(full=True)
    except pa.ArrowInvalid as cause:
        raise CorpusError(_not_utf8(source, name, column, first)) from cause
    return whole


def _not_utf8(source: str, name: str, column: pa.ChunkedArray, first: int) -> str:
    """The first row of a column that is not UTF-8, and what to do about it."""
    remedy = NAME_ENCODING if kind_of(source) in KINDS[1:] else "save it as UTF-8"
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    values = (value for chunk in plain.cast(pa.large_binary()).chunks for value in chunk)
    for row, value in enumerate(values, first + 1):
        if value.is_valid and (problem := not_utf8(value.as_py(), remedy)):
            return f"corpus {source} row {row}: column {name!r} {problem}"
    return f"corpus {source}: column {name!r} is not UTF-8; {remedy}"


def id_values(source: str, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Ids as strings. Raises CorpusError for other types."""
    try:
        return _whole(column, pa.string())
    except pa.ArrowException as cause:
        raise CorpusError(
            f"corpus {source}: column {name!r} holds {column.type}, which cannot be an id; rename "
            "it, or name another id_column"
        ) from cause


def weight_values(
    source: str, name: str, column: pa.ChunkedArray
) -> tuple[pa.Array, dict[int, str]]:
    """Weights of rows as float64, and row -> problem of those that are no numbers of 0 or more.
    Raises CorpusError for other types."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise CorpusError(
            f"corpus {source}: weight_column {name!r} holds {kind}, not numbers; name another"
        )
    # Whole numbers above 2^53 are rounded: a weight needs no more digits.
    weights = _whole(column.cast(pa.float64(), safe=False))
    numbers = weights.fill_null(0.0).to_numpy(zero_copy_only=False)
    wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    problems = {
        row: f"weight {numbers[row]:g} of column {name!r} is not a number of 0 or more"
        for row in np.flatnonzero(wrong).tolist()
    }
    missing = np.flatnonzero(weights.is_null().to_numpy(zero_copy_only=False))
    return weights, problems | dict.fromkeys(missing.tolist(), f"column {name!r} is null")


def plain_labels(
    source: str, name: str, column: pa.ChunkedArray, first: int, separator: str | None = None
) -> pa.Array:
    """Labels in the widest type of their kind, so that files may differ in the narrow ones; lists
    of those, and what a `separator` parts in a text, as large lists."""
    try:
        labels = _whole(column, _plain_type(column.type))
    except pa.ArrowInvalid as cause:
        raise CorpusError(_not_utf8(source, name, column, first)) from cause
    return labels if separator is None else _parted(source, name, labels, separator)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if kind in (*_TEXT_TYPES, *_BYTES_TYPES):
        return pa.large_string()
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return pa.int64()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return pa.float64() if pa.types.is_floating(kind) else kind


def _parted(source: str, name: str, labels: pa.Array, separator: str) -> pa.Array:
    """Lists of the parts of texts, null where one is blank; a separator alone is an empty list."""
    if pa.types.is_large_list(labels.type):  # a file of another format, beside files of text
        return labels
    if labels.type != pa.large_string() and not pa.types.is_null(labels.type):
        raise CorpusError(
            f"corpus {source}: label_separator {separator!r}: column {name!r} holds {labels.type}, "
            "not text; leave it out"
        )
    rows = list[list[str | None] | None]()
    for cell in labels.to_pylist():
        parts = [part.strip() or None for part in (cell or "").split(separator)]
        known = any(part is not None for part in parts)
        rows.append((parts if known else []) if (cell or "").strip() else None)
    return pa.array(rows, pa.large_list(pa.large_string()))


def _whole(column: pa.ChunkedArray, kind: pa.DataType | None = None) -> pa.Array:
    cast = _with_known_words(column).cast(kind) if kind is not None else column
    return cast.combine_chunks() if cast.num_chunks != 1 else cast.chunk(0)


def _with_known_words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary of string views, as polars has categories, as one of strings: pyarrow cannot
    decode the former."""
    kind = column.type
    if not pa.types.is_dictionary(kind) or kind.value_type != pa.string_view():
        return column
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string()))
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.dictionary(kind.index_type, pa.large_string()))


OPTIONAL = "?"
"""Behind the name of a text column that may be blank."""

PICTURES = "picture:"
"""Before the name of a column of pictures, which become segments with their content."""


def picture_values(
    source: str, name: str, column: pa.ChunkedArray
) -> tuple[pa.Array, dict[int, str]]:
    """Segments (`stages/pictures.py`) of a column of files (bytes), of data sets' pictures (a
    struct of bytes and path) or of names of files in the corpus's own folder; and row -> problem.

    Raises CorpusError for other types."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_struct(kind) and any(field.name == "bytes" for field in kind):
        column = pc.struct_field(column, "bytes")
    elif kind in _TEXT_TYPES and "://" not in source:
        column = pa.chunked_array([text_values(source, name, column, 0)])
    elif kind not in _BYTES_TYPES:
        raise CorpusError(
            f"corpus {source}: column {name!r} holds {column.type}; pictures are files as bytes, "
            "or names of files in the folder of a local corpus"
        )
    segments, problems = list[str | None](), dict[int, str]()
    for row, value in enumerate(column.to_pylist()):
        try:
            file = _named_file(source, value) if isinstance(value, str) else value
            segments.append(None if file is None else picture_segment(file))
        except (PictureError, OSError) as error:
            segments.append(None)
            told = error.strerror if isinstance(error, OSError) else str(error)
            problems[row] = f"the picture of column {name!r} {told}"
    return pa.array(segments, pa.large_string()), problems


def _named_file(source: str, name: str) -> bytes:
    folder = Path(source).parent.resolve() if Path(source).exists() else Path.cwd()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise PictureError(f"({name}) is outside of the corpus's folder")
    if not file.is_file():
        raise PictureError(f"({name}) is no file in the corpus's folder")
    return file.read_bytes()


@dataclass(frozen=True, slots=True)
class CorpusRequest:
    """Request for a corpus: columns, maximum rows per source, and handling of bad rows."""

    text_columns: tuple[str, ...]
    label_column: str | tuple[str, ...] | None
    id_column: str | Literal[False] | None
    skip_bad_rows: bool
    limit: int | None
    prompts_only: bool
    form: TextFormat
    label_separator: str | None = None
    several_chats: bool = False
    weight_column: str | None = None

    @property
    def wanted(self) -> Wanted:
        """The columns by their names."""
        names = [column_name(each) for each in self.text_columns]
        ids, parted = self.id_column or None, self.label_separator is not None
        return Wanted(names, self.label_columns, ids, "id", parted, self.weight_column)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of labels: none, one, or one for each class or output."""
        if isinstance(self.label_column, tuple):
            return self.label_column
        return () if self.label_column is None else (self.label_column,)

    def ids_in(self, table: pa.Table) -> str | None:
        """The column of ids, if there is one."""
        if self.id_column is None:
            return "id" if "id" in table.column_names else None
        return self.id_column or None


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one file that were read at once: their count, the examples of valid ones with the row
    of each (from 0, in the file), and the problems of the others."""

    file: str
    length: int
    rows: IntArray
    segments: tuple[pa.Array, ...]
    ids: pa.Array | None
    labels: pa.Array | None
    problems: tuple[str, ...]
    chats: bool
    weights: pa.Array | None = None


def read_source(source: str, request: CorpusRequest) -> Iterator[Block]:
    """The blocks of a source, of each file at least one. Raises CorpusError."""
    left, file, first = request.limit, "", 0
    faults: list[str] = []
    for name, table in read_blocks(source, request.wanted, request.form):
        if name != file:
            _refuse(faults)
            file, first = name, 0
        table = table.slice(0, left)
        block = _checked(name, first, table, request)
        first += len(table)
        faults += () if request.skip_bad_rows else block.problems
        yield block
        if left is not None:
            left -= len(table)
            if not left:
                break
    _refuse(faults)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise CorpusError(first_of(faults))


def _checked(source: str, first: int, table: pa.Table, request: CorpusRequest) -> Block:
    """The good rows of a block, whose own first is `first` of its file."""
    text_columns = request.text_columns
    names = request.wanted.text
    id_column = request.ids_in(table)
    ids = id_values(source, id_column, table[id_column]) if id_column else None
    labels = _labels(source, first, table, request)
    plain = not text_columns[0].startswith(PICTURES)
    chats = plain and (len(names) == 1 or request.several_chats)
    chats = chats and all(holds_chats(table[name].type) for name in names)
    if chats:
        turns, problems = dict[str, list[Turns | None]](), dict[int, str]()
        for name in names:
            turns[name], found = read_chats(table[name], request.prompts_only)
            for row, problem in found.items():
                problems.setdefault(row, f"the chat of column {name!r} {problem}")
    else:
        unread, read = dict[int, str](), list[pa.Array]()
        for column, name in zip(text_columns, names, strict=True):
            if column.startswith(PICTURES):
                pictures, found = picture_values(source, name, table[name])
                unread |= found
                read.append(pictures)
            else:
                read.append(text_values(source, name, table[name], first))
        segments = tuple(read)
        required = [not column.endswith(OPTIONAL) for column in text_columns]
        problems = _problems(dict(zip(names, segments, strict=True)), required) | unread
    weights = None
    if request.weight_column is not None:
        name = request.weight_column
        weights, found = weight_values(source, name, table[name])
        problems |= {row: problem for row, problem in found.items() if row not in problems}
    keep = np.setdiff1d(np.arange(len(table)), np.fromiter(problems, dtype=np.int64))
    if chats:
        # Of several columns none has a star: as many examples of each.
        each_answer = text_columns[0].endswith(EACH_ANSWER)
        examples = [
            chat_examples(turns[name], keep, each_answer, request.prompts_only) for name in names
        ]
        segments, keep = tuple(segment for segment, _ in examples), examples[0][1]
    else:
        segments = tuple(column.take(pa.array(keep)).fill_null("") for column in segments)
    return Block(
        file=source,
        length=len(table),
        rows=first + keep,
        segments=segments,
        ids=None if ids is None else ids.take(pa.array(keep)),
        labels=None if labels is None else labels.take(pa.array(keep)),
        problems=tuple(
            f"corpus {source} row {first + row + 1}: {problems[row]}" for row in sorted(problems)
        ),
        chats=chats,
        weights=None if weights is None else weights.take(pa.array(keep)),
    )


def _labels(source: str, first: int, table: pa.Table, request: CorpusRequest) -> pa.Array | None:
    """The labels of a block; those of several columns as a struct of them."""
    names = request.label_columns
    read = [
        plain_labels(source, name, table[name], first, request.label_separator) for name in names
    ]
    if len(read) > 1:
        return pa.StructArray.from_arrays(read, names=list(names))
    return read[0] if read else None


def column_name(text_column: str) -> str:
    """The name of a text column, without the prefix for pictures, and the suffix for optional
    columns or for all answers of chats."""
    return text_column.removeprefix(PICTURES).removesuffix(OPTIONAL).removesuffix(EACH_ANSWER)


def prompt_columns(text_columns: Sequence[str]) -> list[str]:
    """The names of the text columns that prompts are made of, in order: pictures are none."""
    return [column_name(each) for each in text_columns if not each.startswith(PICTURES)]


def _problems(texts: dict[str, pa.Array], required: Sequence[bool]) -> dict[int, str]:
    """Row -> problem."""
    problems: dict[int, str] = {}
    blanks = {name: _blank(column) for name, column in texts.items()}
    for (name, blank), must in zip(blanks.items(), required, strict=True):
        if must:
            null = texts[name].is_null().to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(blank).tolist():
                what = "null" if null[row] else "empty"
                problems[row] = f"column {name!r} is {what}"
    for row in np.flatnonzero(np.logical_and.reduce(list(blanks.values()))).tolist():
        problem = f"all of its columns are empty ({', '.join(texts)})"
        problems.setdefault(row, problem)
    return problems


def _blank(column: pa.Array) -> npt.NDArray[np.bool_]:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
    found: npt.NDArray[np.bool_] = blank.to_numpy(zero_copy_only=False)
    return found


def first_of(problems: Sequence[str]) -> str:
    """Message about the first of the bad rows, their count, and the remedy."""
    more = f" ({len(problems)} such rows)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; fix the file, or set skip_bad_rows=true to skip such rows"
