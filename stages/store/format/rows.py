"""Rows of examples: found by key, and several of one example laid end to end.

Keys are sorted 64-bit words, 24 bytes each, one binary search a look-up. Ragged rows are in memory
only: on disk, values are a feature's shard, and lengths a column of the table of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import IntArray, KeyArray, key_words

Rows = IntArray
"""Numbers of rows [B]."""


class KeyIndex:
    """Rows of N committed keys; row i is the i-th key given."""

    def __init__(self, keys: KeyArray) -> None:
        high, low = key_words(keys)
        self._rows = np.lexsort((low, high)).astype(np.int64)
        self._high, self._low = high[self._rows], low[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def found(self, keys: KeyArray) -> Rows:
        """The rows of those keys that are known."""
        rows = self.find(keys)
        return rows[rows >= 0]

    def find(self, keys: KeyArray) -> Rows:
        """The row of each key, -1 where it is unknown; about 0.3 µs a key."""
        high, low = key_words(keys)
        position = np.searchsorted(self._high, high)
        rows = np.full(len(keys), -1, dtype=np.int64)
        looking = np.arange(len(keys))
        # Keys that share the upper word are neighbours: step on until the lower one matches. For
        # hashed keys the first round settles all of them.
        while len(looking := looking[position[looking] < len(self)]):
            at = position[looking]
            same_high = self._high[at] == high[looking]
            found = same_high & (self._low[at] == low[looking])
            rows[looking[found]] = self._rows[at[found]]
            looking = looking[same_high & ~found]
            position[looking] += 1
        return rows


@dataclass(frozen=True, slots=True)
class Ragged:
    """Values [S, *shape] of N examples, one after another; lengths [N], which sum to S."""

    values: npt.NDArray[Any]
    lengths: IntArray

    @property
    def offsets(self) -> IntArray:
        """Start of each example, and end of the last one; [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.lengths)

    def parts(self) -> list[npt.NDArray[Any]]:
        """The values of each example, views of all."""
        return np.split(self.values, self.offsets[1:-1]) if len(self) else []


def joined(parts: Sequence[npt.NDArray[Any]], shape: tuple[int, ...], dtype: str) -> Ragged:
    """Values of all examples, [n, *shape] each, concatenated."""
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    none = np.empty((0, *shape), dtype)
    values = np.concatenate([none, *parts]).astype(dtype, copy=False)
    return Ragged(values, lengths)


def positions_of(rows: Rows, offsets: IntArray) -> Rows:
    """The positions of examples `rows` [B], one example after another; `offsets` [N + 1] are their
    starts. No Python per example."""
    lengths = offsets[rows + 1] - offsets[rows]
    return np.repeat(offsets[rows], lengths) + arange_each(lengths)


def arange_each(lengths: IntArray) -> Rows:
    """0, 1, ..., n - 1 for each n of lengths, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    counted: Rows = np.arange(total, dtype=np.int64)
    counted -= np.repeat(ends - lengths, lengths)
    return counted
