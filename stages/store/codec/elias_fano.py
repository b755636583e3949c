"""The high bits of non-decreasing numbers, in unary: half of the Elias-Fano code.

The other half, the low bits, are numbers like all others (`bits.py`). How numbers are split, and
sources: `cache_schemas.codings.EliasFano`. A row's string of bits has exactly one 1 for each
number, so the places of all ones of many rows, found in one pass, are a rectangle.
"""

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import EliasFano
from ....cache_schemas.errors import DamagedCacheError
from .bits import UInt8, UInt32, joined, split


def split_sorted(
    numbers_Nk: npt.NDArray[np.integer], law: EliasFano
) -> tuple[list[UInt8], list[UInt8]]:
    """Byte columns of the low bits, and the parts of the bit section: planes, then high bits."""
    columns, planes = split(numbers_Nk, law.low_bits)
    rows = len(numbers_Nk)
    high_NH = np.zeros((rows, law.high_bits), np.uint8)
    places_Nk = (numbers_Nk >> law.low_bits).astype(np.int64) + np.arange(law.count)
    np.put_along_axis(high_NH, places_Nk, np.uint8(1), axis=1)
    return columns, [*planes, high_NH]


def joined_sorted(columns_NC: UInt8, bits_NB: UInt8, law: EliasFano) -> UInt32:
    """The numbers [N, k]; `bits_NB` begins with what `split_sorted` gave, elements 0 or 1.

    Raises DamagedCacheError where no encoder wrote this: another number of ones, or numbers that
    go down."""
    low_planes = law.count * (law.low_bits % 8)
    numbers_Nk = joined(columns_NC, bits_NB[:, :low_planes], law.count)
    high_NH = bits_NB[:, low_planes : low_planes + law.high_bits]
    rests_Nk = _rests(high_NH, law.count)
    rests_Nk <<= np.uint32(law.low_bits)
    numbers_Nk |= rests_Nk
    if (numbers_Nk[:, 1:] < numbers_Nk[:, :-1]).any():
        raise DamagedCacheError("a token's numbers go down where they are stored in order")
    return numbers_Nk


def _rests(high_NH: UInt8, count: int) -> UInt32:
    """How many zeros stand before each one."""
    rows, width = high_NH.shape
    places = np.flatnonzero(np.ascontiguousarray(high_NH).view(np.bool_))
    if places.size != rows * count:
        raise DamagedCacheError(f"{places.size} numbers in {rows} tokens of {count} each")
    places_Nk = places.reshape(rows, count)
    places_Nk -= np.arange(0, rows * width, width)[:, None]
    # Ascending places whose first and last are in their own row are all in their own row.
    if (places_Nk[:, 0] < 0).any() or (places_Nk[:, -1] >= width).any():
        raise DamagedCacheError(f"tokens that do not have {count} numbers each")
    places_Nk -= np.arange(count)
    return places_Nk.astype(np.uint32)
