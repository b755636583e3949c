"""Is a cache what was committed? Every document, every file, every key; damage stops nothing.

Each file is a plain file of the recorded size and hash. A feature's has a whole index (crc32c), all
rows, and only finite numbers. A table has as many rows as in the record; that of the keys can be
read.

Shards are checked a few at a time in threads: reading and hashing free the interpreter. Keys take
16 bytes each meanwhile, so that one that was committed twice is found.
"""

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ParamSpec

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import KeyArray, first_occurrences
from ....cache_schemas.layout import ROWS_TABLE, commit_file, shard_file, table_file
from ....cache_schemas.manifest import CommitRecord, FileRecord, PartRecord, TeacherManifest
from ..files.plain_files import FiniteNumbers, check_file, check_size
from ..format.manifests import held_features
from ..format.tables import check_table, read_keys, read_lengths
from ..format.zarr_shards import is_plain, opened
from ..reading.feature_array import FeatureArray
from .survey import CacheSurvey, Damage

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """Problems of a shard, one line per file; its keys [N, 16] if they could be read."""

    problems: tuple[str, ...]
    keys: KeyArray | None = None


@dataclass(frozen=True, slots=True)
class CommittedShard:
    """The files of one committed shard, as far as this cache holds them. `part` lists what was not
    pulled; `foreign` are features laid out by another tool."""

    cache: Path
    folder: Path
    manifest: TeacherManifest
    record: CommitRecord
    part: PartRecord | None = None
    foreign: tuple[str, ...] = ()

    def features(self) -> Iterator[tuple[FeatureSpec, Path, FileRecord]]:
        """Spec, file and record of each feature."""
        for spec in held_features(self.manifest, self.part):
            path = shard_file(self.folder, spec.name, self.record.shard, len(spec.shape))
            yield spec, path, self.record.features[spec.name]

    def tables(self) -> Iterator[tuple[Path, FileRecord]]:
        """File and record of each table."""
        missing = self.part.missing_tables if self.part else ()
        for name, record in self.record.tables.items():
            if name not in missing:
                yield table_file(self.folder, name, self.record.shard), record

    def files(self) -> list[tuple[Path, FileRecord]]:
        """Each file and its record."""
        return [*((path, record) for _, path, record in self.features()), *self.tables()]

    @property
    def bytes(self) -> int:
        """Bytes of all files, as recorded."""
        return sum(record.bytes for _, record in self.files())

    def check_sizes(self) -> ShardCheck:
        """Look at the size of each file; read none."""
        problems = []
        for path, record in self.files():
            problems += self._problem(check_size, path, self.cache, record)
        return ShardCheck(tuple(problems))

    def check(self) -> ShardCheck:
        """Read every file."""
        problems = []
        for spec, path, record in self.features():
            problems += self._problem(self._check_feature, spec, path, record)
        for path, record in self.tables():
            problems += self._problem(self._check_table, path, record)
        return ShardCheck(tuple(problems), None if problems else self._keys())

    def _problem(
        self, check: Callable[Arguments, object], *given: Arguments.args, **named: Arguments.kwargs
    ) -> list[str]:
        try:
            check(*given, **named)
        except DamagedCacheError as error:
            # Files are named from the teacher's folder on.
            return [str(error).removeprefix(f"{self.folder}/")]
        return []

    def _check_feature(self, spec: FeatureSpec, path: Path, record: FileRecord) -> None:
        rows, size = self.record.rows_of(spec), self.manifest.rows_per_shard
        numbers = None if spec.whole else FiniteNumbers(spec, rows)
        check_file(path, self.cache, record, numbers)
        if not self._is_plain(spec, path):
            # A Zarr library finds the rows, and whether all of them are there.
            FeatureArray(self.folder, spec, size, [(self.record.shard, rows)])[:]
        elif numbers is not None and not numbers.all_finite:
            raise DamagedCacheError(f"{path}: holds numbers that are not finite")

    def _is_plain(self, spec: FeatureSpec, path: Path) -> bool:
        """Independent of Zarr documents: the committed bytes decide."""
        try:
            with opened(path, self.cache) as file:
                rows = self.record.rows_of(spec)
                return is_plain(file, path, spec, rows, self.manifest.rows_per_shard)
        except DamagedCacheError:
            if spec.name in self.foreign:  # laid out by another tool, there may be no index
                return False
            raise

    def _check_table(self, path: Path, record: FileRecord) -> None:
        check_file(path, self.cache, record)
        check_table(path, self.record.rows)
        if path == table_file(self.folder, ROWS_TABLE, self.record.shard):
            self._keys()
            for axis, longest in self.manifest.spec.axes.items():
                read_lengths(path, self.record.rows, axis, self.record.lengths[axis], longest)

    def _keys(self) -> KeyArray:
        path = table_file(self.folder, ROWS_TABLE, self.record.shard)
        return read_keys(path, self.record.rows)


