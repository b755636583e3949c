"""Whatever changes in a cache changes here: files are written, moved and removed, folders made.

A cache may come from strangers, and a symbolic link in it lead anywhere. So before anything is
touched, every part of the way to it from the cache's own folder on is looked at: the target of a
link is never changed. (The folder of the cache itself may be a link: that is its owner's.) All
other modules of the store come here to change files; a test reads their source for that.

What a process works in before anything is moved into place is its own from the beginning
(`../writing/reservations.py`).
"""

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ....cache_schemas.errors import OutputError
from ....cache_schemas.manifest import FileRecord
from .atomic import Buffer, make_folders, share, storage_error, sync_folder, write_atomic
from .plain_files import check_folders, check_way


def write_file(path: Path, parts: Iterable[Buffer], cache: Path) -> FileRecord:
    """Write `parts` one after another as the file `path` of a cache; see `write_atomic`.

    This and all below raise LinkedPathError if a symbolic link leads there."""
    check_way(path, cache)
    return write_atomic(path, parts)


def make_folder(folder: Path, cache: Path) -> None:
    """Make a folder of a cache, or the cache's own, if it is not there.

    Raises OutputError if the cache cannot be there, StorageError if the disk refuses."""
    check_way(folder, cache)
    try:
        make_folders(folder)
    except FileExistsError as cause:
        if folder != cache:
            raise storage_error(folder, cause) from cause
        raise OutputError(
            f"cache {cache}: is a file, or a link to nothing; name another folder"
        ) from cause
    except OSError as cause:
        raise storage_error(folder, cause) from cause


def move_file(staged: Path, target: Path, cache: Path) -> set[Path]:
    """Move a finished file to its place in a cache, whose folder is made if it is not there.

    Returns the folders that got a new name in them; they are not synced yet. Raises an OSError if
    the disk refuses."""
    check_way(staged, cache)
    check_way(target, cache)
    changed, above = {target.parent}, target.parent
    while not above.is_dir():
        above = above.parent
        changed.add(above)
    make_folders(target.parent)
    share(staged, target.parent)
    staged.replace(target)
    return changed


def remove_file(path: Path, cache: Path) -> None:
    """Remove a file of a cache, if it is there, and wait until its name is off the disk.

    Raises StorageError if the disk refuses. A link is removed, not what it leads to."""
    check_folders(path, cache)
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)
    except OSError as cause:
        raise storage_error(path, cause) from cause


def remove_tree(path: Path, cache: Path) -> int:
    """Remove a file, a link or a folder of a cache, if it is there; returns how many bytes it had.

    Raises as `remove_file`."""
    check_folders(path, cache)
    try:
        size = size_of(path)
        while os.path.lexists(path):
            with suppress(FileNotFoundError):  # a living writer takes something away meanwhile
                path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)
    except OSError as cause:
        raise storage_error(path, cause) from cause
    return size


def size_of(path: Path) -> int:
    """Bytes of a file or a link, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(map(_file_size, files))


def _file_size(file: Path) -> int:
    """0 of a folder, and of what another process has just removed."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return 0
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size
