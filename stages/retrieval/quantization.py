"""Vectors in fewer bytes, as an index keeps them: cut to their first numbers, and quantised.

    float32   the numbers themselves                                           4 H bytes
    uint8     floor((x - lowest) / step) from 0 to 255, step = (highest - lowest) / 255,
              of each number's own range                                       H bytes
    int8      the same less 128                                                H bytes
    ubinary   one bit a number, x > 0, the first one the highest bit of a byte H / 8 bytes
    binary    the same bytes less 128, as int8                                 H / 8 bytes

Names and bytes are those of sentence-transformers' `quantize_embeddings`, so that its search, FAISS
and vector databases take what is written here. An index compares the codes as numbers, and bits by
Hamming distance, which has the order of the dot product of signs -1 and 1. Rescoring compares a
query of whole numbers with the numbers that the codes of a passage stand for.

Sources: Shakir, Aarsen and Lee, "Binary and Scalar Embedding Quantization", 2024
(https://huggingface.co/blog/embedding-quantization); rescoring: Yamada et al., arXiv 2106.00882;
cuts: Kusupati et al., arXiv 2205.13147. Shapes: N vectors, H numbers of each.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import InputError

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.float32]

_HALF = 128
"""What signed codes are less than unsigned ones."""


def cut(vectors_NH: Array, dim: int | None) -> Numbers:
    """The first `dim` numbers of each vector [N, dim], at the length of the whole one, as losses of
    Matryoshka dims have them; zeros stay zeros. None: all numbers."""
    vectors_NH = vectors_NH.astype(np.float32, copy=False)
    if dim is None or dim == vectors_NH.shape[1]:
        return vectors_NH
    first_ND = vectors_NH[:, :dim]
    whole_N1, left_N1 = (
        np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True)
        for each in (vectors_NH, first_ND)
    )
    scales_N1 = np.divide(whole_N1, left_N1, out=np.zeros_like(left_N1), where=left_N1 > 0)
    found_ND: Numbers = (first_ND * scales_N1).astype(np.float32)
    return found_ND


def needs_ranges(precision: Precision) -> bool:
    """Whether codes depend on the range of each number."""
    return precision.endswith("int8")


def ranges_of(vectors_NH: Array, so_far_2H: Numbers | None = None) -> Numbers:
    """The lowest and the highest of each number [2, H], of these vectors and of earlier ones.
    Raises InputError for numbers that are not finite, and for no vectors."""
    vectors_NH = _finite(vectors_NH)
    if not len(vectors_NH):
        raise InputError("ranges: of no vectors at all; it takes some to see their numbers")
    found_2H = np.stack([vectors_NH.min(axis=0), vectors_NH.max(axis=0)])
    if so_far_2H is None:
        return found_2H
    low_H, high_H = np.minimum(found_2H[0], so_far_2H[0]), np.maximum(found_2H[1], so_far_2H[1])
    return np.stack([low_H, high_H])


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Codes of vectors of `width` numbers; `ranges_2H` for int8 and uint8: numbers beyond them have
    the first or the last code."""

    precision: Precision
    width: int
    ranges_2H: Numbers | None = None

    def __post_init__(self) -> None:
        if not needs_ranges(self.precision):
            return
        ranges = self.ranges_2H
        if ranges is None or ranges.shape != (2, self.width):
            got = "none" if ranges is None else str(list(ranges.shape))
            raise InputError(
                f"ranges of {self.precision}: {got}; it takes [2, {self.width}], the lowest and "
                "the highest of each number"
            )
        if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
            raise InputError(
                f"ranges of {self.precision}: a lowest number is above its highest, or one is not "
                "finite; compute them again"
            )

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector."""
        return int(self.codes(np.zeros((1, self.width), np.float32)).nbytes)

    def codes(self, vectors_NH: Array) -> Array:
        """Codes [N, H], of bits [N, ⌈H / 8⌉]. Raises InputError for numbers that are not finite."""
        vectors_NH = _finite(vectors_NH)
        if self.precision == "float32":
            return vectors_NH
        if needs_ranges(self.precision):
            assert self.ranges_2H is not None
            bucket_NH: Numbers = np.floor((vectors_NH - self.ranges_2H[0]) / self._steps_H())
            np.clip(bucket_NH, 0, 255, out=bucket_NH)
            if self.precision == "uint8":
                return bucket_NH.astype(np.uint8)
            return (bucket_NH - _HALF).astype(np.int8)
        bits_NB = np.packbits(vectors_NH > 0, axis=1)
        if self.precision == "ubinary":
            return bits_NB
        return (bits_NB.astype(np.int16) - _HALF).astype(np.int8)

    def compared(self, codes_NB: Array) -> Numbers:
        """What an index compares [N, H]: codes as numbers, bits as -1 and 1."""
        if self.precision in ("binary", "ubinary"):
            return self._signs(codes_NB)
        return codes_NB.astype(np.float32, copy=False)

    def numbers(self, codes_NB: Array) -> Numbers:
        """The numbers that codes stand for [N, H]: the lower end of a code's part of the range, as
        sentence-transformers has it; bits are -1 and 1."""
        if not needs_ranges(self.precision):
            return self.compared(codes_NB)
        assert self.ranges_2H is not None
        half = _HALF if self.precision == "int8" else 0
        bucket_NH = codes_NB.astype(np.float32) + half
        found_NH: Numbers = bucket_NH * self._steps_H() + self.ranges_2H[0]
        return found_NH

    def _steps_H(self) -> Numbers:
        assert self.ranges_2H is not None
        steps_H: Numbers = (self.ranges_2H[1] - self.ranges_2H[0]) / np.float32(255)
        return np.where(steps_H == 0, np.float32(1), steps_H)

    def _signs(self, codes_NB: Array) -> Numbers:
        if self.precision == "binary":
            codes_NB = (codes_NB.astype(np.int16) + _HALF).astype(np.uint8)
        bits_NH = np.unpackbits(codes_NB, axis=1, count=self.width)
        return bits_NH.astype(np.float32) * 2 - 1


def _finite(vectors_NH: Array) -> Numbers:
    found_NH = vectors_NH.astype(np.float32, copy=False)
    if not np.isfinite(found_NH).all():
        row = int(np.flatnonzero(~np.isfinite(found_NH).all(axis=1))[0])
        raise InputError(f"vector {row}: is not finite, and has no code; compute it again")
    return found_NH
