"""From rows to the pages they lie on: what to read ahead, in as few pieces as may be."""

import mmap

import numpy as np
import numpy.typing as npt

from .address_space import Pieces

# The least that common systems read in answer to one hint, however much it names.
_PIECE_BYTES = 128 * 2**10


def pieces_of(rows: npt.NDArray[np.int64], row_bytes: int) -> Pieces:
    """The pages that hold some rows of an array, as few pieces as may be, in their order on disk;
    the array starts at byte 0."""
    ordered = np.sort(rows)
    first = ordered * row_bytes // mmap.PAGESIZE
    end = -(-(ordered + 1) * row_bytes // mmap.PAGESIZE)
    apart = first[1:] > end[:-1]
    edge = np.ones(min(1, len(rows)), dtype=bool)
    starts, ends = first[np.concatenate([edge, apart])], end[np.concatenate([apart, edge])]
    return _cut(starts * mmap.PAGESIZE, ends * mmap.PAGESIZE)


def _cut(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Pieces:
    """Pieces of at most _PIECE_BYTES between `starts` and `ends`."""
    counts = -(-(ends - starts) // _PIECE_BYTES)
    if len(counts) == 0 or counts.max() > 1:
        before = np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(starts, counts) + (np.arange(len(before)) - before) * _PIECE_BYTES
        ends = np.minimum(starts + _PIECE_BYTES, np.repeat(ends, counts))
    return np.stack([starts, ends - starts], axis=1).astype(np.uint64)
