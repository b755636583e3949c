"""Values of columns in the types that a corpus holds: texts, ids, labels; or what is wrong."""

import pyarrow as pa

from ...cache_schemas.errors import CorpusError
from .chats import holds_chats
from .columns import fields_of
from .files import KINDS
from .located import kind_of
from .text_files import NAME_ENCODING, not_utf8

_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
_BYTES_TYPES = (pa.binary(), pa.large_binary(), pa.binary_view())


def text_values(source: str, name: str, column: pa.ChunkedArray, first: int) -> pa.Array:
    """Texts as Arrow's large strings, nulls kept; the first is in row `first` (from 0) of its file.
    Raises CorpusError for what is no text."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind not in (*_TEXT_TYPES, *_BYTES_TYPES) and not pa.types.is_null(kind):
        hint = ", and chats are a text column by themselves" if holds_chats(kind) else ""
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
    remedy = NAME_ENCODING if kind_of(source) in KINDS[1:] else "write it again as UTF-8"
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    values = (value for chunk in plain.cast(pa.large_binary()).chunks for value in chunk)
    for row, value in enumerate(values, first + 1):
        if value.is_valid and (told := not_utf8(value.as_py(), remedy)):
            return f"corpus {source} row {row}: column {name!r} {told}"
    return f"corpus {source}: column {name!r} is not UTF-8; {remedy}"


def id_values(source: str, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Ids as strings. Raises CorpusError for what is no id."""
    try:
        return _whole(column, pa.string())
    except pa.ArrowException as cause:
        raise CorpusError(
            f"corpus {source}: column {name!r} holds {column.type}, which is no id; "
            "rename it, or name another id_column"
        ) from cause


def plain_labels(source: str, name: str, column: pa.ChunkedArray, first: int) -> pa.Array:
    """Labels in the widest type of their kind, so that files may differ in the narrow ones."""
    try:
        return _plain(column)
    except pa.ArrowInvalid as cause:
        raise CorpusError(_not_utf8(source, name, column, first)) from cause


def _plain(column: pa.ChunkedArray) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind in (*_TEXT_TYPES, *_BYTES_TYPES):
        return _whole(column, pa.large_string())
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return _whole(column, pa.int64())
    return _whole(column, pa.float64() if pa.types.is_floating(kind) else kind)


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
