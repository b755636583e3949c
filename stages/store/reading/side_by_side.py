"""All shards of a feature as one array [P, *shape], each mapped where the one before it ends.

A batch then is one look-up over the whole feature: 5 times as fast as a loop over its shards (the
tables of the benchmark). A row's index in that array is its number, unless a shard before it ends
within a page: the next one begins on the next (huge) page, and what lies between cannot be read.

A shard is proven plain and mapped when it is first touched, so opening costs nothing a shard, and
no descriptor stays open. Shards that are not plain, or for which the process may have no more
mappings, stand apart: each is opened by itself, and the ones used last are kept.
"""

import errno
import math
import mmap
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..format.rows import Rows
from ..format.zarr_shards import DenseArray
from .feature_shards import FeatureShards
from .memory import HUGE_PAGE_BYTES, AddressRange, available_memory, pieces_of

_UNTOUCHED, _MAPPED, _APART = 0, 1, 2

# Of the mappings that a process may have: other features, and libraries, need some too.
_MAPPINGS_SHARE = 1 / 3
_APART_MEMORY_SHARE = 1 / 4
_MOST_APART = 256


class SideBySide:
    """The mapped shards of one feature. Pickled, it is opened anew where it arrives."""

    def __init__(self, shards: FeatureShards, access: Literal["warm", "cold"]) -> None:
        self.shards = shards
        self._cold = access == "cold"
        rows = np.array([rows for _, rows in shards.shards], dtype=np.int64)
        self.starts = np.cumsum([0, *rows], dtype=np.int64)
        """The first row of each shard, and behind the last one the number of rows."""
        self._offsets = _offsets(rows, shards)
        shifts = self._offsets[:-1] - self.starts[:-1]
        # Of shards that follow each other without a gap, one says it for all.
        changes = np.flatnonzero(np.diff(shifts, prepend=0))
        self._shifted, self._shifts = self.starts[changes], np.array([0, *shifts[changes]])
        self.gaps = len(changes) > 0
        """Whether a row's number and its index in `array` may differ."""
        self._states = np.full(len(rows), _UNTOUCHED, dtype=np.uint8)
        self._inodes = np.zeros(len(rows), dtype=np.uint64)
        self.all_mapped = False
        """Whether every row is in `array`, and nothing is left to look at."""
        self._reserve()
        self._kept = lru_cache(_most_apart(shards))(partial(FeatureShards.read_alone, shards))

    def __reduce__(self) -> tuple[Any, ...]:
        return SideBySide, (self.shards, "cold" if self._cold else "warm")

    def _reserve(self) -> None:
        spec, total = self.shards.spec, int(self._offsets[-1])
        try:
            if self._mappings() > _MAPPINGS_SHARE * _most_mappings():
                raise OSError(errno.ENOMEM, "too many mappings")
            self._range = AddressRange(total * spec.row_bytes)
            self.array = self._range.array((total, *spec.shape), self.shards.stored_dtype)
        except (
            OSError,
            ValueError,
        ):  # more than one range of addresses takes
            self._states[:] = _APART
            self._range = AddressRange(0)
            self.array = self._range.array((0, *spec.shape), self.shards.stored_dtype)
        self.all_mapped = len(self._states) == 0

    def _mappings(self) -> int:
        # One for each shard and each gap.
        return len(self._states) + int(np.count_nonzero(np.diff(self._offsets - self.starts)))

    def map(self, rows: Rows) -> bool:
        """Map the shards of some rows; whether all these rows are now in `array`.

        Raises DamagedCacheError, and whatever the hook before a shard is opened raises."""
        positions = np.unique(self.position(rows))
        for position in positions[self._states[positions] == _UNTOUCHED].tolist():
            self._states[position] = _MAPPED if self._map(position) else _APART
        self.all_mapped = bool((self._states == _MAPPED).all())
        return self.all_mapped or bool((self._states[positions] == _MAPPED).all())

    def map_all(self) -> bool:
        """Map every shard; whether all rows are now in `array`."""
        return self.all_mapped or self.map(self.starts[:-1])

    def _map(self, position: int) -> bool:
        # Two threads may come here with the same shard: the second finds and leaves it as it is.
        row_bytes = self.shards.spec.row_bytes
        at = int(self._offsets[position]) * row_bytes
        size = self.shards.shards[position][1] * row_bytes
        with self.shards.plain(position) as file:
            if file is None:
                return False
            try:
                self._range.map(at, file, size)
            except OSError:  # the process has as many mappings as it may have
                return False
            self._inodes[position] = os.fstat(file).st_ino
        self._range.expect(at, size, all_of_it=not self._cold)
        return True

    def require_whole(self, rows: Rows) -> None:
        """Raise DamagedCacheError if the file of a mapped shard of some rows has been cut since: to
        read what is no longer there would end the process by SIGBUS. A microsecond a shard."""
        for position in np.unique(self.position(rows)).tolist():
            if self._states[position] == _MAPPED:
                self.shards.require_length(position, int(self._inodes[position]))

    def position(self, rows: Rows) -> Rows:
        """Index of the shard of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def indices(self, rows: Rows) -> Rows:
        """The index of each row in `array`."""
        if not self.gaps:
            return rows
        shift: Rows = self._shifts[np.searchsorted(self._shifted, rows, side="right")]
        return rows + shift

    def will_need(self, rows: Rows) -> None:
        """Begin to read those of the rows that are mapped, without waiting for them."""
        if not self.all_mapped:
            rows = rows[self._states[self.position(rows)] == _MAPPED]
        self.read_ahead(self.indices(rows))

    def read_ahead(self, indices: Rows) -> None:
        """The same, by indices in `array`."""
        self._range.will_need(pieces_of(indices, self.shards.spec.row_bytes))

    def gather_apart(self, rows: Rows, out: DenseArray) -> None:
        """Rows of any shards into `out` [B, *shape], shard by shard where they stand apart."""
        position = self.position(rows)
        mapped = self._states[position] == _MAPPED
        out[mapped] = self.array[self.indices(rows[mapped])]
        for shard in np.unique(position[~mapped]).tolist():
            here = np.flatnonzero(position == shard)
            out[here] = self._apart(shard)[rows[here] - self.starts[shard]]

    def _apart(self, position: int) -> DenseArray:
        try:
            return self._kept(position)
        except MemoryError:  # nor is there room for as many as were to be kept
            self._kept.cache_clear()
            return self._kept(position)


def _offsets(rows: Rows, shards: FeatureShards) -> Rows:
    """Start of each shard, and end of the last one, in rows."""
    step = _rows_between(shards.spec.row_bytes, shards.rows_per_shard)
    offsets = np.cumsum([0, *-(-rows // step) * step], dtype=np.int64)
    if len(rows):
        offsets[-1] = offsets[-2] + rows[-1]
    return offsets


def _rows_between(row_bytes: int, rows_per_shard: int) -> int:
    """A shard begins at a multiple of so many rows: on a page, and on a huge page if full shards
    follow each other without a gap then."""
    steps = [size // math.gcd(size, row_bytes) for size in (HUGE_PAGE_BYTES, mmap.PAGESIZE)]
    return next((step for step in steps if rows_per_shard % step == 0), steps[-1])


def _most_mappings() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):  # not Linux: no such limit
        return 2**31


def _most_apart(shards: FeatureShards) -> int:
    """Limit of separate shards that are kept; decoded ones are in memory."""
    most_rows = max((rows for _, rows in shards.shards), default=0)
    shard_bytes = max(1, most_rows * shards.spec.row_bytes)
    fitting = int(_APART_MEMORY_SHARE * available_memory()) // shard_bytes
    return min(max(fitting, 1), _MOST_APART)
