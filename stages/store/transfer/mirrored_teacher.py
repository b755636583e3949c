"""One teacher of a mirror: files of its shards come when they are first needed.

Safe to pickle, and to use after a fork: another process finds what is in the mirror, and fetches
what is not by itself. Who fetches a file holds a lock of that file's name, so that processes that
need the same shard fetch it once.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....cache_schemas.contents import TeacherIndex
from ....cache_schemas.errors import MissingFeatureError
from ....cache_schemas.layout import ROWS_TABLE, commit_file, teacher_folder
from ..files.atomic import storage_error
from ..files.lock import locked, open_lock
from ..files.own_files import make_folder, remove_file, write_file
from ..format.manifests import held_features, read_part
from .arrivals import Arrivals
from .fetch_ahead import FetchAhead
from .key_search import rows_file
from .local_part import LocalTeacher
from .location import open_remote
from .parallel import in_parallel
from .place import RemotePlace
from .shard_files import ShardFile, shard_files

TURNS = "arriving"


@lru_cache(maxsize=4)
def connection(url: str, process: int) -> RemotePlace:
    """The place at a URL, connected once in each process."""
    return open_remote(url)


class MirroredTeacher:
    """What is at `url` of one teacher, and what has come of it to the mirror at `mirror`."""

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
    def _place(self) -> RemotePlace:
        return connection(self._url, os.getpid())

    def declare(self, feature: str) -> None:
        """Say which feature committed shards have, if none is committed yet."""
        teacher = LocalTeacher(self._mirror, self.origin)
        teacher.declare(self._place, frozenset({feature}), frozenset({ROWS_TABLE}))

    def fetch_keys(self, jobs: int) -> None:
        """Bring the rows tables of all shards that are not here yet."""
        files = [rows_file(self.origin, record) for record in self.origin.commits]
        missing = [file for file in files if not file.is_at(self._mirror)]
        in_parallel(jobs, self._fetch, missing)

    def file(self, feature: str, shard: int) -> ShardFile:
        """The file of a feature; raises MissingFeatureError if it is not there either."""
        there = {spec.name for spec in held_features(self.origin.manifest, self.origin.part)}
        if feature not in there:
            raise MissingFeatureError(f"feature {feature!r}: {self._place.shown} does not hold it")
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
                    arrivals.receive(self._place, [file], None)

    @contextmanager
    def _turn(self, file: ShardFile) -> Iterator[None]:
        path = self._mirror / TURNS / file.name.replace("/", "-")
        try:
            make_folder(path.parent, self._mirror)
            with open_lock(path.parent, path.name) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
                # Who waits for this file, or makes another, finds that the shard has come.
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
