"""Prove that a shard file is plain rows, from its size and its index, before it is mapped.

The other half of `dense.py`, which says what a shard file is. An index that is not whole, or a file
too short for its rows, is damage; a whole index that says anything else than rows in order is what
another Zarr writer may leave, and is for a Zarr library to read.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ..files.plain_files import plain_size, read_error
from .dense import CRC_BYTES, index_bytes, shard_bytes, shard_index


@contextmanager
def opened(path: Path, cache: Path) -> Iterator[int]:
    """The descriptor of a shard file; raises DamagedCacheError if it is not a file that can be read
    below the folder `cache`."""
    plain_size(path, cache)
    try:
        # Neither a link nor a pipe, should one have come in its place since.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as cause:
        raise read_error(path, cause) from cause
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise DamagedCacheError(f"{path}: is not a file")
        yield file
    finally:
        os.close(file)


def is_plain(file: int, path: Path, spec: FeatureSpec, rows: int, rows_per_shard: int) -> bool:
    """Whether the first bytes of an open shard file are its `rows` rows, one after another.

    Raises DamagedCacheError, naming `path`, if the file is cut or its index is damaged."""
    index = _read_index(file, path, index_bytes(spec, rows_per_shard))
    if index != shard_index(rows, spec, rows_per_shard):
        return False
    if os.fstat(file).st_size < shard_bytes(rows, spec, rows_per_shard):
        raise DamagedCacheError(f"{path}: shorter than its {rows} rows; recompute the shard")
    return True


def _read_index(file: int, path: Path, length: int) -> bytes:
    try:
        index = os.pread(file, length, max(os.fstat(file).st_size - length, 0))
    except OSError as cause:
        raise DamagedCacheError(f"{path}: committed but unreadable: {cause.strerror}") from cause
    crc = int.from_bytes(index[-CRC_BYTES:], "little")
    if len(index) != length or google_crc32c.value(index[:-CRC_BYTES]) != crc:
        raise DamagedCacheError(f"{path}: the shard index is damaged (crc32c); recompute the shard")
    return index