THREADS = min(4, os.cpu_count() or 1)
AHEAD = 4 * THREADS

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a verification. `read_shards` were read in full, of the others only file sizes were
    checked; `leftovers` are files that no commit record names, `in_the_making` shards that writers
    have reserved."""

    teachers: int
    shards: int
    read_shards: int
    rows: int
    files: int
    bytes: int
    read_bytes: int
    seconds: float
    digest: str | None
    leftovers: int
    in_the_making: int
    damages: tuple[Damage, ...]


def shards_of(survey: CacheSurvey, teacher: str | None = None) -> list[CommittedShard]:
    """The committed shards of teachers whose names begin with `teacher`, teacher by teacher."""
    return [
        CommittedShard(
            survey.path, chosen.folder, chosen.manifest, record, chosen.part, chosen.foreign
        )
        for chosen in survey.chosen(teacher)
        if chosen.manifest is not None
        for record in chosen.commits
    ]


def verify(
    survey: CacheSurvey,
    teacher: str | None = None,
    sample: int | None = None,
    seed: int | str | None = None,
    advance: Advance = lambda shards: None,
) -> Verification:
    """Check the shards of a cache, `sample` of them in full (all, if None), the others by size.

    Which ones is drawn with `seed`, by default the cache's digest. Raises CacheError if no
    teacher's name begins with `teacher`."""
    started = time.monotonic()
    chosen = survey.chosen(teacher)
    shards = shards_of(survey, teacher)
    read = _choose(len(shards), sample, survey.digest if seed is None else seed)
    checks = list(_check(shards, read, advance))
    return Verification(
        teachers=sum(one.manifest is not None for one in chosen),
        shards=len(shards),
        read_shards=len(read),
        rows=sum(shard.record.rows for shard in shards),
        files=sum(len(shard.files()) for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        read_bytes=sum(shards[number].bytes for number in read),
        seconds=time.monotonic() - started,
        digest=survey.digest,
        leftovers=sum(one.leftovers for one in chosen),
        in_the_making=sum(one.in_the_making for one in chosen),
        damages=(
            *survey.damages,
            *(damage for one in chosen for damage in one.damages),
            *_damages(shards, checks),
        ),
    )


def _choose(count: int, sample: int | None, seed: int | str | None) -> set[int]:
    if sample is None or sample >= count:
        return set(range(count))
    return set(random.Random(seed).sample(range(count), sample))


def _check(
    shards: Sequence[CommittedShard], read: set[int], advance: Advance
) -> Iterator[ShardCheck]:
    """Check shards in order, a few ahead."""
    running: deque[Future[ShardCheck]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
        try:
            for number, shard in enumerate(shards):
                running.append(pool.submit(shard.check if number in read else shard.check_sizes))
                if len(running) > AHEAD:
                    yield running.popleft().result()
                    advance(1)
            while running:
                yield running.popleft().result()
                advance(1)
        finally:
            for waiting in running:
                waiting.cancel()


def _damages(shards: Sequence[CommittedShard], checks: Sequence[ShardCheck]) -> Iterator[Damage]:
    """One for each damaged shard; of keys that were committed twice, the later shard is damaged."""
    both = zip(shards, checks, strict=True)
    for _, group in groupby(both, key=lambda pair: pair[0].folder):
        teacher = list(group)
        repeated = _repeated_keys(teacher)
        for position, (shard, check) in enumerate(teacher):
            problems = (*check.problems, *repeated.get(position, ()))
            if problems:
                number = shard.record.shard
                file = commit_file(shard.folder, number)
                yield Damage("shard", shard.folder.name, number, file, problems)


def _repeated_keys(teacher: list[tuple[CommittedShard, ShardCheck]]) -> dict[int, list[str]]:
    """Position of a shard -> problems of its keys."""
    parts = [(at, check.keys) for at, (_, check) in enumerate(teacher) if check.keys is not None]
    if not parts:
        return {}
    keys = np.concatenate([part for _, part in parts])
    again = np.setdiff1d(np.arange(len(keys)), first_occurrences(keys))
    ends = np.cumsum([len(part) for _, part in parts])
    part_of = np.searchsorted(ends, again, side="right")
    problems = {}
    for part in np.unique(part_of).tolist():
        rows = again[part_of == part]
        first = keys[rows[0]].tobytes().hex()
        problems[parts[part][0]] = [
            f"{len(rows)} keys are committed already, in this shard or one before (first: {first})"
        ]
    return problems
