"""Take things out of a cache, so that at any moment readers see whole shards and whole teachers.

What makes a thing visible goes first and is gone from the disk before the rest is touched: a
shard's commit record, a teacher's `teacher.json`. All of it is called under the cache's lock
(`../files/lock.py`). No symbolic link is followed, so nothing outside of the cache can be removed
(`../files/own_files.py`).
"""

from collections.abc import Container
from pathlib import Path

from ....cache_schemas.layout import PARTIAL_SUFFIX, TEACHER_MANIFEST, commit_file, teacher_folder
from ..files.own_files import remove_file, remove_tree


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
