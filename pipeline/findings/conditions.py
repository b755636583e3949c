"""Runs that differ in their seed only are one condition; conditions are compared with the same
student without a teacher."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import PurePath
from typing import Any

from ...cache_schemas.errors import one_line
from ..run_folder import spread
from .runs import FinishedRun

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
        return {run.seed: run.value for run in self.runs if run.value is not None}

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

    def figure(self, metric: str) -> dict[str, Any] | None:
        """Mean, standard deviation and single runs of any metric; None if no run has it."""
        values = [run.figure(metric) for run in self.runs]
        known = [value for value in values if value is not None]
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
    for key in differing:
        if key == "control" or key not in run.settings:
            continue
        value = run.settings[key]
        if key == "student":
            parts.append(PurePath(str(value)).name)
        elif key in ("teacher", "train", "validation"):
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


def improvements(condition: Condition, base: Condition) -> dict[int, float]:
    """Improvement over the undistilled run, for each seed that both have, in units of the metric,
    positive if better."""
    sign = condition.first.better_by
    return {
        seed: sign * (value - base.by_seed[seed])
        for seed, value in condition.by_seed.items()
        if seed in base.by_seed
    }
