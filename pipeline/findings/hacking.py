"""Distance to the teacher against distance to the truth, by epoch.

A student may come nearer to its teacher while it goes away from the truth: teacher hacking, arXiv
2502.02671. The distance to the truth is the loss of the task on validation texts with labels, or of
the tokens of the corpus; that to the teacher is a measure by its cached outputs for them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...stages.distill.measures import hacking_begins
from ..messages import counted
from .conditions import Condition, Curve, Epoch
from .measures import measure_names
from .runs import FinishedRun

TRUTH = "loss"

DISTANCES: Mapping[str, str] = {
    "teacher_kl": "KL to the teacher in nats",
    "teacher_rmse": "root mean squared error to the teacher",
    "teacher_mse": "mean squared error to the teacher's feature",
    "teacher_cosine": "1 - cosine with the teacher's feature",
    "teacher_cka": "1 - CKA with the teacher's feature",
}
"""Measures that are a distance to a teacher, or 1 less one; the first that a source has counts."""

_NEARNESS = ("teacher_cosine", "teacher_cka")


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances of a condition by epoch: mean over seeds, least and largest. `begins` is the epoch
    after which the means go nearer to the teacher and away from the truth; `by_seed` the same of
    each run; None if they do not, or under a control, where nothing is learned of this teacher."""

    measure: str
    teacher: Curve
    truth: Curve
    begins: float | None
    by_seed: Mapping[int, float | None]

    @property
    def about(self) -> str:
        """The distance to the teacher and its unit, in words."""
        return DISTANCES[self.measure.rpartition(".")[2]]

    @property
    def seeds(self) -> int:
        """Number of runs that hack their teacher."""
        return sum(begins is not None for begins in self.by_seed.values())

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "truth": TRUTH,
            "begins": self.begins,
            "seeds": {str(seed): begins for seed, begins in self.by_seed.items()},
        }


def distances(condition: Condition) -> Iterator[Distances]:
    """Distances to each teacher that a condition was measured by after at least two epochs; none
    without labels or tokens to measure the truth by, as of students that embed."""
    job = condition.first.job
    if job.task == "embedding" or not (job.label_columns or job.of_tokens):
        return
    for measure in _measures(condition.first):
        teacher, truth = (condition.curve(name) for name in (measure, TRUTH))
        both = {each.epoch for each in teacher} & {each.epoch for each in truth}
        teacher, truth = ([e for e in curve if e.epoch in both] for curve in (teacher, truth))
        if len(both) < 2:
            continue
        teacher = _away(measure, teacher)
        learns = condition.control == "none"
        yield Distances(
            measure=measure,
            teacher=teacher,
            truth=truth,
            begins=_begins(teacher, truth) if learns else None,
            by_seed={r.seed: _begins_in(r, measure) if learns else None for r in condition.runs},
        )


def hacking_told(found: Mapping[str, Distances]) -> str | None:
    """One sentence about conditions by name, all by one measure; None if none hacks its teacher."""
    parts = []
    for name, each in found.items():
        runs = f"{each.seeds} of {counted(len(each.by_seed), 'run')}"
        if each.begins is not None:
            parts.append(f"{name} after epoch {each.begins:g} ({runs})")
        elif each.seeds:
            parts.append(f"{name} not by the mean, but in {runs}")
    if not parts:
        return None
    measure = next(iter(found.values())).measure
    return (
        f"Teacher hacking by {measure}: from some epoch to the last, students come nearer to the "
        f"teacher and go away from the truth ({TRUTH}): {'; '.join(parts)}."
    )


def by_measure(found: Sequence[Condition]) -> dict[str, dict[str, Distances]]:
    """Distances of conditions, by measure and name of the condition."""
    distances_of: dict[str, dict[str, Distances]] = defaultdict(dict)
    for condition in found:
        for each in distances(condition):
            distances_of[each.measure][condition.name] = each
    return distances_of


def _measures(run: FinishedRun) -> Iterator[str]:
    """One distance for each source."""
    names = measure_names(run)
    for source in dict.fromkeys(name.rpartition(".")[0] for name in names):
        first = f"{source}." if source else ""
        found = next((f"{first}{each}" for each in DISTANCES if f"{first}{each}" in names), None)
        if found is not None:
            yield found


def _away(measure: str, curve: Curve) -> Curve:
    if measure.rpartition(".")[2] not in _NEARNESS:
        return curve
    return [Epoch(e.epoch, 1 - e.mean, 1 - e.largest, 1 - e.least) for e in curve]


def _begins(teacher: Sequence[Epoch], truth: Sequence[Epoch]) -> float | None:
    found = hacking_begins([each.mean for each in teacher], [each.mean for each in truth])
    return None if found is None else truth[found].epoch


def _begins_in(run: FinishedRun, measure: str) -> float | None:
    alone = Condition("", (run,))
    teacher = {each.epoch: each for each in _away(measure, alone.curve(measure))}
    both = [(teacher[each.epoch], each) for each in alone.curve(TRUTH) if each.epoch in teacher]
    return _begins([near for near, _ in both], [far for _, far in both])
