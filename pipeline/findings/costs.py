"""What a teacher cost, once, and what the same runs would have cost without a cache."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache_schemas.errors import ArmadaError
from ..caches.report import TeacherSummary, summarise
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


def teacher_costs(runs: Sequence[FinishedRun]) -> list[TeacherCost]:
    """Of every teacher whose cache is still where the runs found it."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        if run.distilled and run.provenance.get("teacher_fingerprint"):
            groups[run.provenance["teacher_fingerprint"]].append(run)
    found = ((fingerprint, _summary(group[0]), group) for fingerprint, group in groups.items())
    return [_cost(summary, group) for _, summary, group in found if summary is not None]


def _cost(teacher: TeacherSummary, runs: Sequence[FinishedRun]) -> TeacherCost:
    a_text = teacher.teacher_seconds / max(teacher.rows, 1)
    texts = sum(min(run.metrics["train_examples"], teacher.rows) for run in runs)
    return TeacherCost(
        fingerprint=teacher.fingerprint,
        teacher=f"{teacher.kind}:{Path(teacher.name).name}",
        runs=len(runs),
        rows=teacher.rows,
        bytes=teacher.bytes,
        seconds=teacher.teacher_seconds,
        seconds_without=a_text * texts,
        training_seconds=sum(run.metrics["train_seconds"] for run in runs),
    )


def _summary(run: FinishedRun) -> TeacherSummary | None:
    try:
        teachers = summarise(str(run.job.cache))
    except (ArmadaError, OSError):
        return None
    wanted = run.provenance["teacher_fingerprint"]
    return next((teacher for teacher in teachers if teacher.fingerprint == wanted), None)
