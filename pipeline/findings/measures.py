"""Figures beside the metric of a study: how near students are to their teachers, how sure they are;
and how far the teachers of a run agree.

A measure by a teacher has the source's name before it where a run has several: `llm.agreement`. Two
conditions are compared by it only if both were measured by the same teacher's feature.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ...cache_schemas.errors import JobError
from ...stages.distill.measures import TEACHER_FACTS, is_teacher_measure
from .conditions import Condition, improvements
from .documents import TeacherConflicts
from .runs import FinishedRun
from .significance import holm, welch

CALIBRATION = "ece"
_NAME = re.compile(r"(?:[\w.-]{1,130}\.)?\w{1,60}", re.ASCII)
"""Name of a measure, maybe with that of a source: names come from files of other people."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A measure of a condition: mean, standard deviation and runs; the improvement over the
    undistilled runs, by seed, positive if better; Welch's p, corrected by Holm for all rows."""

    value: dict[str, Any] | None
    improvement: Mapping[int, float]
    p: float | None


@dataclass(frozen=True, slots=True)
class Conflicts:
    """How far the teachers of some conditions agree."""

    conditions: tuple[str, ...]
    figures: TeacherConflicts


def measures_of(
    found: Sequence[Condition], metric: str, chosen: Sequence[str] | None
) -> tuple[str, ...]:
    """The `chosen` measures that some run has; or, if there is no choice, the calibration error and
    measures by a teacher that all validated runs have; never the metric itself."""
    each = [names_of(run) for condition in found for run in condition.runs if names_of(run)]
    if not each:
        return ()
    if chosen is not None:
        some: set[str] = set().union(*each)
        return tuple(name for name in dict.fromkeys(chosen) if name in some and name != metric)
    shared = reduce(lambda names, others: [name for name in names if name in others], each)
    return tuple(
        name
        for name in shared
        if name != metric and (name == CALIBRATION or is_teacher_measure(name))
    )


def names_of(run: FinishedRun) -> list[str]:
    """Figures that a run has, in its order."""
    figures = run.metrics.validation or {}
    return [name for name in figures if _NAME.fullmatch(name) and run.figure(name) is not None]


def measure_names(run: FinishedRun) -> list[str]:
    """Measures by a teacher that a run has."""
    return [name for name in names_of(run) if is_teacher_measure(name)]


def require_measures(chosen: Sequence[str] | None, known: Iterable[str]) -> None:
    """Raise JobError for a chosen measure that no run has."""
    names = list(dict.fromkeys(known))
    for name in chosen or ():
        if name not in names:
            has = ", ".join(names) or "none, without a validation set"
            raise JobError(
                f"job key 'measures': {name!r} is no figure of these runs; they have {has}"
            )


def compared(
    name: str, found: Sequence[Condition], bases: Sequence[Condition | None]
) -> list[Compared]:
    """A measure of each condition, beside that of its undistilled runs."""
    pairs = [
        (each, base if base is not None and _by_the_same(name, each, base) else None)
        for each, base in zip(found, bases, strict=True)
    ]
    ps = holm([None if base is None else _p(name, each, base) for each, base in pairs])
    return [
        Compared(each.figure(name), improvements(each, base, name) if base else {}, p)
        for (each, base), p in zip(pairs, ps, strict=True)
    ]


def _p(name: str, condition: Condition, base: Condition) -> float | None:
    own, without = (list(each.figures_by_seed(name).values()) for each in (condition, base))
    return welch(own, without)


def _by_the_same(name: str, condition: Condition, base: Condition) -> bool:
    """Whether all runs of both were measured by one teacher's feature, or by none; a teacher's own
    figures say nothing of students."""
    if name.rpartition(".")[2] in TEACHER_FACTS:
        return False
    return len({measured_by(run, name) for run in (*condition.runs, *base.runs)}) == 1


def measured_by(run: FinishedRun, name: str) -> tuple[str | None, str | None] | None:
    """Fingerprint and feature of the teacher that a measure of a run is by; None for others."""
    if not is_teacher_measure(name):
        return None
    sources = run.provenance.measured
    source = sources.get(name.rpartition(".")[0]) or next(iter(sources.values()), None)
    return None if source is None else (source.teacher_fingerprint, source.feature)


def conflicts_of(found: Sequence[Condition]) -> tuple[Conflicts, ...]:
    """Conflicts between teachers, each once, with the names of the conditions that have them."""
    groups: list[tuple[TeacherConflicts, list[str]]] = []
    for condition in found:
        figures = condition.first.metrics.teacher_conflicts
        if figures is None or not (figures.pairs or figures.features):
            continue
        same = next((names for other, names in groups if other == figures), None)
        if same is None:
            groups.append((figures, [condition.name]))
        else:
            same.append(condition.name)
    return tuple(Conflicts(tuple(names), figures) for figures, names in groups)
