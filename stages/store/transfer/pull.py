"""Bring shards from a place into a local cache: only what is missing, each file verified.

A pull that was cut goes on where it was: shards that are committed are here, the rest is not. A
cache that holds a part of a teacher says so in `part.json`, and a later pull fills it up. Commit
records are copied as they are, so what is wholly here has the digest it has there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from .arrivals import Arrivals
from .local_part import LocalTeacher
from .parallel import in_parallel
from .place import Place
from .plan import PullPlan, ShardPlan, TeacherPlan

JOBS = 8
"""Shards under way at once."""

Advance = Callable[[int], None]
"""Called from several threads with the bytes of each shard that came."""


def pull(place: Place, cache: Path, plan: PullPlan, jobs: int, advance: Advance) -> None:
    """Do what a plan says. Raises DamagedCacheError for files that do not arrive whole, a RunError
    if place or disk fail; what has arrived stays, and the next pull goes on from there."""
    for teacher in plan.teachers:
        _pull_teacher(place, cache, teacher, plan.fetched, jobs, advance)


def _pull_teacher(
    place: Place,
    cache: Path,
    plan: TeacherPlan,
    fetched: Mapping[str, Path],
    jobs: int,
    advance: Advance,
) -> None:
    teacher = LocalTeacher(cache, plan.origin)
    teacher.begin(place, plan.held, plan.features, plan.tables)
    with Arrivals(cache, plan.origin.manifest) as arrivals:

        def receive(shard: ShardPlan) -> None:
            arrivals.receive(place, shard.files, shard.record if shard.commit else None, fetched)
            advance(sum(file.record.bytes for file in shard.files))

        in_parallel(jobs, receive, plan.shards)
    teacher.finish(plan.features, plan.tables)
