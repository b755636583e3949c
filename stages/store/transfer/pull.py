"""Bring shards from a location into a local cache: only what is missing, each file verified.

    choice     which teachers, which features, which shards: all, or those that hold a corpus's keys
    plan       what would come: worked out, and refused if need be, before anything is written
    pull       the plan carried out

Which shards hold the keys of a corpus is read from their `rows` tables, about 1 % of a shard. Those
that are not in the local cache are fetched to a folder of the caller's, so that a shard that is
then wanted need not bring its own again.

An interrupted pull continues where it stopped: shards that are committed are here, the rest is not.
A cache with a part of a teacher records it in `part.json`, and a later pull fills it up. Commit
records are copied as they are, so what is wholly here has the digest it has there.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ....cache_schemas.errors import (
    CacheError,
    DamagedCacheError,
    MissingFeatureError,
    StorageError,
)
from ....cache_schemas.keys import KeyArray, first_occurrences
from ....cache_schemas.layout import ROWS_TABLE
from ....cache_schemas.manifest import CacheIndex, CommitRecord, TeacherIndex
from ..files.plain_files import check_file
from ..format.manifests import choose_teacher, held_features
from ..format.rows import KeyIndex
from ..format.tables import read_keys
from ..writing.teacher_folder import refuse_mirror
from .arrivals import Arrivals, ShardFile, fetch, refuse_other, shard_files
from .local_part import Held, LocalTeacher, all_tables, one_pull, read_held
from .remote import Advance, Location, in_parallel


@dataclass(frozen=True, slots=True)
class Choice:
    """Prefixes of teachers, names of features, keys [N, 16] of a corpus; all where none are
    given."""

    teachers: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    keys: KeyArray | None = None


def chosen_teachers(
    shown: str, index: CacheIndex, prefixes: Sequence[str]
) -> tuple[TeacherIndex, ...]:
    """The teachers that prefixes mean, each with those that extend it; all if there are none."""
    manifests = [teacher.manifest for teacher in index.teachers]
    if not manifests:
        raise CacheError(f"cache {shown}: no teacher has committed a shard yet")
    if not prefixes:
        return index.teachers
    names = {choose_teacher(shown, manifests, prefix).fingerprint for prefix in prefixes}
    return tuple(
        teacher
        for teacher in index.teachers
        if names & {teacher.manifest.fingerprint, teacher.manifest.extends}
    )


def with_features(
    location: Location, teachers: Sequence[TeacherIndex], features: Sequence[str]
) -> tuple[TeacherIndex, ...]:
    """Teachers that have one of the features, and those that they extend.

    All of them if no features are given. Raises MissingFeatureError for a feature of no teacher."""
    if not features:
        return tuple(teachers)
    there = [{spec.name for spec in held_features(t.manifest, t.part)} for t in teachers]
    for name in features:
        if not any(name in names for names in there):
            known = ", ".join(sorted(set().union(*there)))
            raise MissingFeatureError(f"feature {name!r}: {location.shown} has {known}")
    offering = [
        t.manifest for t, names in zip(teachers, there, strict=True) if names & set(features)
    ]
    wanted = {m.fingerprint for m in offering} | {m.extends for m in offering}
    return tuple(t for t in teachers if t.manifest.fingerprint in wanted)


def wanted_parts(
    location: Location, origin: TeacherIndex, held: Held, features: Sequence[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Features and tables that all shards here are to have: requested ones and those they have.

    With requested features, `rows` is the one table that comes along. Raises MissingFeatureError if
    the location lacks what the shards here have."""
    missing = origin.part.missing_tables if origin.part else ()
    tables = all_tables(origin.commits) - frozenset(missing)
    there = frozenset(spec.name for spec in held_features(origin.manifest, origin.part))
    lacking = sorted(
        (held.features - there) | ((held.tables & all_tables(origin.commits)) - tables)
    )
    if lacking:
        raise MissingFeatureError(
            f"teacher {origin.manifest.fingerprint[:12]}: {location.shown} lacks "
            f"{', '.join(lacking)}, which every shard here has; pull into another folder"
        )
    if features:
        there, tables = there & frozenset(features), tables & {ROWS_TABLE}
    return there | held.features, tables | held.tables


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """Shards that hold some of the keys, how many different keys those are, and the tables that
    were fetched, by name."""

    shards: frozenset[int]
    keys: int
    tables: Mapping[str, Path]


