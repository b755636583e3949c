"""Files of a cache: plain files in plain folders, within size limits, as recorded.

A cache may come from strangers. Its paths are made from checked names (`cache_schemas/layout.py`),
so no document can lead out of it; a symbolic link could, and a pipe or a device could keep a reader
waiting for ever. So what lies below a cache's own folder is looked at before it is first opened:
one `lstat` for each part of its path, a few µs a file.

Against its record a file is read once, in pieces that stay in the processor's cache, so that
looking at the numbers costs no second read. Hashing and NumPy free the interpreter: files are
checked in threads. Measured on 2 cores, in memory: 28 GB/s to hash, 16 GB/s to look at the numbers.
"""

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from ....cache_schemas.errors import AccessError, DamagedCacheError, LinkedPathError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.manifest import DocumentT, FileRecord, parse_document
from .atomic import access_error

FOLDER_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names of a teacher's folders: of its features, and of those beside them. Documents have a dot."""


def plain_size(path: Path, cache: Path) -> int:
    """Bytes of the file `path` somewhere below the folder `cache`.

    Raises DamagedCacheError if it is missing or is no regular file, LinkedPathError if a symbolic
    link below `cache` leads to it (the folder `cache` itself may be one)."""
    check_folders(path, cache)
    try:
        found = path.lstat()
    except FileNotFoundError as cause:
        raise DamagedCacheError(f"{path}: is missing") from cause
    except OSError as cause:
        raise read_error(path, cause) from cause
    if stat.S_ISLNK(found.st_mode):
        raise _is_a_link(path)
    if not stat.S_ISREG(found.st_mode):
        raise DamagedCacheError(f"{path}: is not a file")
    return found.st_size


def read_error(path: Path, cause: OSError) -> DamagedCacheError | AccessError:
    """The error for an unreadable `path`; missing permission is not damage."""
    if isinstance(cause, PermissionError):
        return access_error(path)
    return DamagedCacheError(f"{path}: cannot be read: {cause.strerror}")


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """Entries of a folder, sorted; none if it is missing.

    Unlike `glob`, it takes neither what may not be read nor what is no folder for empty: it raises
    AccessError, DamagedCacheError, and LinkedPathError for a link to nothing."""
    try:
        return sorted(folder / name for name in fnmatch.filter(os.listdir(folder), pattern))
    except (FileNotFoundError, NotADirectoryError) as cause:
        if folder.is_symlink():
            raise _is_a_link(folder) from cause
        if is_there(folder):
            raise _is_no_folder(folder) from cause
        return []
    except PermissionError as cause:
        raise access_error(folder) from cause


def is_there(path: Path) -> bool:
    """Whether something has that name, be it a link to nothing; raises AccessError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as cause:
        raise access_error(path) from cause
    return True


Stamp = tuple[int, int]
"""Distinguishes a file from another of the same name: inode and nanoseconds of its last change."""


def stamp_of(path: Path) -> Stamp | None:
    """Stamp of a file or a link; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def folder_stamp(folder: Path) -> Stamp | None:
    """Stamp of a folder, None if there is none; it changes with the names in it.

    The folder is opened: a network file system then asks its server, and forgets the names that it
    knew if they have changed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_mtime_ns


def check_way(path: Path, cache: Path) -> None:
    """Refuse a path below the folder `cache` that is a symbolic link, or as `check_folders`."""
    check_folders(path, cache)
    if path != cache and path.is_symlink():
        raise _is_a_link(path)


def check_folders(path: Path, cache: Path) -> None:
    """Refuse a path if anything between `cache` and its last part is no plain folder.

    Raises LinkedPathError for a symbolic link, DamagedCacheError for a file, a pipe, a device;
    missing files are not damage here."""
    parts, above = path.parts, len(cache.parts)
    assert parts[:above] == cache.parts, (path, cache)
    # Strings: a cache has thousands of files, and paths cost more than the calls.
    folder = str(cache)
    for part in parts[above:-1]:
        folder = f"{folder}{os.sep}{part}"
        try:
            mode = os.lstat(folder).st_mode
        except OSError:
            return  # opening it raises the error
        if stat.S_ISLNK(mode):
            raise _is_a_link(folder)
        if not stat.S_ISDIR(mode):
            raise _is_no_folder(folder)


def refuse_linked_folders(teacher: Path, cache: Path) -> None:
    """Refuse a teacher's folder if what is written to it would go through a symbolic link."""
    for path in (teacher, *teacher.glob("*"), *teacher.glob("*/c"), *teacher.glob("tables/*")):
        if path.is_symlink():
            raise _is_a_link(path)
    check_folders(teacher, cache)


def check_teacher_folders(teacher: Path, cache: Path) -> None:
    """Refuse a teacher's folder in which anything that should be a folder is none, or a link."""
    refuse_linked_folders(teacher, cache)
    for folder in folders_of(teacher):
        check_folders(folder / "anything", cache)


def folders_of(teacher: Path) -> Iterator[Path]:
    """A teacher's folder and what has the name of one in it, as far as no link leads there."""
    yield teacher
    if teacher.is_symlink():
        return
    for folder in _named_as_folders(teacher):
        yield folder
        if not folder.is_symlink():
            inside = _named_as_folders(folder)
            yield from (each for each in inside if folder.name == "tables" or each.name == "c")


def _named_as_folders(folder: Path) -> list[Path]:
    inside = entries(folder) if folder.is_dir() else []
    return [each for each in inside if FOLDER_NAME.fullmatch(each.name)]


def _is_a_link(path: Path | str) -> LinkedPathError:
    return LinkedPathError(
        f"{path}: is a symbolic link, which could lead anywhere; "
        "copy the cache with its links resolved (cp -rL)"
    )


def _is_no_folder(path: Path | str) -> DamagedCacheError:
    return DamagedCacheError(
        f"{path}: is not a folder; move it away, and put the folder back from a copy of the cache"
    )


def read_bytes(path: Path, cache: Path, limit: int) -> bytes:
    """A small file of a cache; one of more than `limit` bytes is refused before it is read."""
    size = plain_size(path, cache)
    if size > limit:
        raise DamagedCacheError(f"{path}: has {size} bytes; at most {limit} are read")
    try:
        return path.read_bytes()
    except OSError as cause:
        raise read_error(path, cause) from cause


def read_document(model: type[DocumentT], path: Path, cache: Path) -> DocumentT:
    """Read one JSON document of a cache; anything but a valid one is a DamagedCacheError."""
    return parse_document(model, read_bytes(path, cache, model.max_bytes), path)


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
