"""Files of shards that arrive in a local cache: each in a private folder first, then in its place.

A file is moved into its place only when its size and hash are those of its commit record and it is
on the disk; a shard's commit record is written when all its files are in their places. So a cache
is whole at any moment. The private folder is a reservation without a number: other writers leave it
alone while we live and remove it when we are dead.

Two locations may hold a teacher in shards that are not the same. That is refused: only a merge can
join them.
"""

import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from ....cache_schemas.errors import (
    ArmadaError,
    CacheError,
    DamagedCacheError,
    LinkedPathError,
    StorageError,
)
from ....cache_schemas.layout import commit_file, shard_file, table_file, teacher_folder
from ....cache_schemas.manifest import CommitRecord, FileRecord, TeacherManifest
from ..files.atomic import storage_error, sync_file, sync_folder
from ..files.lock import locked, note_change
from ..files.own_files import make_folder, move_file, write_file
from ..files.plain_files import check_file, check_way, read_document
from ..writing.reservations import HeartbeatThread, Staging
from ..writing.teacher_folder import refuse_removed
from .remote import Location, NotThereError
from .retries import TooLargeError


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of a shard. `name` is its path from the cache's folder on, with slashes."""

    name: str
    record: FileRecord

    def is_at(self, cache: Path) -> bool:
        """Whether a file of that name and size is in a local cache; raises LinkedPathError."""
        path = cache / self.name
        check_way(path, cache)
        return path.is_file() and path.stat().st_size == self.record.bytes


def shard_files(
    teacher: TeacherManifest,
    record: CommitRecord,
    features: Collection[str] | None = None,
    tables: Collection[str] | None = None,
) -> Iterator[ShardFile]:
    """The files of some features and tables of a shard; of all where None is given."""
    folder = teacher_folder(Path(), teacher.fingerprint)
    for spec in teacher.spec.features:
        if features is None or spec.name in features:
            path = shard_file(folder, spec.name, record.shard, len(spec.shape))
            yield ShardFile(path.as_posix(), record.features[spec.name])
    for name, file in record.tables.items():
        if tables is None or name in tables:
            yield ShardFile(table_file(folder, name, record.shard).as_posix(), file)


_REMEDY = "merge the two with `armada cache merge`"


def refuse_other(
    here: str, ours: CommitRecord, there: str, theirs: CommitRecord, teacher: TeacherManifest
) -> None:
    """Raise CacheError unless the records of a shard number in two locations are the same."""
    if ours != theirs:
        raise CacheError(
            f"teacher {teacher.fingerprint[:12]}: shard {ours.shard} of {here} is not shard "
            f"{theirs.shard} of {there}; {_REMEDY}"
        )


def refuse_other_sizes(
    here: str, ours: TeacherManifest, there: str, theirs: TeacherManifest
) -> None:
    """Raise CacheError unless the shards of a teacher in two locations have equally many rows."""
    if ours.rows_per_shard != theirs.rows_per_shard:
        raise CacheError(
            f"teacher {ours.fingerprint[:12]}: {here} has {ours.rows_per_shard} rows per shard, "
            f"{there} {theirs.rows_per_shard}; {_REMEDY}"
        )


TRIES = 3
"""Downloads of a file that arrives damaged."""


def fetch(location: Location, file: ShardFile, target: Path) -> None:
    """Fetch one file to `target`, whole and on the disk.

    Raises DamagedCacheError for one that differs from its commit record after all retries."""

    def receive() -> None:
        location.download(file.name, target, file.record.bytes)
        check_file(target, target.parent, file.record)
        _sync(target)

    damage = retry_if_exception_type((TooLargeError, DamagedCacheError))
    try:
        Retrying(retry=damage, stop=stop_after_attempt(TRIES), reraise=True)(receive)
    except NotThereError as cause:
        raise DamagedCacheError(
            f"{location.where(file.name)}: is committed but missing; push the shard again"
        ) from cause
    except LinkedPathError:
        raise  # it would arrive no other way
    except (TooLargeError, DamagedCacheError) as cause:
        problem = str(cause).rpartition(": ")[2]
        raise DamagedCacheError(
            f"{location.where(file.name)}: arrived damaged {TRIES} times ({problem}); push the "
            "shard again from a cache with an intact copy"
        ) from cause


def _sync(file: Path) -> None:
    try:
        sync_file(file)
    except OSError as cause:
        raise storage_error(file, cause) from cause


class Arrivals:
    """One teacher's folder in a local cache while shards arrive there; use as a context manager."""

    def __init__(self, cache: Path, teacher: TeacherManifest) -> None:
        self._cache, self._teacher = cache, teacher
        self._folder = teacher_folder(cache, teacher.fingerprint)
        private = self._folder / "reservations" / f"arriving-{secrets.token_hex(8)}"
        with locked(cache):  # so that no process takes a new folder for a leftover
            make_folder(private.parent, cache)
            try:
                self._staging = Staging(private, {})
            except OSError as cause:
                raise storage_error(private, cause) from cause
        self._heart = HeartbeatThread()
        self._heart.add(self._staging)
        self._numbers = count()

    def __enter__(self) -> "Arrivals":
        return self

    def __exit__(self, *_: object) -> None:
        self._heart.stop()

    def receive(
        self,
        location: Location,
        files: Iterable[ShardFile],
        record: CommitRecord | None,
        here: Mapping[str, Path] | None = None,
    ) -> None:
        """Fetch files, move them into place and, with a `record`, commit their shard.

        `here` are files by name that were fetched before, to some other folder. Raises CacheError
        if another shard of that number was committed meanwhile."""
        try:
            self._receive(location, files, record, here or {})
        except ArmadaError as cause:
            if self._staging.is_ours():
                raise
            raise StorageError(
                f"cache {self._cache}: another process took this one for dead and removed its "
                "partial files; run the same command again to continue"
            ) from cause

    def _receive(
        self,
        location: Location,
        files: Iterable[ShardFile],
        record: CommitRecord | None,
        here: Mapping[str, Path],
    ) -> None:
        moves = [(self._fetch(location, file, here), self._cache / file.name) for file in files]
        with locked(self._cache):
            if record is not None:
                refuse_removed(self._cache, self._teacher)
            if record is not None and self._is_committed(location, record):
                record = None
                moves = [(staged, target) for staged, target in moves if not target.exists()]
            self._install(moves, record)

    def _fetch(self, location: Location, file: ShardFile, here: Mapping[str, Path]) -> Path:
        staged = self._staging.folder / str(next(self._numbers))
        if file.name not in here:
            fetch(location, file, staged)
            return staged
        try:
            shutil.copyfile(here[file.name], staged)
        except OSError as cause:
            raise storage_error(staged, cause) from cause
        _sync(staged)
        return staged

    def _is_committed(self, location: Location, record: CommitRecord) -> bool:
        path = commit_file(self._folder, record.shard)
        if not path.exists():
            return False
        ours = read_document(CommitRecord, path, self._cache)
        refuse_other(str(self._cache), ours, location.shown, record, self._teacher)
        return True

    def _install(self, moves: Iterable[tuple[Path, Path]], record: CommitRecord | None) -> None:
        changed, at = {self._folder}, self._folder
        try:
            for staged, target in moves:
                at = target
                move_file(staged, target, self._cache)
                changed |= {folder for folder in target.parents if self._folder in folder.parents}
            for at in sorted(changed):
                sync_folder(at)
        except OSError as cause:
            raise storage_error(at, cause) from cause
        if record is not None:
            note_change(self._cache, record.shard)
            write_file(commit_file(self._folder, record.shard), [record.to_json()], self._cache)
