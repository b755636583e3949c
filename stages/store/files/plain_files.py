"""Files of a cache are plain files in plain folders, and no larger than they may be.

A cache may come from strangers. Its paths are made from checked names (`cache_schemas/layout.py`),
so no document can lead out of it; a symbolic link could, and a pipe or a device could keep a reader
waiting for ever. So what lies below a cache's own folder is looked at before it is first opened:
one `lstat` for each part of its path, a few µs a file.
"""

import fnmatch
import os
import stat
from pathlib import Path

from ....cache_schemas.errors import AccessError, DamagedCacheError, LinkedPathError
from ....cache_schemas.manifest import DocumentT, parse_document
from .modes import access_error


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
    """What to tell people when `path` cannot be read. What they may not read is not damaged."""
    if isinstance(cause, PermissionError):
        return access_error(path)
    return DamagedCacheError(f"{path}: cannot be read: {cause.strerror}")


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder, sorted; nothing if it is not there. Unlike `glob`, it does not take what
    may not be read for empty: it raises AccessError."""
    try:
        return sorted(folder / name for name in fnmatch.filter(os.listdir(folder), pattern))
    except (FileNotFoundError, NotADirectoryError):
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
"""Tells a file from another that took its name: inode and nanoseconds of its last change."""


def stamp_of(path: Path) -> Stamp | None:
    """That of a file or a link; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_way(path: Path, cache: Path) -> None:
    """Refuse a path below the folder `cache` that is a symbolic link, or leads through one."""
    check_folders(path / "anything", cache)


def check_folders(path: Path, cache: Path) -> None:
    """Refuse a path that some symbolic link between `cache` and its last part leads through."""
    parts, above = path.parts, len(cache.parts)
    assert parts[:above] == cache.parts, (path, cache)
    # Strings: a cache has thousands of files, and paths cost more than the calls.
    folder = str(cache)
    for part in parts[above:-1]:
        folder = f"{folder}{os.sep}{part}"
        if os.path.islink(folder):
            raise _is_a_link(folder)


def refuse_linked_folders(teacher: Path, cache: Path) -> None:
    """Refuse a teacher's folder if what is written to it would go through a symbolic link."""
    for folder in (teacher, *teacher.glob("*"), *teacher.glob("*/c"), *teacher.glob("tables/*")):
        check_folders(folder / "file", cache)


def _is_a_link(path: Path | str) -> LinkedPathError:
    return LinkedPathError(
        f"{path}: is a symbolic link, which could lead anywhere; "
        "copy the cache with its links resolved (cp -rL)"
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
