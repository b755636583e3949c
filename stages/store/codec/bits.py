"""Numbers as bits, which NumPy takes apart at memory speed: byte columns, bit planes, Elias-Fano.

`count` numbers of w bits are w // 8 byte columns and w % 8 bit planes. Byte column j is bits
8j .. 8j + 7 of every number, one byte a number. Bit plane j is bit 8 * (w // 8) + j of every
number, one bit a number. The planes of a row stand one after the other in the row's bit section,
without gaps; bits fill bytes from the least significant one. What is left of the section's last
byte is zero, and readers ignore it.

Of non-decreasing numbers the high bits are written in unary, half of the Elias-Fano code; the other
half, the low bits, are numbers like all others. How numbers are split, and sources:
`cache_schemas.codings.EliasFano`. A row's string of bits has exactly one 1 for each number, so the
positions of all ones of many rows, found in one pass, are a rectangle.

No temporary of columns and planes has more than 4 bytes a number. Shapes: N rows, k numbers, w
their width in bits.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import EliasFano
from ....cache_schemas.errors import DamagedCacheError

UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]

NUMBERS_PER_BLOCK = 2**14
"""Temporaries of a block have 128 KiB, hardly more: larger ones may come in fresh pages each time,
which costs a decoder of this speed as much again (measured: 1.4 microseconds instead of 0.65 a
token of k = 50). Where the process keeps its pages, larger blocks would be a quarter faster."""


def split(numbers_Nk: npt.NDArray[np.integer], width: int) -> tuple[list[UInt8], list[UInt8]]:
    """Byte columns and bit planes, each [N, k], the planes' elements 0 or 1."""
    little = np.ascontiguousarray(numbers_Nk, dtype="<u4")
    bytes_Nk4: UInt8 = little.view(np.uint8).reshape(*numbers_Nk.shape, 4)
    columns: list[UInt8] = [bytes_Nk4[..., index] for index in range(width // 8)]
    if width % 8 == 0:
        return columns, []
    top_Nk = bytes_Nk4[..., width // 8]
    return columns, [(top_Nk >> np.uint8(index)) & np.uint8(1) for index in range(width % 8)]


def joined(columns_NC: UInt8, planes_NP: UInt8, count: int) -> UInt32:
    """The numbers [N, k] of what `split` gave, concatenated along a row: C = k * (w // 8) bytes,
    P = k * (w % 8) elements, 0 or 1."""
    whole, loose = columns_NC.shape[1] // count, planes_NP.shape[1] // count
    bytes_Nk4 = np.zeros((len(columns_NC), count, 4), np.uint8)
    for index in range(whole):
        bytes_Nk4[..., index] = columns_NC[:, index * count : (index + 1) * count]
    if loose:
        bytes_Nk4[..., whole] = _top_bits(planes_NP, loose, count)
    return bytes_Nk4.view("<u4")[..., 0].astype(np.uint32, copy=False)


def _top_bits(planes_NP: UInt8, loose: int, count: int) -> UInt8:
    """The bits above the whole bytes, by Horner's rule."""
    top_Nk = planes_NP[:, (loose - 1) * count : loose * count].copy()
    for index in reversed(range(loose - 1)):
        top_Nk <<= 1
        top_Nk |= planes_NP[:, index * count : (index + 1) * count]
    return top_Nk


def packed(parts: list[UInt8]) -> UInt8:
    """The bit section of rows: elements 0 or 1 of all parts, in order, eight to a byte."""
    return np.packbits(np.concatenate(parts, axis=1), axis=1, bitorder="little")


def unpacked(section_NB: UInt8) -> UInt8:
    """The elements, 0 or 1, of a bit section."""
    return np.unpackbits(section_NB, axis=1, bitorder="little")


def blocks(rows: int, count: int) -> Iterator[slice]:
    """Rows in runs of `NUMBERS_PER_BLOCK` numbers, `count` a row; at least one row."""
    step = max(1, NUMBERS_PER_BLOCK // count)
    return (slice(start, start + step) for start in range(0, rows, step))


def split_sorted(
    numbers_Nk: npt.NDArray[np.integer], law: EliasFano
) -> tuple[list[UInt8], list[UInt8]]:
    """Byte columns of the low bits, and the parts of the bit section: planes, then high bits."""
    columns, planes = split(numbers_Nk, law.low_bits)
    rows = len(numbers_Nk)
    high_NH = np.zeros((rows, law.high_bits), np.uint8)
    positions_Nk = (numbers_Nk >> law.low_bits).astype(np.int64) + np.arange(law.count)
    np.put_along_axis(high_NH, positions_Nk, np.uint8(1), axis=1)
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
    """Number of zeros before each one."""
    rows, width = high_NH.shape
    positions = np.flatnonzero(np.ascontiguousarray(high_NH).view(np.bool_))
    if positions.size != rows * count:
        raise DamagedCacheError(f"{positions.size} numbers in {rows} tokens of {count} each")
    positions_Nk = positions.reshape(rows, count)
    positions_Nk -= np.arange(0, rows * width, width)[:, None]
    # Ascending positions whose first and last are in their own row are all in their own row.
    if (positions_Nk[:, 0] < 0).any() or (positions_Nk[:, -1] >= width).any():
        raise DamagedCacheError(f"tokens that do not have {count} numbers each")
    positions_Nk -= np.arange(count)
    return positions_Nk.astype(np.uint32)
