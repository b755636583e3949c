"""Per-example tables in Parquet: one file per shard and table, rows in shard order."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...cache_schemas.errors import DamagedCacheError
from ...cache_schemas.keys import KEY_BYTES, KeyArray

KEY_TYPE = pa.binary(KEY_BYTES)


def rows_table(keys: KeyArray, truncated: npt.NDArray[np.bool_]) -> pa.Table:
    """The table every shard has: `key` and `truncated` of each example."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        KEY_TYPE, len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys))]
    )
    return pa.table({"key": column, "truncated": pa.array(truncated)})


def table_bytes(table: pa.Table) -> memoryview:
    """A Parquet file of one table. Plain: keys and images do not compress."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, store_schema=False)
    return memoryview(sink.getvalue())


def read_table(path: Path, columns: Mapping[str, pa.DataType], rows: int) -> pa.Table:
    """Read `columns` of a table file; raises DamagedCacheError for other types or row counts."""
    try:
        table = pq.ParquetFile(path).read(columns=list(columns))
    except (OSError, pa.ArrowException) as cause:
        reason = str(cause).partition("\n")[0]
        raise DamagedCacheError(f"{path}: committed but unreadable: {reason}") from cause
    if table.num_rows != rows or {field.name: field.type for field in table.schema} != columns:
        raise DamagedCacheError(
            f"{path}: holds {table.num_rows} rows of {table.schema.names}; the commit record says "
            f"{rows} rows of {list(columns)}; recompute the shard"
        )
    return table


def read_keys(path: Path, rows: int) -> KeyArray:
    """The keys of a shard, [rows, 16]."""
    column = read_table(path, {"key": KEY_TYPE}, rows)["key"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    data = b"".join(
        chunk.buffers()[1].slice(chunk.offset * KEY_BYTES, len(chunk) * KEY_BYTES).to_pybytes()
        for chunk in chunks
    )
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, KEY_BYTES)
