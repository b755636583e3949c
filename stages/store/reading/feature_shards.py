"""The shards of one feature, one by one: prepared, proven plain, or read through a Zarr library."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import ZARR_METADATA, shard_file
from ..files.plain_files import read_bytes
from ..format.zarr_shards import (
    MAX_ZARR_BYTES,
    DenseArray,
    array_metadata,
    is_plain,
    opened,
    same_layout,
)
from .address_space import AddressRange
from .foreign_array import check_foreign, read_foreign

Prepare = Callable[[str, int], None]
"""Called with feature and shard number before the shard's file is opened: to check it, or to fetch
it. May be called again for a shard, and from several threads and processes at once. May raise any
ArmadaError. Must be safe to pickle."""


Check = Callable[[int], None]
"""Called with a shard number after its file was opened: is it still the right one? May raise any
ArmadaError. Must be safe to pickle."""


@dataclass(frozen=True)
class FeatureShards:
    """Where a feature lies in a teacher's folder; `shards` are (number, rows), in row order."""

    folder: Path
    spec: FeatureSpec
    rows_per_shard: int
    shards: tuple[tuple[int, int], ...]
    prepare: Prepare | None
    check: Check | None = None

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Type of the numbers in the files."""
        return np.dtype(self.spec.dtype).newbyteorder("<")

    @contextmanager
    def plain(self, position: int) -> Iterator[int | None]:
        """The open file of a shard that can be mapped; None for one that a Zarr library has to
        read. Raises DamagedCacheError if it is neither, and whatever `prepare` raises."""
        shard, rows = self.shards[position]
        if self.prepare is not None:
            self.prepare(self.spec.name, shard)
        if not self._layout_is_ours:
            if self.check is not None:
                self.check(shard)
            yield None
            return
        path = shard_file(self.folder, self.spec.name, shard, len(self.spec.shape))
        with opened(path, self._cache) as file:
            if self.check is not None:
                self.check(shard)
            yield file if is_plain(file, path, self.spec, rows, self.rows_per_shard) else None

    def read_alone(self, position: int) -> DenseArray:
        """One shard [rows, *shape], away from the others: mapped if it is plain."""
        rows = self.shards[position][1]
        with self.plain(position) as file:
            if file is None:
                return self._read_through_zarr(*self.shards[position])
            try:
                alone = AddressRange(rows * self.spec.row_bytes)
                alone.place(0, file, rows * self.spec.row_bytes)
            except OSError:  # the process has as many mappings as it may have
                return self._read_plain(file, rows)
            return alone.array((rows, *self.spec.shape), self.stored_dtype)

    def require_length(self, position: int, inode: int) -> None:
        """Raise DamagedCacheError if the file that was mapped is shorter than its rows by now. One
        that has taken its name is another: what is mapped stays what it was."""
        shard, rows = self.shards[position]
        path = shard_file(self.folder, self.spec.name, shard, len(self.spec.shape))
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return
        if found.st_ino == inode and found.st_size < rows * self.spec.row_bytes:
            raise DamagedCacheError(
                f"{path}: was cut to {found.st_size} bytes while it was in use; `armada cache "
                "verify` tells what else is damaged, and `armada cache repair` drops it"
            )

    @property
    def _cache(self) -> Path:
        return self.folder.parent.parent

    @cached_property
    def _layout_is_ours(self) -> bool:
        path = self.folder / self.spec.name / ZARR_METADATA
        ours = array_metadata(self.spec, 0, self.rows_per_shard)
        return not path.is_file() or same_layout(
            read_bytes(path, self._cache, MAX_ZARR_BYTES), ours
        )

    def _read_plain(self, file: int, rows: int) -> DenseArray:
        with open(file, "rb", closefd=False) as stream:
            values = np.fromfile(stream, self.stored_dtype, rows * self.spec.values_per_row)
        return values.reshape(rows, *self.spec.shape)

    @cached_property
    def _foreign(self) -> Path:
        """The folder, once it is known to be fit for a Zarr library."""
        folder = self.folder / self.spec.name
        check_foreign(folder, self._cache, self.spec)
        return folder

    def _read_through_zarr(self, shard: int, rows: int) -> DenseArray:
        start = shard * self.spec.most_rows(self.rows_per_shard)
        return read_foreign(self._foreign, self.spec, start, rows)
