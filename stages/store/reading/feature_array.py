"""One feature of one teacher as an array-like [rows, *shape], read from its shards.

Plain shards are mapped: a batch costs one copy of its rows and no system call on warm pages, as
from one np.memmap of the same rows (random batches of 256 and of 32 rows of 2 KiB: within a few
per cent). What another Zarr writer left in some other order or layout is read through zarr-python:
same values.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ....cache_schemas.features import FeatureSpec
from ..format.rows import Rows
from ..format.zarr_shards import DenseArray
from .access import Access, choose_access
from .feature_shards import Check, FeatureShards, Prepare
from .side_by_side import SideBySide

RowIndex = int | slice | Sequence[int] | npt.NDArray[Any]

# What is read from disk ahead of the copying: no more than takes a moment.
_PART_BYTES = 32 * 2**20
_UNSIGNED = np.dtype(np.uint64)


class FeatureArray:
    """Read-only array-like of all committed rows; safe to pickle to worker processes, safe to use
    from several threads and after a fork."""

    def __init__(
        self,
        folder: Path,
        spec: FeatureSpec,
        rows_per_shard: int,
        shards: Sequence[tuple[int, int]],
        prepare: Prepare | None = None,
        access: Access = "auto",
        check: Check | None = None,
    ) -> None:
        self.spec = spec
        self._length = sum(rows for _, rows in shards)
        self._access = choose_access(access, self._length * spec.row_bytes)
        files = FeatureShards(folder, spec, rows_per_shard, tuple(shards), prepare, check)
        self._shards = SideBySide(files, self._access)
        self._cold = self._access == "cold"
        self._native = self._shards.array.dtype == self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of one example)."""
        return (self._length, *self.spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return np.dtype(self.spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions, rows included."""
        return len(self.shape)

    @property
    def access(self) -> Literal["warm", "cold"]:
        """How rows are read; see `access.py`."""
        return self._access

    @property
    def mapped(self) -> DenseArray | None:
        """All rows as one read-only array [N, *shape] over the files, without a copy; None where
        that cannot be: a shard that is not plain, or one before the last that does not end with a
        page. It stays good for as long as anything refers to it.

        For PyTorch: `torch.from_dlpack(feature.mapped).index_select(0, rows)`; a tensor does not
        know that it must not be written to."""
        shards = self._shards
        whole = self._native and not shards.gaps and shards.map_all()
        return shards.array if whole else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.name}: {self.dtype} {list(self.shape)}>"

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> DenseArray:
        if copy is False:
            raise ValueError("a feature is read from its shards; there is no array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: RowIndex) -> DenseArray:
        """Rows by number, slice, or array of row numbers (negative ones count from the end) or
        booleans."""
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return np.asarray(self[[int(index)]][0])
        if isinstance(index, slice):
            return self.gather(np.arange(*index.indices(len(self)), dtype=np.int64))
        rows = np.asarray(index)
        if isinstance(index, tuple) or rows.ndim != 1 or rows.dtype.kind not in "iubf":
            raise IndexError(f"index {index!r:.80}: is not a row, a slice or an array of rows")
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"boolean index of shape {rows.shape} on {len(self)} rows")
            rows = np.flatnonzero(rows)
        rows = rows.astype(np.int64, casting="same_kind") if rows.size else rows.astype(np.int64)
        from_the_end = rows < 0
        return self.gather(rows + from_the_end * len(self) if from_the_end.any() else rows)

    def gather(self, rows: Rows, out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; one copy, no Python per row.

        `out` may be any array of that shape that can be written to and whose type holds all values
        of the feature's: with the same type, and contiguous, rows go there straight from the pages
        (the NumPy view of a pinned tensor, say). Raises IndexError for a row outside 0 to len - 1,
        ValueError for such an `out`."""
        rows = self._checked(rows)
        shards = self._shards
        if not (shards.all_mapped or shards.map(rows)):
            room = self._room(len(rows), out)
            shards.gather_apart(rows, room)
            return room
        places = shards.place(rows) if shards.gaps else rows
        if self._cold or not (self._native if out is None else out.dtype == shards.array.dtype):
            return self._gather_in_parts(places, self._room(len(rows), out))
        try:
            # The mode looks for nothing that was not looked for, and needs no buffer between.
            # Sorted rows would come no faster (3.07 against 3.04 million rows/s).
            return shards.array.take(places, 0, out, "clip")
        except ValueError:
            self._room(len(rows), out)
            raise

    def will_need(self, rows: Rows) -> None:
        """Begin to read rows that are gathered soon; returns before they are in memory.

        Their shards are prepared and mapped first, which may take long and raise what `gather`
        does."""
        rows = self._checked(rows)
        self._shards.map(rows)
        self._shards.will_need(rows)

    def require_whole(self, rows: Rows) -> None:
        """Raise DamagedCacheError if a file that holds some of the rows was cut after it was
        mapped: `gather` does not look, and would end the process."""
        self._shards.require_whole(self._checked(rows))

    def in_file_order(self, rows: Rows) -> Rows:
        """Numbers that grow along the files, for the same rows: those that lie together have
        numbers close to each other."""
        return rows

    def _gather_in_parts(self, places: Rows, room: DenseArray) -> DenseArray:
        """Rows that are on disk, or of another type than `room`; what comes next is being read
        while a part is copied."""
        shards = self._shards
        step = max(1, _PART_BYTES // max(1, self.spec.row_bytes))
        for start in range(-step, len(places), step):
            following = places[start + step : start + 2 * step]
            if self._cold and len(following):
                shards.read_ahead(following)
            if start >= 0:
                here = slice(start, start + step)
                room[here] = shards.array.take(places[here], 0, None, "clip")
        return room

    def _checked(self, rows: Rows) -> Rows:
        if rows.dtype != np.int64:
            rows = rows.astype(np.int64, casting="same_kind")
        # As unsigned numbers, those below zero are the largest: one look finds both.
        unsigned = rows.view(_UNSIGNED)
        if len(rows) and unsigned[unsigned.argmax()] >= self._length:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self._length}")
        return rows

    def _room(self, rows: int, out: DenseArray | None) -> DenseArray:
        """Where so many rows go: `out`, if they can."""
        shape = (rows, *self.spec.shape)
        if out is None:
            return np.empty(shape, self.dtype)
        same = out.dtype == self._shards.array.dtype or np.can_cast(self.dtype, out.dtype)
        if out.shape != shape or not out.flags.writeable or not same:
            kind = "an array" if out.flags.writeable else "a read-only array"
            raise ValueError(
                f"out: {kind} of {out.dtype} {list(out.shape)}; to hold {rows} rows it has to be a "
                f"writable one of {self.dtype} {list(shape)}"
            )
        return out
