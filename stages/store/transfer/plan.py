"""What a pull would bring: worked out, and refused if need be, before anything is written."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ....cache_schemas.contents import CacheIndex, TeacherIndex
from ....cache_schemas.errors import CacheError, DamagedCacheError, StorageError
from ....cache_schemas.manifest import CommitRecord
from ..files.plain_files import check_file
from ..writing.teacher_folder import refuse_mirror
from .choice import Choice, chosen_teachers, wanted_parts, with_features
from .collisions import refuse_other
from .key_search import FoundKeys, find_keys
from .local_part import Held, read_held
from .one_pull import one_pull
from .place import Place
from .shard_files import ShardFile, shard_files


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Files of one shard that are to come; `commit` says whether its record comes too."""

    record: CommitRecord
    files: tuple[ShardFile, ...]
    commit: bool


@dataclass(frozen=True, slots=True)
class TeacherPlan:
    """What is to come of one teacher. `features` and `tables` are what all its shards will have;
    `held` is what was here when it was made; `there` counts shards that need nothing; `found`
    counts keys, if some were looked for."""

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
    """What is to come; `fetched` are tables by name that were needed to know it."""

    teachers: tuple[TeacherPlan, ...]
    fetched: Mapping[str, Path] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes to come."""
        return sum(teacher.bytes for teacher in self.teachers)


@contextmanager
def planned(
    place: Place,
    index: CacheIndex,
    cache: Path,
    choice: Choice,
    jobs: int,
    dry_run: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[PullPlan]:
    """Work out what of the cache at `place`, whose documents are `index`, is to come to `cache`.

    Until the block is left no other pull changes the cache, so that the plan can be carried out;
    unless it is a `dry_run`, which touches nothing. `waiting` is called if another is under way.
    Raises CacheError for what does not fit, StorageError if the disk is too small."""
    teachers = chosen_teachers(place.shown, index, choice.teachers)
    teachers = with_features(place, teachers, choice.features)
    with ExitStack() as stack:
        refuse_mirror(cache)
        if not dry_run:
            stack.enter_context(one_pull(cache, waiting))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        planner = _Planner(place, cache, choice, Path(folder), jobs)
        plans = tuple(planner.plan(teacher) for teacher in teachers)
        plan = PullPlan(plans, planner.fetched)
        _refuse_without_keys(place, plan, choice)
        _refuse_too_large(cache, plan.bytes)
        yield plan


@dataclass(frozen=True, slots=True)
class _Planner:
    place: Place
    cache: Path
    choice: Choice
    folder: Path
    jobs: int
    fetched: dict[str, Path] = field(default_factory=dict)

    def plan(self, origin: TeacherIndex) -> TeacherPlan:
        held = read_held(self.cache, origin.manifest, self.place)
        features, tables = wanted_parts(self.place, origin, held, self.choice.features)
        found = self._find(origin, held)
        chosen = found.shards if found else {record.shard for record in origin.commits}
        shards = []
        for record in origin.commits:
            here = held.records.get(record.shard)
            if here is not None:
                refuse_other(str(self.cache), here, self.place.shown, record, origin.manifest)
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
            self.place, origin, self.choice.keys, self.cache, held.records, self.folder, self.jobs
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
        """What every shard is to have must be there for every shard."""
        new = parts - held.features - held.tables
        orphans = held.records.keys() - {record.shard for record in origin.commits}
        if new and orphans:
            raise CacheError(
                f"cache {self.cache}: shard {min(orphans)} of teacher "
                f"{origin.manifest.fingerprint[:12]} is not at {self.place.shown}, so "
                f"{', '.join(sorted(new))} cannot be added; pull into another folder"
            )


def _refuse_without_keys(place: Place, plan: PullPlan, choice: Choice) -> None:
    if choice.keys is not None and not any(teacher.found for teacher in plan.teachers):
        raise CacheError(
            f"{place.shown}: holds none of the {len(choice.keys)} texts of the corpus; are these "
            "the text columns that the teacher was asked about?"
        )


def _refuse_too_large(cache: Path, needed: int) -> None:
    folder = cache.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"cache {cache}: {needed} bytes are to come, the disk has {free} free; "
            "pull fewer features or texts"
        )
