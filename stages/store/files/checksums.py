"""Files against their records: size and XXH3 hash, and whether the numbers in them are finite.

A file is read once, in pieces that stay in the processor's cache, so that looking at the numbers
costs no second read. Hashing and NumPy free the interpreter: files are checked in threads.
Measured on 2 cores, in memory: 28 GB/s to hash, 16 GB/s to look at the numbers.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.manifest import FileRecord
from .plain_files import plain_size, read_error

PIECE_BYTES = 2**20


class FiniteNumbers:
    """Looks at the first `rows` rows of a file of plain rows, piece by piece."""

    def __init__(self, spec: FeatureSpec, rows: int) -> None:
        self.all_finite = True
        self._left = rows * spec.row_bytes
        # A number is finite unless all bits of its exponent are set. As whole numbers without
        # their sign, all others are smaller: ten times faster than isfinite on float16.
        size = np.dtype(spec.dtype).itemsize
        self._type = np.dtype(f"<u{size}")
        self._without_sign = self._type.type(2 ** (8 * size - 1) - 1)
        self._infinity = np.array(np.inf, spec.dtype).view(self._type.newbyteorder("="))
        self._buffer = np.empty(PIECE_BYTES // size, self._type)

    def look_at(self, piece: memoryview) -> None:
        """The next piece; every one but the last has a whole number of numbers."""
        wanted = min(len(piece), self._left)
        self._left -= wanted
        bits: npt.NDArray[np.unsignedinteger] = np.frombuffer(
            piece, self._type, wanted // self._type.itemsize
        )
        if len(bits):
            unsigned = self._buffer[: len(bits)]
            np.bitwise_and(bits, self._without_sign, out=unsigned)
            self.all_finite = self.all_finite and bool(unsigned.max() < self._infinity)


def check_size(path: Path, cache: Path, record: FileRecord) -> None:
    """Refuse a file that is not of the recorded size; see `plain_size`."""
    size = plain_size(path, cache)
    if size != record.bytes:
        raise DamagedCacheError(f"{path}: has {size} bytes; its commit record says {record.bytes}")


def check_file(
    path: Path, cache: Path, record: FileRecord, numbers: FiniteNumbers | None = None
) -> None:
    """Refuse a file whose size or hash is not the recorded one; show `numbers` all of it."""
    check_size(path, cache, record)
    hasher = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(PIECE_BYTES, record.bytes)))
    try:
        with path.open("rb") as file:
            while read := file.readinto(buffer):
                hasher.update(buffer[:read])
                if numbers is not None:
                    numbers.look_at(buffer[:read])
    except OSError as cause:
        raise read_error(path, cause) from cause
    if hasher.hexdigest() != record.xxh3_128:
        raise DamagedCacheError(f"{path}: its bytes are not those that were committed (xxh3_128)")
