"""Runs that differ in their seed only are one condition; conditions are compared with the same
student without a teacher."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from statistics import mean
from typing import Any

from ...cache_schemas.errors import one_line
from ...stages.distill.objectives.base import ObjectiveSettings
from ..run_folder import spread
from .runs import FinishedRun

_OF_A_TEACHER = frozenset(
    {
        *(ObjectiveSettings.model_fields.keys() - {"dropout"}),
        *("objective", "control", "cache", "teacher", "feature"),
        *("schedule", "aligner_batch_size", "aligner_learning_rate"),
    }
)
"""Keys in which a distilled run may differ from the undistilled one that it is measured by."""

_ORDER = ("undistilled", "none", "shuffled", "random-aligner", "noise")


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
        """`none`, `undistilled`, ..., without a parameter."""
        return self.first.job.parsed_control.name if self.first.distilled else "undistilled"

    def figure(self, metric: str) -> dict[str, Any] | None:
        """Mean, standard deviation and single runs of any metric; None if a run has it not."""
        values = [run.figure(metric) for run in self.runs]
        known = [value for value in values if value is not None]
        return spread(known) if known and len(known) == len(values) else None


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
    places = sorted(range(len(found)), key=lambda i: (order[i], *usual[i]))
    return [found[i] for i in places]


def _usual(condition: Condition, others: Sequence[Condition]) -> tuple[int, int]:
    """The smaller, the more it is what all else starts from: how often settings of controls, and of
    all conditions, differ from its own."""
    own = condition.first.settings
    differing = [
        sum(own[key] != value for key, value in other.first.settings.items()) for other in others
    ]
    of_controls = [n for n, other in zip(differing, others, strict=True) if other.control != "none"]
    return sum(of_controls), sum(differing)


def _names(firsts: Sequence[FinishedRun]) -> list[str]:
    """Those that jobs give, or what sets a condition apart; never one for two conditions."""
    differing = _differing(firsts)
    names = [one_line(run.job.name or _told(run, differing)) for run in firsts]
    counts = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(names, counts, strict=True)]


def _differing(firsts: Sequence[FinishedRun]) -> list[str]:
    """Keys in which runs that read them differ."""
    everybody = [run.settings for run in firsts]
    taught = [run.settings for run in firsts if run.distilled]
    return [
        key
        for key in everybody[0]
        if len({str(each[key]) for each in (taught if key in _OF_A_TEACHER else everybody)}) > 1
    ]


def _told(run: FinishedRun, differing: Sequence[str]) -> str:
    control = run.job.control if run.distilled else "undistilled"
    parts = ["distilled" if control == "none" else control]
    for key in differing:
        if key in ("control", "cache") or (key in _OF_A_TEACHER and not run.distilled):
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
    wanted = _of_the_student(condition.first)
    for other in others:
        if not other.first.distilled and _of_the_student(other.first) == wanted:
            return other
    return None


def _of_the_student(run: FinishedRun) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in _OF_A_TEACHER}


def improvements(condition: Condition, base: Condition) -> list[float]:
    """By how much each run is better than the undistilled one of its seed, or than their mean where
    that seed is missing; in units of the metric, positive if better."""
    sign, average = condition.first.better_by, mean(base.values)
    return [
        sign * (value - base.by_seed.get(seed, average))
        for seed, value in condition.by_seed.items()
    ]
