"""Per-example tables in Parquet: one file per shard and table, rows in shard order.

What a file's footer claims is looked at before a Parquet library acts on it: a library allocates
what a footer claims, and pyarrow ends the whole process at some damaged footers once Python reads
the metadata of a column (it does not when it reads columns). So the few fields that matter are read
here: rows, row groups, and whether columns are compressed. The footer is one struct in Thrift's
compact protocol, followed by its length and `PAR1`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.keys import KEY_BYTES, IntArray, KeyArray
from ..files.plain_files import plain_size, read_error

KEY_TYPE = pa.binary(KEY_BYTES)


LENGTHS_TYPE = pa.uint32()


def rows_table(
    keys: KeyArray,
    truncated: npt.NDArray[np.bool_],
    lengths: Mapping[str, IntArray] | None = None,
) -> pa.Table:
    """The table every shard has: `key` and `truncated` of each example, and its length along each
    axis."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        KEY_TYPE, len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys))]
    )
    columns = {axis: pa.array(each, LENGTHS_TYPE) for axis, each in (lengths or {}).items()}
    return pa.table({"key": column, "truncated": pa.array(truncated), **columns})


def table_bytes(table: pa.Table) -> memoryview:
    """A Parquet file of one table. Plain: keys and images do not compress."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, store_schema=False)
    return memoryview(sink.getvalue())


def read_table(path: Path, columns: Mapping[str, pa.DataType], rows: int) -> pa.Table:
    """Read `columns` of a table file; raises DamagedCacheError for other types or row counts."""
    table = _read(path, rows, list(columns))
    names = sorted(table.schema.names)
    if names != sorted(columns) or {f.name: f.type for f in table.schema} != columns:
        raise DamagedCacheError(
            f"{path}: expected columns {list(columns)}, found {names} or other types; recompute "
            "the shard"
        )
    return table


def read_first_rows(
    path: Path, columns: Mapping[str, pa.DataType], rows: int, most: int
) -> pa.Table:
    """The first `most` rows, of a table of which all may not fit into memory."""
    with _opened(path, rows) as file:
        batch = next(file.iter_batches(batch_size=most, columns=list(columns)), None)
    schema = pa.schema(columns)
    if batch is None:
        return schema.empty_table()
    return pa.Table.from_batches([batch]).cast(schema)


def read_whole_table(path: Path, rows: int) -> pa.Table:
    """Read all columns of a table file; raises DamagedCacheError for another row count."""
    return _read(path, rows, None)


def check_table(path: Path, rows: int) -> None:
    """Refuse a table file whose footer has another number of rows."""
    with _opened(path, rows):
        pass


def _read(path: Path, rows: int, columns: list[str] | None) -> pa.Table:
    with _opened(path, rows) as file:
        table = file.read(columns=columns)
    if table.num_rows != rows:
        raise _other_rows(path, table.num_rows, rows)
    return table


@contextmanager
def _opened(path: Path, rows: int) -> Iterator[pq.ParquetFile]:
    """A table file in a cache; its footer was looked at before anything is allocated for what it
    claims."""
    cache = path.parents[4]  # CACHE/teachers/<fingerprint>/tables/<table>/<shard>.parquet
    plain_size(path, cache)
    _check_footer(path, rows)
    try:
        # Absolute: Arrow takes a relative path such as s3:/bucket for the URL of another machine.
        with pq.ParquetFile(path.absolute(), thrift_string_size_limit=MAX_FOOTER_BYTES) as file:
            yield file
    except (OSError, ValueError, pa.ArrowException) as cause:
        reason = str(cause).partition("\n")[0]
        raise DamagedCacheError(f"{path}: committed but unreadable: {reason:.200}") from cause


def _check_footer(path: Path, rows: int) -> None:
    footer = read_footer(path)
    for claimed in (footer.rows, footer.group_rows):
        if claimed != rows:
            raise _other_rows(path, claimed, rows)
    # Written uncompressed, a column of fixed width takes no more memory than the file has bytes.
    if footer.compressed:
        raise DamagedCacheError(f"{path}: is compressed; tables of a cache are not")


def _other_rows(path: Path, found: int, rows: int) -> DamagedCacheError:
    return DamagedCacheError(
        f"{path}: holds {found} rows; the commit record says {rows}; recompute the shard"
    )


def read_keys(path: Path, rows: int) -> KeyArray:
    """The keys of a shard, [rows, 16]; raises DamagedCacheError."""
    column = read_table(path, {"key": KEY_TYPE}, rows)["key"].combine_chunks()
    if column.null_count:
        raise DamagedCacheError(
            f"{path}: {column.null_count} rows have no key; recompute the shard"
        )
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    data = b"".join(
        chunk.buffers()[1].slice(chunk.offset * KEY_BYTES, len(chunk) * KEY_BYTES).to_pybytes()
        for chunk in chunks
    )
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)


def read_lengths(path: Path, rows: int, axis: str, total: int, max_length: int) -> IntArray:
    """The length of each example of a shard along an axis, [rows]; raises DamagedCacheError if
    they are not `total` in all, each at most `max_length`."""
    column = read_table(path, {axis: LENGTHS_TYPE}, rows)[axis]
    lengths: IntArray = column.fill_null(0).to_numpy().astype(np.int64)
    most = int(lengths.max(initial=0))
    if column.null_count or most > max_length or int(lengths.sum()) != total:
        raise DamagedCacheError(
            f"{path}: {axis!r} has {int(lengths.sum())} rows in total, at most {most} per example; "
            f"the commit record says {total}, the teacher at most {max_length}; recompute the shard"
        )
    return lengths


MAX_FOOTER_BYTES = 2**20
"""Footers of a cache's tables have some hundreds of bytes."""

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_MAX_DEPTH = 20
_VARINT_BITS = 70

