"""Take things out of a cache, so that at any moment readers see whole shards and whole teachers.

What makes a thing visible goes first and is gone from the disk before the rest is touched: a
shard's commit record, a teacher's `teacher.json`. All of it is called under the cache's lock
(`../files/lock.py`). No symbolic link is followed, so nothing outside of the cache can be removed.
"""

import os
import shutil
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from ....cache_schemas.layout import PARTIAL_SUFFIX, TEACHER_MANIFEST, commit_file, teacher_folder
from ..files.atomic import storage_error, sync_folder
from ..files.plain_files import check_folders


def drop_shard(cache: Path, fingerprint: str, shard: int) -> None:
    """Remove one shard, its commit record first; its keys are pending again.

    The Zarr shape is the caller's to bring up to date. Raises StorageError."""
    folder = teacher_folder(cache, fingerprint)
    remove_file(commit_file(folder, shard), cache)
    for path in shard_paths(folder, shard):
        remove_tree(path, cache)


def shard_paths(teacher: Path, shard: int) -> list[Path]:
    """The files of one shard's tables and the folders of its features, those that are there."""
    return [*teacher.glob(f"tables/*/{shard:06d}.parquet"), *teacher.glob(f"*/c/{shard}")]


def drop_teacher(cache: Path, fingerprint: str) -> None:
    """Remove a teacher and all its answers, `teacher.json` first. Raises StorageError."""
    folder = teacher_folder(cache, fingerprint)
    remove_file(folder / TEACHER_MANIFEST, cache)
    # Should we die on the way, what is left shall not look like a teacher that lost its manifest.
    remove_tree(folder / "commits", cache)
    remove_tree(folder, cache)


def partial_documents(cache: Path) -> list[Path]:
    """What dead writers left of documents of the cache itself, sorted."""
    return sorted(
        partial
        for folder in (cache, cache / "teachers")
        for partial in folder.glob(f"*{PARTIAL_SUFFIX}")
    )


def uncommitted(teacher: Path, *kept: Container[int]) -> list[Path]:
    """What dead writers left in a teacher's folder, sorted: partial files, and files of shards
    whose numbers none of `kept` has: those that are committed, those that are reserved.
    Reservations are not looked into."""
    inside = teacher / "reservations"
    paths = {path for path in teacher.rglob(f"*{PARTIAL_SUFFIX}") if inside not in path.parents}
    for path in (*teacher.glob("tables/*/*.parquet"), *teacher.glob("*/c/*")):
        number = int(path.stem) if path.stem.isdecimal() else None
        if number is not None and not any(number in numbers for numbers in kept):
            paths.add(path)
    return sorted(paths)


def remove_file(path: Path, cache: Path) -> None:
    """Remove a file of a cache, if it is there, and wait until its name is off the disk.

    Raises DamagedCacheError if a symbolic link leads to it, StorageError if the disk refuses."""
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
