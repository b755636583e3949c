"""Runs that differ in their seed only are one condition; conditions are compared with the same
student without a teacher."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import PurePath
from statistics import mean
from typing import Any, NamedTuple

from ...cache_schemas.errors import one_line
from ..run_folder import spread
from .runs import FinishedRun, better_by

_ORDER = (
    "undistilled",
    "none",
    "shuffled",
    "random-aligner",
    "permuted-classes",
    "class-means",
    "smoothed",
    "noise",
)


class Epoch(NamedTuple):
    """A metric after an epoch: its mean over runs, its least and its largest value."""

    epoch: float
    mean: float
    least: float
    largest: float


Curve = list[Epoch]


@dataclass(frozen=True)
class Condition:
    """Some runs, one for each seed, and what they are called."""

    name: str
    runs: tuple[FinishedRun, ...]

    @property
    def first(self) -> FinishedRun:
        """Any of them, for what they have in common."""
        return self.runs[0]

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """The metric of each run that has one."""
        return self.figures_by_seed(self.first.metric)

    def figures_by_seed(self, metric: str) -> dict[int, float]:
        """Any metric of each run that has it."""
        figures = {run.seed: run.figure(metric) for run in self.runs}
        return {seed: value for seed, value in figures.items() if value is not None}

    @property
    def values(self) -> list[float]:
        """The metric of each run."""
        return list(self.by_seed.values())

    @property
    def control(self) -> str:
        """`none`, `undistilled`, ..., without a parameter; the first that there is of several
        teachers."""
        if not self.first.distilled:
            return "undistilled"
        controls = [keys.parsed_control.name for keys in self.first.job.all_teachers.values()]
        return next((name for name in controls if name != "none"), "none")

    def curve(self, metric: str) -> Curve:
        """Any metric after each epoch that some run measured it after, over its runs."""
        values: dict[float, list[float]] = defaultdict(list)
        for run in self.runs:
            for row in run.metrics.epochs:
                if metric in row and math.isfinite(row[metric]):
                    values[row.get("epoch", 0.0)].append(row[metric])
        return [Epoch(epoch, mean(v), min(v), max(v)) for epoch, v in sorted(values.items())]

    def figure(self, metric: str) -> dict[str, Any] | None:
        """Mean, standard deviation and single runs of any metric; None if no run has it."""
        known = list(self.figures_by_seed(metric).values())
        return spread(known) if known else None


def conditions(runs: Sequence[FinishedRun]) -> list[Condition]:
    """Runs grouped by everything but their seed: undistilled ones first, then distilled ones, the
    most usual of them first, then controls; else in the order they came."""
    groups: dict[str, list[FinishedRun]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.settings, sort_keys=True)].append(run)
    named = _names([group[0] for group in groups.values()])
    found = [
        Condition(name, tuple(sorted(group, key=lambda run: run.seed)))
        for name, group in zip(named, groups.values(), strict=True)
    ]
    order = [_ORDER.index(condition.control) for condition in found]
    usual = [_usual(condition, found) for condition in found]
    indices = sorted(range(len(found)), key=lambda i: (order[i], *usual[i]))
    return [found[i] for i in indices]


def _usual(condition: Condition, others: Sequence[Condition]) -> tuple[int, int]:
    """The smaller, the more it is what all else starts from: how often settings of controls, and of
    all conditions, differ from its own."""
    own = condition.first.settings
    differing = [
        sum(own.get(key, value) != value for key, value in other.first.settings.items())
        for other in others
    ]
    of_controls = [n for n, other in zip(differing, others, strict=True) if other.control != "none"]
    return sum(of_controls), sum(differing)


def _names(firsts: Sequence[FinishedRun]) -> list[str]:
    """Distinct names: those of the jobs, or the settings that differ."""
    differing = _differing(firsts)
    names: list[str] = []
    for run in firsts:
        name = one_line(run.job.name or _told(run, differing))
        again = (f"{name} ({number})" for number in count(2))
        names.append(name if name not in names else next(n for n in again if n not in names))
    return names


def _differing(firsts: Sequence[FinishedRun]) -> list[str]:
    """Keys in which runs that read them differ."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in firsts:
        for key, value in run.settings.items():
            values[key].add(str(value))
    return [key for key, found in values.items() if len(found) > 1]


def _told(run: FinishedRun, differing: Sequence[str]) -> str:
    control = run.job.control if run.distilled else "undistilled"
    parts = ["distilled" if control == "none" else control]
    chosen_apart = any(key.partition(".")[0] == "select" for key in differing)
    for key in differing:
        if key == "control" or key not in run.settings or (key == "selected" and chosen_apart):
            continue
        value = run.job.objective_name if key == "objective" else run.settings[key]
        if value is None:
            continue  # told by those that set it
        if key == "student":
            parts.append(PurePath(str(value)).name)
        elif key in ("teacher", "train", "validation", "weights"):
            parts.append(f"{key} {str(value)[:8]}")
        else:
            parts.append(f"{key}={value}")
    return ", ".join(parts)


def baseline(condition: Condition, others: Sequence[Condition]) -> Condition | None:
    """The undistilled runs of the same student on the same data, trained alike; None if there are
    none."""
    if not condition.first.distilled:
        return None
    own = condition.first.settings
    for other in others:
        wanted = other.first.settings
        if not other.first.distilled and {key: own.get(key) for key in wanted} == wanted:
            return other
    return None


def reference(found: Sequence[Condition]) -> Condition | None:
    """The condition that all others are compared with where there is no student without a teacher:
    of students that embed, the most usual one without a control."""
    usual = next((each for each in found if each.control == "none"), None)
    return usual if usual is not None and usual.first.job.task == "embedding" else None


def improvements(
    condition: Condition, base: Condition, metric: str | None = None
) -> dict[int, float]:
    """Improvement over the undistilled run, for each seed that both have, in units of the metric,
    default that of the runs; positive if better."""
    metric = metric or condition.first.metric
    sign, without = better_by(metric), base.figures_by_seed(metric)
    return {
        seed: sign * (value - without[seed])
        for seed, value in condition.figures_by_seed(metric).items()
        if seed in without
    }
