"""Parquet as it suits these rows best: fixed-size binary, plain, row groups of 256 rows.

Lists of float16 read 6 times slower, dictionaries and compression gain nothing on such rows, and
larger row groups read faster in order but slower at random: whole groups are read.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .durable import sync_folder
from .reader import SHARD_ROWS, Batch, Format, Reader
from .source import RowNumbers, Values

GROUP_ROWS = 256
COLUMN = "embedding"


def _write(folder: Path, values: Values) -> None:
    for start in range(0, len(values), SHARD_ROWS):
        rows = values[start : start + SHARD_ROWS]
        pq.write_table(
            pa.table({COLUMN: _to_arrow(rows)}),
            folder / f"{start // SHARD_ROWS:06d}.parquet",
            row_group_size=GROUP_ROWS,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )
    sync_folder(folder)


def _to_arrow(rows: Values) -> pa.FixedSizeBinaryArray:
    kind = pa.binary(rows.shape[1] * rows.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows)])


def _to_rows(column: pa.ChunkedArray, dim: int) -> Values:
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.float16).reshape(-1, dim)[
            chunk.offset : chunk.offset + len(chunk)
        ]
        for chunk in column.chunks
    ]
    return np.concatenate(parts)


class Parquet(Reader):
    """pyarrow, files kept open."""

    name = "Parquet, pyarrow"

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        paths = sorted(folder.glob("*.parquet"))
        # Mapped, one thread and no buffering ahead measured fastest for such small row groups.
        self._files = [pq.ParquetFile(path, memory_map=True, pre_buffer=False) for path in paths]

    def gather(self, rows: RowNumbers) -> Batch:
        out = np.empty((len(rows), self.dim), dtype=np.float16)
        groups, group_of_row = np.unique(rows // GROUP_ROWS, return_inverse=True)
        for file in np.unique(groups * GROUP_ROWS // SHARD_ROWS):
            here = np.flatnonzero(groups * GROUP_ROWS // SHARD_ROWS == file)
            values = self._read(int(file), groups[here])
            indices = np.flatnonzero(np.isin(group_of_row, here))
            group = np.searchsorted(here, group_of_row[indices])
            out[indices] = values[group * GROUP_ROWS + rows[indices] % GROUP_ROWS]
        return out

    def span(self, start: int, stop: int) -> Batch:
        groups = np.arange(start // GROUP_ROWS, -(-stop // GROUP_ROWS))
        files = groups * GROUP_ROWS // SHARD_ROWS
        parts = [self._read(int(file), groups[files == file]) for file in np.unique(files)]
        first = int(groups[0]) * GROUP_ROWS
        return np.concatenate(parts)[start - first : stop - first]

    def _read(self, file: int, groups: RowNumbers) -> Values:
        inside = groups - file * (SHARD_ROWS // GROUP_ROWS)
        table = self._files[file].read_row_groups(inside.tolist(), use_threads=False)
        return _to_rows(table[COLUMN], self.dim)

    def close(self) -> None:
        for file in self._files:
            file.close()


FORMAT = Format(name="Parquet", modules=("pyarrow",), write=_write, readers=(Parquet,))
