"""Several rows for each example, laid end to end, and where each example's are.

On disk, values are a feature's shard, and lengths a column of the table of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_schemas.keys import IntArray


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


def positions_of(rows: IntArray, offsets: IntArray) -> IntArray:
    """The positions of examples `rows` [B], one example after another; `offsets` [N + 1] say where
    each one's begin. No Python per example."""
    lengths = offsets[rows + 1] - offsets[rows]
    return np.repeat(offsets[rows], lengths) + arange_each(lengths)


def arange_each(lengths: IntArray) -> IntArray:
    """0, 1, ..., n - 1 for each n of lengths, one after another."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    counted: IntArray = np.arange(total, dtype=np.int64)
    counted -= np.repeat(ends - lengths, lengths)
    return counted
