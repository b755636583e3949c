"""State of a teacher in a local cache before a pull, and its documents after it.

The documents are written in an order that a kill cannot break: `part.json` records what is missing
before the first shard without it is committed, and that it is here only when all of it is.

One pull at a time works in a cache, so that what one has planned no other changes on the way. The
lock is a file in the cache's folder, held (flock) from the plan to the last document, and gone
afterwards. Readers and writers do not look at it: they are kept apart by other means.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ....cache_schemas.errors import CacheError, OutputError
from ....cache_schemas.layout import (
    CACHE_MANIFEST,
    PULL_LOCK,
    TEACHER_MANIFEST,
    TEACHER_PART,
    teacher_folder,
)
from ....cache_schemas.manifest import (
    CommitRecord,
    PartRecord,
    RunRecord,
    TeacherIndex,
    TeacherManifest,
)
from ..files.lock import give_back, locked, take
from ..files.own_files import make_folder, remove_file, write_file
from ..files.plain_files import read_document
from ..format.manifests import check_cache, read_commits, read_part, read_teacher
from ..writing.reservations import PATIENCE_S, Reservations
from ..writing.teacher_folder import (
    bring_up_to_date,
    create_cache,
    create_teacher,
    is_new,
    refuse_removed,
    write_zarr_metadata,
)
from .arrivals import refuse_other_sizes
from .remote import Location


@dataclass(frozen=True, slots=True)
class Held:
    """Local state of a teacher: its shards, and the names of features and tables they all have."""

    records: dict[int, CommitRecord]
    features: frozenset[str]
    tables: frozenset[str]
    next_shard: int


def read_held(cache: Path, teacher: TeacherManifest, location: Location) -> Held:
    """Local state, in the cache at `cache`, which need not exist, of a teacher that `location` has
    as well.

    Raises CacheError if it holds the teacher in shards of another size, or is no cache."""
    nothing = Held({}, frozenset(), frozenset(), 0)
    if is_new(cache):
        return nothing
    check_cache(cache)
    file = teacher_folder(cache, teacher.fingerprint) / TEACHER_MANIFEST
    if not file.exists():
        return nothing
    known = read_teacher(file, cache)
    refuse_other_sizes(str(cache), known, location.shown, teacher)
    return _held(cache, known)


def _held(cache: Path, teacher: TeacherManifest) -> Held:
    records = {record.shard: record for record in read_commits(cache, teacher)}
    part = read_part(cache, teacher.fingerprint)
    if not records:
        return Held({}, frozenset(), frozenset(), part.next_shard if part else 0)
    return Held(
        records,
        frozenset(all_features(teacher)) - frozenset(part.missing_features if part else ()),
        all_tables(records.values()) - frozenset(part.missing_tables if part else ()),
        part.next_shard if part else 0,
    )


def all_features(teacher: TeacherManifest) -> tuple[str, ...]:
    """Names of all features of a teacher."""
    return tuple(feature.name for feature in teacher.spec.features)


def all_tables(records: Iterable[CommitRecord]) -> frozenset[str]:
    """Names of all tables that some shard has."""
    return frozenset(name for record in records for name in record.tables)


@dataclass(frozen=True, slots=True)
class LocalTeacher:
    """One teacher's documents in a local cache that is pulled into. All of `origin` may come."""

    cache: Path
    origin: TeacherIndex

    @property
    def _teacher(self) -> TeacherManifest:
        return self.origin.manifest

    @property
    def _folder(self) -> Path:
        return teacher_folder(self.cache, self._teacher.fingerprint)

    def begin(
        self, location: Location, planned: Held, features: frozenset[str], tables: frozenset[str]
    ) -> None:
        """Make room for shards with at least these features and tables.

        Raises CacheError if somebody is writing a shard that may come, or if what is here is no
        longer what the plan was made for."""
        create_cache(self.cache)
        with locked(self.cache):
            create_teacher(self.cache, self._teacher)
            living = Reservations(self._folder, PATIENCE_S).living()
            held = read_held(self.cache, self._teacher, location)
            if held != planned:
                raise CacheError(
                    f"cache {self.cache}: another process changed teacher "
                    f"{self._teacher.fingerprint[:12]} while this pull was planned; run the same "
                    "command again"
                )
            self._refuse_writers(location, living.keys() - held.records.keys())
            self._declare(held, features, tables)
            bring_up_to_date(self._folder, self._teacher, held.records, living)

    def declare(self, location: Location, features: frozenset[str], tables: frozenset[str]) -> None:
        """Make the teacher's folder and record that shards there have these features and tables, or
        those that the shards there have already. Removes what dead pulls left."""
        create_cache(self.cache)
        with locked(self.cache):
            create_teacher(self.cache, self._teacher)
            Reservations(self._folder, PATIENCE_S).living()
            held = read_held(self.cache, self._teacher, location)
            self._declare(held, features, tables)
            write_zarr_metadata(self._folder, self._teacher, held.records)

    def _declare(self, held: Held, features: frozenset[str], tables: frozenset[str]) -> None:
        if held.records:  # what they lack is here only when all of them have it
            features, tables = held.features, held.tables
        self._write_part(held, features, tables)

    def _refuse_writers(self, location: Location, reserved: Iterable[int]) -> None:
        theirs = {record.shard for record in self.origin.commits}
        taken = sorted(theirs.intersection(reserved))
        if taken:
            raise CacheError(
                f"cache {self.cache}: another process is writing shard {taken[0]} of teacher "
                f"{self._teacher.fingerprint[:12]}, which {location.shown} has too; wait for it, "
                "then merge the two with `armada cache merge`"
            )

    def finish(self, features: frozenset[str], tables: frozenset[str]) -> None:
        """Record that every shard has these features and tables; bring the other documents
        along."""
        with locked(self.cache):
            refuse_removed(self.cache, self._teacher)
            self._write_part(_held(self.cache, self._teacher), features, tables)
            records = {r.shard: r for r in read_commits(self.cache, self._teacher)}
            write_zarr_metadata(self._folder, self._teacher, records)
            for run, record in self.origin.runs.items():
                self._write_run(run, record, records)

    def _write_part(self, held: Held, features: frozenset[str], tables: frozenset[str]) -> None:
        """Under the lock. No document is the whole teacher."""
        theirs = {record.shard for record in self.origin.commits}
        next_shard = max(held.next_shard, max(theirs, default=-1) + 1)
        records = (*held.records.values(), *self.origin.commits)
        part = PartRecord(
            missing_features=tuple(n for n in all_features(self._teacher) if n not in features),
            missing_tables=tuple(sorted(all_tables(records) - tables)),
            next_shard=next_shard,
        )
        file = self._folder / TEACHER_PART
        whole = theirs <= held.records.keys() and next_shard == max(theirs, default=-1) + 1
        if whole and not part.missing_features and not part.missing_tables:
            remove_file(file, self.cache)
        elif not file.exists() or file.read_bytes() != part.to_json():
            write_file(file, [part.to_json()], self.cache)

    def _write_run(self, run: str, theirs: RunRecord, here: Iterable[int]) -> None:
        """Write a run's record, with the cost of local shards only."""
        file = self._folder / "runs" / f"{run}.json"
        seconds = {s: theirs.teacher_seconds[s] for s in here if s in theirs.teacher_seconds}
        if file.exists():
            seconds = read_document(RunRecord, file, self.cache).teacher_seconds | seconds
        merged = theirs.model_copy(update={"teacher_seconds": dict(sorted(seconds.items()))})
        if not file.exists() or file.read_bytes() != merged.to_json():
            write_file(file, [merged.to_json()], self.cache)


POLL_S = 0.2


@contextmanager
def one_pull(cache: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the one that pulls into the cache at `cache`, which need not exist; `waiting` is called
    if another pull is to be waited for. If no cache has come to be, folders made here go again.

    Raises OutputError or StorageError if the folder cannot be made or written."""
    if cache.exists() and not cache.is_dir():
        yield  # it will be refused for what it is
        return
    made = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    file = _held_lock(cache, waiting)
    try:
        yield
    finally:
        give_back(file, cache, PULL_LOCK)
        if not (cache / CACHE_MANIFEST).exists():
            _remove_empty(made)


def _held_lock(cache: Path, waiting: Callable[[], None]) -> BinaryIO:
    warned = False
    while True:
        make_folder(cache, cache)
        file = _locked(cache)
        if file is not None:
            return file
        if not warned:
            waiting()
            warned = True
        time.sleep(POLL_S)


def _locked(cache: Path) -> BinaryIO | None:
    """The lock if it is free; None if another pull has it, or is just giving it up."""
    try:
        return take(cache, PULL_LOCK)
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None  # the folder went again
        raise


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # another process has put something there
        for folder in folders:
            folder.rmdir()
