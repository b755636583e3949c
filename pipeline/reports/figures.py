"""Figures of a study: conditions compared, metric by epoch, loss terms, effects of weights.

Each is 4.8 inches wide with text of 9 points, so that it can be read on a telephone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..findings.conditions import Condition
from ..findings.findings import Study
from ..findings.runs import FinishedRun
from ..pictures.canvas import COLOURS, LINES, MARKERS, OTHER, new_figure, plain, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.8
DPI = 200
SMALL, TEXT = 8, 9
MAX_LINES = len(COLOURS)
_LOG_NOTES = frozenset({"step", "epoch", "grad_norm", "learning_rate"})
_SPREAD = 0.12
"""By how much single runs are moved aside so that they do not cover each other."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, the name of its file, and what it shows in one or two sentences."""

    name: str
    caption: str
    png: bytes


def comparison(study: Study) -> Picture:
    """Each condition's mean, standard deviation and single runs."""
    shown = [each for each in study.conditions if each.values]
    figure = new_figure(WIDTH, 0.9 + 0.3 * len(shown), DPI)
    panel = figure.subplots()
    for place, condition in enumerate(shown):
        colour = COLOURS[0] if condition.first.distilled else COLOURS[1]
        value = condition.figure(study.metric) or {"mean": mean(condition.values), "std": 0.0}
        panel.errorbar(
            value["mean"],
            place,
            xerr=value["std"],
            fmt="o",
            color=colour,
            markersize=6,
            capsize=3,
            elinewidth=1.5,
        )
        panel.plot(
            condition.values,
            [place + _SPREAD * 2] * len(condition.values),
            linestyle="",
            marker="|",
            markersize=6,
            color="black",
        )
    for row in study.rows:
        if not row.condition.first.distilled and row.condition.values:
            panel.axvline(mean(row.condition.values), color=OTHER, linestyle="--", linewidth=1)
    panel.set_yticks(range(len(shown)), [plain(each.name, 40) for each in shown], fontsize=TEXT)
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    _label(panel, f"{study.metric} on the validation set", "")
    return Picture(
        "comparison",
        "Dots and bars: mean and standard deviation over seeds; strokes: single runs; dashed: the "
        "student without a teacher.",
        png(figure),
    )


def leading(conditions: Sequence[Condition]) -> list[Condition]:
    """At most as many as there are colours: one of each control first, then the others."""
    first_of = {each.control: each for each in reversed(conditions)}
    first = [each for each in conditions if first_of[each.control] is each]
    return (first + [each for each in conditions if each not in first])[:MAX_LINES]


def by_epoch(study: Study) -> Picture | None:
    """The metric after each epoch; None if no run was validated twice."""
    curves = {each.name: _curve(each, study.metric) for each in leading(study.conditions)}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    figure = new_figure(WIDTH, 3.9, DPI)
    panel = figure.subplots()
    for (name, curve), colour, line, marker in zip(
        curves.items(), COLOURS, LINES, MARKERS, strict=False
    ):
        epochs, means, lows, highs = (np.array(column) for column in zip(*curve, strict=True))
        panel.plot(
            epochs, means, color=colour, linestyle=line, marker=marker, ms=4, label=plain(name, 34)
        )
        panel.fill_between(epochs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    _label(panel, "epoch", study.metric)
    _whole_numbers(panel)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    left_out = len(study.conditions) - len(curves)
    return Picture(
        "epochs",
        "Mean over seeds, and the range of all seeds."
        + (f" {left_out} more conditions are in the table." if left_out else ""),
        png(figure),
    )


def _curve(condition: Condition, metric: str) -> list[tuple[float, float, float, float]]:
    values: dict[float, list[float]] = defaultdict(list)
    for run in condition.runs:
        for row in run.metrics["epochs"]:
            if metric in row:
                values[row["epoch"]].append(row[metric])
    return [(epoch, mean(v), min(v), max(v)) for epoch, v in sorted(values.items())]


def losses(condition: Condition) -> Picture | None:
    """Each loss term of a condition by step, one line a seed; None if nothing was logged."""
    logs = [_terms(run) for run in condition.runs]
    names = list(dict.fromkeys(name for log in logs for name in log))
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure = new_figure(WIDTH, 0.5 + 1.75 * rows, DPI)
    panels = figure.subplots(rows, min(2, len(names)), squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        for log, colour, line in zip(logs, COLOURS, LINES, strict=False):
            if name in log:
                panel.plot(*zip(*log[name], strict=True), color=colour, ls=line, lw=1)
        panel.set_title("total" if name == "loss" else name, fontsize=TEXT)
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        _label(panel, "step", "")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    seeds = ", ".join(str(run.seed) for run in condition.runs[:MAX_LINES])
    return Picture(
        "losses",
        f"Loss terms of the student “{condition.name}” in training; one line for each seed "
        f"({seeds}). Terms are as the method names them and not yet weighted; the total is.",
        png(figure),
    )


def _terms(run: FinishedRun) -> Mapping[str, list[tuple[float, float]]]:
    terms: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in run.log():
        if "train_runtime" in row:
            continue  # the trainer's summary
        for name, value in row.items():
            if name not in _LOG_NOTES and not name.startswith("eval_"):
                terms[name].append((row["step"], value))
    return terms


def weights(study: Study, factor: str) -> Picture | None:
    """Improvements by the value of one weight of the objective; None if it has one value only."""
    groups: dict[float, list[float]] = defaultdict(list)
    for row in study.sweep:
        if row.improvement:
            groups[row.condition.first.settings[factor]] += row.improvement
    if len(groups) < 2:
        return None
    values = sorted(groups)
    figure = new_figure(WIDTH, 3.0, DPI)
    panel = figure.subplots()
    panel.axhline(0, color=OTHER, linestyle="--", linewidth=1)
    panel.boxplot(
        [groups[value] for value in values],
        positions=range(len(values)),
        widths=0.45,
        showfliers=False,
        medianprops={"color": COLOURS[1], "linewidth": 1.5},
    )
    for place, value in enumerate(values):
        panel.plot(_beside(place, groups[value]), groups[value], "o", ms=3.5, color=COLOURS[0])
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    _label(panel, factor, f"gain in {study.metric}")
    return Picture(
        factor,
        f"Improvement of distilled runs over the undistilled student, by {factor}; the other "
        "weights as they came. Boxes: quartiles and median.",
        png(figure),
    )


def _beside(place: int, values: Sequence[float]) -> Any:
    shifts = np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else np.zeros(1)
    return place + shifts


def _label(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(x, fontsize=TEXT)
    panel.set_ylabel(y, fontsize=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)


def _whole_numbers(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
