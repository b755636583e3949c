"""How much of a cache elsewhere a mirror may keep: what was not used for longest goes first.

Only features go: the documents and the keys of all shards stay, a run needs them to know what it
needs. When a file was used is its own modification time, set anew for every run that needs it.
"""

import fcntl
import os
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ....cache_schemas.errors import CacheError
from ....cache_schemas.layout import commit_file
from ..files.lock import locked, open_lock, try_lock
from ..files.own_files import remove_file
from .shard_files import ShardFile

IN_USE = "in_use.lock"


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A feature of one shard of the teacher whose folder is `teacher`."""

    teacher: Path
    shard: int
    file: ShardFile


class MirrorSpace:
    """The disk space of one mirror. As long as this lives, others evict nothing."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self._folder, self._limit = folder, limit
        self._lock = open_lock(folder, IN_USE)
        weakref.finalize(self, self._lock.close)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def make_room(self, needed: Iterable[FeatureFile], known: Iterable[FeatureFile]) -> None:
        """Evict what is not needed until the needed files fit; `known` are all that can be fetched
        again. Raises CacheError if they cannot fit, or if another run uses the mirror."""
        wanted = {one.file.name: one for one in needed}
        missing = sum(
            one.file.record.bytes for one in wanted.values() if not one.file.is_at(self._folder)
        )
        self._mark_used(wanted.values())
        if self._limit is None:
            return
        spare = [
            one for one in known if one.file.name not in wanted and one.file.is_at(self._folder)
        ]
        total = missing + _bytes_in(self._folder)
        least = total - sum(one.file.record.bytes for one in spare)
        if least > self._limit:
            raise CacheError(
                f"mirror {self._folder}: this run needs {least} bytes there, mirror_limit is "
                f"{self._limit}; raise it, or train on fewer texts"
            )
        if total > self._limit:
            self._evict(spare, total - self._limit)

    def _mark_used(self, files: Iterable[FeatureFile]) -> None:
        for one in files:
            if one.file.is_at(self._folder):
                os.utime(self._folder / one.file.name)

    def _evict(self, spare: list[FeatureFile], excess: int) -> None:
        with self._alone():
            for one in sorted(spare, key=lambda s: (self._folder / s.file.name).stat().st_mtime_ns):
                if excess <= 0:
                    return
                with locked(self._folder):
                    remove_file(commit_file(one.teacher, one.shard), self._folder)
                    remove_file(self._folder / one.file.name, self._folder)
                excess -= one.file.record.bytes

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            if not try_lock(self._lock.fileno(), self._folder):
                raise CacheError(
                    f"mirror {self._folder}: is full, and another run uses what it holds; wait for "
                    "that run, raise mirror_limit, or name another mirror"
                )
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # a failed try may have lost it


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another run has just moved or removed it
            total += file.lstat().st_size if not file.is_dir() else 0
    return total
