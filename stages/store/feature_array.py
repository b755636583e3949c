"""One feature of one teacher as an array-like [rows, *shape], read shard by shard.

Plain shards are mapped: a batch costs one copy of its rows and no system call on warm pages. What
another Zarr writer left in some other order or layout is read through zarr-python: same values.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import DamagedCacheError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.layout import ZARR_METADATA, shard_file
from .dense import DenseArray, array_metadata, map_shard, same_layout

Prepare = Callable[[str, int], None]
"""Called with feature and shard number before the shard's file is first opened: to check it, or to
fetch it. May raise any ArmadaError. Must be safe to pickle."""

RowIndex = int | slice | Sequence[int] | npt.NDArray[Any]


class FeatureArray:
    """Read-only array-like of all committed rows; safe to pickle to worker processes."""

    def __init__(
        self,
        folder: Path,
        spec: FeatureSpec,
        rows_per_shard: int,
        shards: Sequence[tuple[int, int]],
        prepare: Prepare | None = None,
    ) -> None:
        self.spec = spec
        self._prepare = prepare
        self._folder = folder
        self._rows_per_shard = rows_per_shard
        self._shards = list(shards)
        self._starts = np.cumsum([0, *(rows for _, rows in shards)], dtype=np.int64)
        self._views: dict[int, DenseArray] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Mappings do not travel; the other process maps what it touches.
        return self.__dict__ | {"_views": {}}

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of one example)."""
        return (int(self._starts[-1]), *self.spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return np.dtype(self.spec.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions, rows included."""
        return len(self.shape)

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
        return self.gather(np.where(rows < 0, rows + len(self), rows))

    def gather(self, rows: npt.NDArray[np.int64], out: DenseArray | None = None) -> DenseArray:
        """Rows [B] as an array [B, *shape], into `out` if given; one copy, no Python per row.

        Raises IndexError for a row outside 0 to len - 1."""
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        if out is None:
            out = np.empty((len(rows), *self.spec.shape), dtype=self.dtype)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            here = np.flatnonzero(shard_of_row == shard)
            out[here] = self._view(int(shard))[rows[here] - self._starts[shard]]
        return out

    def _view(self, position: int) -> DenseArray:
        if position not in self._views:
            self._views[position] = self._open(*self._shards[position])
        return self._views[position]

    def _open(self, shard: int, rows: int) -> DenseArray:
        if self._prepare is not None:
            self._prepare(self.spec.name, shard)
        if not self._layout_is_ours():
            return self._read_through_zarr(shard, rows)
        path = shard_file(self._folder, self.spec.name, shard, len(self.spec.shape))
        mapped = map_shard(path, self.spec, rows, self._rows_per_shard)
        return self._read_through_zarr(shard, rows) if mapped is None else mapped

    def _layout_is_ours(self) -> bool:
        path = self._folder / self.spec.name / ZARR_METADATA
        ours = array_metadata(self.spec, len(self), self._rows_per_shard)
        return not path.is_file() or same_layout(path.read_bytes(), ours)

    def _read_through_zarr(self, shard: int, rows: int) -> DenseArray:
        import zarr

        path = self._folder / self.spec.name
        start = shard * self._rows_per_shard
        try:
            values = np.asarray(zarr.open_array(path, mode="r")[start : start + rows])
        except (OSError, ValueError, RuntimeError) as cause:
            raise DamagedCacheError(f"{path}: cannot be read as Zarr: {cause}") from cause
        # Stored answers are finite: not a number stands where a chunk is absent.
        if len(values) != rows or not np.isfinite(values).all():
            raise DamagedCacheError(
                f"{path}: rows {start} to {start + rows - 1} are committed but not all there; "
                "recompute the shard"
            )
        return values