# Field numbers of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_COLUMN, _CODEC = 3, 4
_UNCOMPRESSED = 0


@dataclass(frozen=True, slots=True)
class Footer:
    """Rows of the file and of its row groups, and whether any column is compressed."""

    rows: int
    group_rows: int
    compressed: bool


def read_footer(path: Path) -> Footer:
    """The claims of a Parquet file; raises DamagedCacheError if they cannot be read."""
    try:
        return _claims(_Compact(_footer_bytes(path)).struct(0))
    except OSError as cause:
        raise read_error(path, cause) from cause
    except (LookupError, TypeError, ValueError) as cause:
        raise DamagedCacheError(f"{path}: its footer is not Parquet's: {cause!s:.100}") from cause


def _footer_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read(_TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > min(size - _TAIL_BYTES, MAX_FOOTER_BYTES):
            raise ValueError("it ends with no length of a footer and PAR1")
        file.seek(size - _TAIL_BYTES - length)
        return file.read(length)


def _claims(footer: dict[int, Any]) -> Footer:
    groups = footer[_ROW_GROUPS]
    codecs = [column[_COLUMN][_CODEC] for group in groups for column in group[_COLUMNS]]
    return Footer(
        rows=footer[_ROWS],
        group_rows=sum(group[_GROUP_ROWS] for group in groups),
        compressed=any(codec != _UNCOMPRESSED for codec in codecs),
    )


class _Compact:
    """Reads values of Thrift's compact protocol; ValueError or IndexError for what is none."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Field number -> value. No number may be repeated: readers may take either."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            step, kind = header >> 4, header & 15
            number = number + step if step else self._zigzag()
            if number in fields:
                raise ValueError(f"field {number} is repeated")
            # In a struct, the kind of a boolean is its value.
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (7, 8):
            return self._skip(8 if kind == 7 else self._varint())
        if kind in (9, 10):
            return list(self._items(depth + 1))
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"values of kind {kind}")

    def _items(self, depth: int) -> Iterator[Any]:
        header = self._byte()
        count, kind = header >> 4, header & 15
        count = self._varint() if count == 15 else count
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        for _ in range(count):  # each of them takes a byte or more, so this ends with the data
            yield self._value(kind, depth)

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("cut")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, _VARINT_BITS, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number without end")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