def find_keys(
    location: Location,
    origin: TeacherIndex,
    keys: KeyArray,
    cache: Path,
    here: Iterable[int],
    folder: Path,
    jobs: int,
) -> FoundKeys:
    """Look for keys [N, 16] in all shards of a teacher; `here` are those the local cache has."""
    tables = {record.shard: rows_file(origin, record) for record in origin.commits}
    known = frozenset(here)
    local = {shard for shard, file in tables.items() if shard in known and file.is_at(cache)}
    missing = [file for shard, file in tables.items() if shard not in local]
    fetched = {file.name: folder / file.name for file in missing}
    in_parallel(jobs, lambda file: _fetch(location, file, fetched[file.name]), missing)
    wanted = KeyIndex(keys[first_occurrences(keys)])
    shards, found = set(), np.zeros(len(wanted), dtype=bool)
    for record in origin.commits:
        name = tables[record.shard].name
        rows = wanted.find(read_keys(fetched.get(name, cache / name), record.rows))
        if (rows >= 0).any():
            shards.add(record.shard)
            found[rows[rows >= 0]] = True
    return FoundKeys(frozenset(shards), int(found.sum()), fetched)


def _fetch(location: Location, file: ShardFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fetch(location, file, target)


def rows_file(origin: TeacherIndex, record: CommitRecord) -> ShardFile:
    """The rows table of a shard."""
    return next(shard_files(origin.manifest, record, (), (ROWS_TABLE,)))


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Files of one shard that are to come; `commit`: whether its record is fetched too."""

    record: CommitRecord
    files: tuple[ShardFile, ...]
    commit: bool


@dataclass(frozen=True, slots=True)
class TeacherPlan:
    """Planned download of one teacher. `features` and `tables` are those that all its shards will
    have; `held` is the local state at planning; `there` counts shards that need nothing; `found`
    counts requested keys."""

    origin: TeacherIndex
    held: Held
    features: frozenset[str]
    tables: frozenset[str]
    shards: tuple[ShardPlan, ...]
    there: int
    found: int | None

    @property
    def bytes(self) -> int:
        """Bytes to come."""
        return sum(file.record.bytes for shard in self.shards for file in shard.files)


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Planned download; `fetched` are tables by name that planning needed."""

    teachers: tuple[TeacherPlan, ...]
    fetched: Mapping[str, Path] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes to come."""
        return sum(teacher.bytes for teacher in self.teachers)


@contextmanager
def planned(
    location: Location,
    index: CacheIndex,
    cache: Path,
    choice: Choice,
    jobs: int,
    dry_run: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[PullPlan]:
    """Work out what of the cache at `location`, whose documents are `index`, is to come to `cache`.

    Until the block is left no other pull changes the cache, so that the plan can be carried out;
    unless it is a `dry_run`, which touches nothing. `waiting` is called if another is under way.
    Raises CacheError for what does not fit, StorageError if the disk is too small."""
    teachers = chosen_teachers(location.shown, index, choice.teachers)
    teachers = with_features(location, teachers, choice.features)
    with ExitStack() as stack:
        refuse_mirror(cache)
        if not dry_run:
            stack.enter_context(one_pull(cache, waiting))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        planner = _Planner(location, cache, choice, Path(folder), jobs)
        plans = tuple(planner.plan(teacher) for teacher in teachers)
        plan = PullPlan(plans, planner.fetched)
        _refuse_without_keys(location, plan, choice)
        _refuse_too_large(cache, plan.bytes)
        yield plan


@dataclass(frozen=True, slots=True)
class _Planner:
    location: Location
    cache: Path
    choice: Choice
    folder: Path
    jobs: int
    fetched: dict[str, Path] = field(default_factory=dict)

    def plan(self, origin: TeacherIndex) -> TeacherPlan:
        held = read_held(self.cache, origin.manifest, self.location)
        features, tables = wanted_parts(self.location, origin, held, self.choice.features)
        found = self._find(origin, held)
        chosen = found.shards if found else {record.shard for record in origin.commits}
        shards = []
        for record in origin.commits:
            here = held.records.get(record.shard)
            if here is not None:
                refuse_other(str(self.cache), here, self.location.shown, record, origin.manifest)
            if here is not None or record.shard in chosen:
                shards.append(self._shard(origin, held, record, features, tables))
        self._refuse_orphans(origin, held, features | tables)
        missing = tuple(shard for shard in shards if shard.files or shard.commit)
        return TeacherPlan(
            origin,
            held,
            features,
            tables,
            missing,
            len(shards) - len(missing),
            found.keys if found else None,
        )

    def _find(self, origin: TeacherIndex, held: Held) -> FoundKeys | None:
        if self.choice.keys is None:
            return None
        found = find_keys(
            self.location,
            origin,
            self.choice.keys,
            self.cache,
            held.records,
            self.folder,
            self.jobs,
        )
        self.fetched.update(found.tables)
        return found

    def _shard(
        self,
        origin: TeacherIndex,
        held: Held,
        record: CommitRecord,
        features: frozenset[str],
        tables: frozenset[str],
    ) -> ShardPlan:
        files = tuple(shard_files(origin.manifest, record, features, tables))
        if record.shard not in held.records:
            return ShardPlan(record, files, commit=True)
        trusted = set(shard_files(origin.manifest, record, held.features, held.tables))
        missing = (file for file in files if not self._is_here(file, file in trusted))
        return ShardPlan(record, tuple(missing), commit=False)

    def _is_here(self, file: ShardFile, trusted: bool) -> bool:
        if not file.is_at(self.cache) or trusted:
            return file.is_at(self.cache)
        try:  # left by a pull of this feature that was cut
            check_file(self.cache / file.name, self.cache, file.record)
        except DamagedCacheError:
            return False
        return True

    def _refuse_orphans(self, origin: TeacherIndex, held: Held, parts: frozenset[str]) -> None:
        """Check that required features exist for every shard."""
        new = parts - held.features - held.tables
        orphans = held.records.keys() - {record.shard for record in origin.commits}
        if new and orphans:
            raise CacheError(
                f"cache {self.cache}: shard {min(orphans)} of teacher "
                f"{origin.manifest.fingerprint[:12]} is not at {self.location.shown}, so "
                f"{', '.join(sorted(new))} cannot be added; pull into another folder"
            )


def _refuse_without_keys(location: Location, plan: PullPlan, choice: Choice) -> None:
    if choice.keys is not None and not any(teacher.found for teacher in plan.teachers):
        raise CacheError(
            f"{location.shown}: holds none of the {len(choice.keys)} texts of the corpus; are "
            "these the text columns the teacher read?"
        )


def _refuse_too_large(cache: Path, needed: int) -> None:
    folder = cache.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"cache {cache}: {needed} bytes to download, but the disk has {free} free; pull fewer "
            "features or texts"
        )


JOBS = 8
"""Shards under way at once."""


def pull(location: Location, cache: Path, plan: PullPlan, jobs: int, advance: Advance) -> None:
    """Carry out a plan. Raises DamagedCacheError for files that do not arrive whole, a RunError if
    location or disk fail; received files stay, and the next pull continues."""
    for teacher in plan.teachers:
        _pull_teacher(location, cache, teacher, plan.fetched, jobs, advance)


def _pull_teacher(
    location: Location,
    cache: Path,
    plan: TeacherPlan,
    fetched: Mapping[str, Path],
    jobs: int,
    advance: Advance,
) -> None:
    teacher = LocalTeacher(cache, plan.origin)
    teacher.begin(location, plan.held, plan.features, plan.tables)
    with Arrivals(cache, plan.origin.manifest) as arrivals:

        def receive(shard: ShardPlan) -> None:
            arrivals.receive(location, shard.files, shard.record if shard.commit else None, fetched)
            advance(sum(file.record.bytes for file in shard.files))

        in_parallel(jobs, receive, plan.shards)
    teacher.finish(plan.features, plan.tables)
