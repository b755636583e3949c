"""The rows that every format stores, and the proof that a reader gives them back bit for bit.

Rows [N, D] are random float16 numbers below 2 in size: finite, and no compressor gains anything.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

RowNumbers = npt.NDArray[np.int64]
Values = npt.NDArray[np.float16]
Bits = npt.NDArray[np.uint16]

# With the highest bit of the exponent cleared a number is neither infinite nor NaN.
_FINITE = np.uint16(0xBFFF)
_WORD = 4
"""Float16 numbers in the 64-bit word by which a row is recognised: 60 random bits."""


class Source:
    """N rows of D >= 4 numbers that follow from a seed."""

    def __init__(self, rows: int, dim: int, seed: int) -> None:
        bits = np.random.default_rng(seed).integers(0, 2**16, (rows, dim), dtype=np.uint16)
        bits &= _FINITE
        self.values: Values = bits.view(np.float16)
        words = _words(bits)
        self._order = np.argsort(words)
        self._sorted = words[self._order]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.values.shape[1] * self.values.itemsize

    def check(self, batch: Any, rows: RowNumbers) -> None:
        """Raise ValueError unless `batch` is the rows of these numbers, bit for bit."""
        found, wanted = _bits(batch), self.values[rows].view(np.uint16)
        if found.shape != wanted.shape:
            raise ValueError(f"{found.shape} instead of {wanted.shape}")
        wrong = np.flatnonzero((found != wanted).any(axis=1))
        if len(wrong):
            raise ValueError(f"row {rows[wrong[0]]} and {len(wrong) - 1} more differ")

    def find(self, batch: Any) -> RowNumbers:
        """The numbers of the rows in `batch`, of a reader that shuffles by itself; checked too."""
        index = np.searchsorted(self._sorted, _words(_bits(batch)))
        rows = self._order[np.minimum(index, len(self._order) - 1)]
        self.check(batch, rows)
        return rows


def _bits(batch: Any) -> Bits:
    values = np.ascontiguousarray(np.asarray(batch))
    if values.dtype != np.float16:
        raise ValueError(f"{values.dtype} instead of float16")
    return values.view(np.uint16)


def _words(bits: Bits) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(bits[:, :_WORD]).view(np.uint64)[:, 0]
