"""One teacher of a mirror: files of its shards come when they are first needed, or ahead of it.

Safe to pickle, and to use after a fork: another process finds what is in the mirror, and fetches
what is not by itself. A fetching process holds a lock of that file's name, so that processes that
need the same shard fetch it once.

`FetchAhead` brings shards in the background, in the order of first use, while a run is at others. A
reader that needs a shard whose download has not started fetches it at once. Threads are daemons: a
process that ends leaves what is under way, as if it were killed.

`MirrorSpace` bounds what a mirror keeps: what was not used for longest goes first. Only features
go: the documents and the keys of all shards stay, a run needs them to know what it needs. When a
file was used is its own modification time, set anew for every run that needs it.
"""

import fcntl
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....cache_schemas.errors import CacheError, MissingFeatureError
from ....cache_schemas.layout import ROWS_TABLE, commit_file, teacher_folder
from ....cache_schemas.manifest import TeacherIndex
from ..files.atomic import storage_error
from ..files.lock import locked, open_lock, try_lock
from ..files.own_files import make_folder, remove_file, write_file
from ..format.manifests import held_features, read_part
from .arrivals import Arrivals, ShardFile, shard_files
from .local_part import LocalTeacher
from .location import open_remote
from .pull import rows_file
from .remote import RemoteLocation, in_parallel

TURNS = "arriving"


@lru_cache(maxsize=4)
def connection(url: str, process: int) -> RemoteLocation:
    """The location at a URL, connected once in each process."""
    return open_remote(url)


class MirroredTeacher:
    """A teacher at `url`, and its downloaded part in the mirror at `mirror`."""

    def __init__(self, mirror: Path, url: str, origin: TeacherIndex) -> None:
        self.origin = origin
        self._mirror, self._url = mirror, url
        self._records = {record.shard: record for record in origin.commits}
        self._ahead: dict[str, FetchAhead] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": {}}  # threads do not travel

    @property
    def folder(self) -> Path:
        """The teacher's folder in the mirror."""
        return teacher_folder(self._mirror, self.origin.manifest.fingerprint)

    @property
    def _location(self) -> RemoteLocation:
        return connection(self._url, os.getpid())

    def declare(self, feature: str) -> None:
        """Record which feature committed shards have, if none is committed yet."""
        teacher = LocalTeacher(self._mirror, self.origin)
        teacher.declare(self._location, frozenset({feature}), frozenset({ROWS_TABLE}))

    def fetch_keys(self, jobs: int) -> None:
        """Bring the rows tables of all shards that are not here yet."""
        files = [rows_file(self.origin, record) for record in self.origin.commits]
        missing = [file for file in files if not file.is_at(self._mirror)]
        in_parallel(jobs, self._fetch, missing)

    def file(self, feature: str, shard: int) -> ShardFile:
        """The file of a feature; raises MissingFeatureError if it is not there either."""
        there = {spec.name for spec in held_features(self.origin.manifest, self.origin.part)}
        if feature not in there:
            shown = self._location.shown
            raise MissingFeatureError(f"feature {feature!r}: {shown} does not hold it")
        record = self._records[shard]
        return next(shard_files(self.origin.manifest, record, (feature,), ()))

    def fetch_ahead(self, feature: str, shards: Sequence[int], jobs: int) -> None:
        """Begin to bring a feature of some shards, in that order."""
        self._ahead[feature] = FetchAhead(lambda shard: self._bring(feature, shard), shards, jobs)

    def prepare(self, feature: str, shard: int) -> None:
        """Return when the file of a feature is here. It is a `Prepare`."""
        if self.file(feature, shard).is_at(self._mirror):
            return
        ahead = self._ahead.get(feature)
        if ahead is not None and ahead.is_ours:
            ahead.wait(shard)
        self._bring(feature, shard)

    def _bring(self, feature: str, shard: int) -> None:
        self._fetch(self.file(feature, shard))
        self._commit_if_whole(shard)

    def _fetch(self, file: ShardFile) -> None:
        if file.is_at(self._mirror):
            return
        with self._turn(file):
            if not file.is_at(self._mirror):
                with Arrivals(self._mirror, self.origin.manifest) as arrivals:
                    arrivals.receive(self._location, [file], None)

    @contextmanager
    def _turn(self, file: ShardFile) -> Iterator[None]:
        path = self._mirror / TURNS / file.name.replace("/", "-")
        try:
            make_folder(path.parent, self._mirror)
            with open_lock(path.parent, path.name) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
                # A process that waits for this file, or makes another, finds the shard complete.
                remove_file(path, self._mirror)
        except OSError as cause:
            raise storage_error(path, cause) from cause

    def _commit_if_whole(self, shard: int) -> None:
        record, teacher = self._records[shard], self.origin.manifest
        with locked(self._mirror):
            path = commit_file(self.folder, shard)
            held = held_features(teacher, read_part(self._mirror, teacher.fingerprint))
            names = [spec.name for spec in held]
            files = shard_files(teacher, record, names, (ROWS_TABLE,))
            if not path.exists() and all(file.is_at(self._mirror) for file in files):
                write_file(path, [record.to_json()], self._mirror)


class FetchAhead:
    """Fetches numbered things once each, some at a time."""

    def __init__(self, fetch: Callable[[int], None], order: Sequence[int], jobs: int) -> None:
        self._fetch = fetch
        self._changed = threading.Condition()
        self._waiting = dict.fromkeys(order)
        self._busy: set[int] = set()
        self._error: BaseException | None = None
        self._process = os.getpid()
        for _ in range(min(jobs, len(self._waiting))):
            threading.Thread(target=self._run, name="fetch ahead", daemon=True).start()

    @property
    def is_ours(self) -> bool:
        """Whether the threads are in this process: a fork has none."""
        return self._process == os.getpid()

    def wait(self, number: int) -> None:
        """Return when a thing is there, or raise what went wrong with it or another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or number not in self._busy)
            if self._error is not None:
                raise self._error
            if number not in self._waiting:
                return
            self._begin(number)
        self._do(number)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._error is not None or not self._waiting:
                    return
                number = next(iter(self._waiting))
                self._begin(number)
            try:
                self._do(number)
            except BaseException:
                return  # kept for waiting threads

    def _begin(self, number: int) -> None:
        del self._waiting[number]
        self._busy.add(number)

    def _do(self, number: int) -> None:
        try:
            self._fetch(number)
        except BaseException as error:
            self._error = error
            raise
        finally:
            with self._changed:
                self._busy.discard(number)
                self._changed.notify_all()


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
                    f"mirror {self._folder}: is full, and another run uses its shards; wait for "
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
