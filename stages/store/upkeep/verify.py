"""Is a cache what was committed? Every document, every file, every key; damage stops nothing.

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

import numpy as np

from ....cache_schemas.keys import first_occurrences
from ....cache_schemas.layout import commit_file
from .shard_checks import CommittedShard, ShardCheck
from .survey import CacheSurvey, Damage

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 4 * THREADS

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and what was found. `read_shards` were read in full, of the others only
    the sizes of their files; `leftovers` are files that no commit record names, `in_the_making`
    shards that writers have reserved."""

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
    """In order; a few are checked ahead of the one that is waited for."""
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
    """Position of a shard -> what is wrong with its keys."""
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
