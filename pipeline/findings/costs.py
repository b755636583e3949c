"""What a teacher cost, once, and what the same runs would have cost without a cache."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache_schemas.errors import ArmadaError, CacheError
from ..caches.summary import TeacherSummary, summarise
from .runs import FinishedRun


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """One teacher of some runs. `seconds` were spent on all `rows` of its cache; without a cache,
    every run would have asked about its own texts: `seconds_without` in all."""

    fingerprint: str
    teacher: str
    runs: int
    rows: int
    bytes: int
    seconds: float
    seconds_without: float
    training_seconds: float

    @property
    def seconds_saved(self) -> float:
        """By asking once; not below zero for a cache that holds more than the runs read."""
        return max(0.0, self.seconds_without - self.seconds)


def teacher_costs(
    runs: Sequence[FinishedRun], cache: Path | None, from_afar: bool
) -> tuple[list[TeacherCost], list[str]]:
    """Of every teacher whose cache is there, and what is said of the caches that are not.

    `cache` takes the place of the one that the runs name; one at a URL is opened only if
    `from_afar`."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        for fingerprint in run.provenance.fingerprints if run.distilled else ():
            groups[fingerprint].append(run)
    costs, missing = [], []
    for fingerprint, group in groups.items():
        try:
            costs.append(_cost(_summary(fingerprint, group[0], cache, from_afar), group))
        except (ArmadaError, OSError) as error:
            missing.append(f"teacher {fingerprint[:12]}: its cost is not known: {error}")
    return costs, missing


def _cost(teacher: TeacherSummary, runs: Sequence[FinishedRun]) -> TeacherCost:
    a_text = teacher.teacher_seconds / max(teacher.rows, 1)
    texts = sum(min(run.metrics.train_examples, teacher.rows) for run in runs)
    return TeacherCost(
        fingerprint=teacher.fingerprint,
        teacher=f"{teacher.kind}:{Path(teacher.name).name}",
        runs=len(runs),
        rows=teacher.rows,
        bytes=teacher.bytes,
        seconds=teacher.teacher_seconds,
        seconds_without=a_text * texts,
        training_seconds=sum(run.metrics.train_seconds for run in runs),
    )


def _summary(
    fingerprint: str, run: FinishedRun, cache: Path | None, from_afar: bool
) -> TeacherSummary:
    places = {str(keys.cache) for keys in run.readable_job(cache, from_afar).all_teachers.values()}
    for place in sorted(places):
        for teacher in summarise(place):
            if teacher.fingerprint == fingerprint:
                return teacher
    raise CacheError(f"cache {', '.join(sorted(places))}: does not hold it")
