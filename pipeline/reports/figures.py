"""Figures of a study: conditions compared, metric by epoch, loss terms, effects of weights.

Each is 4.8 inches wide with text of 9 points, so that it can be read on a telephone.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from ..findings.conditions import Condition
from ..findings.findings import Study
from ..findings.runs import FinishedRun
from ..messages import counted
from ..pictures.canvas import COLOURS, LINES, MARKERS, OTHER, new_figure, plain, png
from ..run_folder import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.8
DPI = 200
SMALL, TEXT = 8, 9
MAX_LINES = len(COLOURS)
MAX_TERMS = 12
_LOG_NOTES = frozenset({"step", "epoch", "grad_norm", "learning_rate"})
_HALF_A_LINE = 30
"""Characters of a legend."""
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
        _draw_condition(panel, place, condition)
        if not condition.first.distilled:
            panel.axvline(mean(condition.values), color=OTHER, linestyle="--", linewidth=1)
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


def _draw_condition(panel: "Axes", place: int, condition: Condition) -> None:
    colour = COLOURS[0] if condition.first.distilled else COLOURS[1]
    found = spread(condition.values)
    panel.errorbar(found["mean"], place, xerr=found["std"], fmt="o", color=colour, capsize=3)
    beside = [place + 2 * _SPREAD] * len(condition.values)
    panel.plot(condition.values, beside, linestyle="", marker="|", color="black")


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
    figure = new_figure(WIDTH, 3.1 + 0.2 * len(curves), DPI)
    panel = figure.subplots()
    styles = zip(COLOURS, LINES, MARKERS, strict=True)
    for (name, curve), (colour, line, marker) in zip(curves.items(), styles, strict=False):
        _draw_curve(panel, name, curve, colour, line, marker)
    _label(panel, "epoch", study.metric)
    _whole_numbers(panel)
    columns = 2 if max(map(len, curves)) <= _HALF_A_LINE else 1
    figure.legend(loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)
    left_out = len(study.conditions) - len(curves)
    caption = "Mean over seeds, and the range of all seeds."
    if left_out:
        caption += f" {counted(left_out, 'more condition')} in the table."
    return Picture("epochs", caption, png(figure))


_Curve = list[tuple[float, float, float, float]]


def _draw_curve(
    panel: "Axes", name: str, curve: _Curve, colour: str, line: Any, marker: str
) -> None:
    epochs, means, lows, highs = (np.array(column) for column in zip(*curve, strict=True))
    style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}
    panel.plot(epochs, means, **style, label=plain(name, 2 * _HALF_A_LINE))
    panel.fill_between(epochs, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _curve(condition: Condition, metric: str) -> _Curve:
    values: dict[float, list[float]] = defaultdict(list)
    for run in condition.runs:
        for row in run.metrics.epochs:
            if metric in row and math.isfinite(row[metric]):
                values[row.get("epoch", 0.0)].append(row[metric])
    return [(epoch, mean(v), min(v), max(v)) for epoch, v in sorted(values.items())]


def losses(condition: Condition) -> Picture | None:
    """Each loss term of a condition by step, one line a seed; None if nothing was logged."""
    logs = [_terms(run) for run in condition.runs]
    names = list(dict.fromkeys(name for log in logs for name in log))[:MAX_TERMS]
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure = new_figure(WIDTH, 0.5 + 1.75 * rows, DPI)
    panels = figure.subplots(rows, min(2, len(names)), squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw_term(panel, name, [log[name] for log in logs if name in log])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    seeds = ", ".join(str(run.seed) for run in condition.runs[:MAX_LINES])
    return Picture(
        "losses",
        f"Loss terms of the student “{condition.name}” in training; one line for each seed "
        f"({seeds}). Terms are as the method names them and not yet weighted; the total is.",
        png(figure),
    )


_Points = list[tuple[float, float]]


def _draw_term(panel: "Axes", name: str, logs: Sequence[_Points]) -> None:
    for log, colour, line in zip(logs, COLOURS, LINES, strict=False):
        panel.plot(*zip(*log, strict=True), color=colour, linestyle=line, linewidth=1)
    panel.set_title("total" if name == "loss" else plain(name), fontsize=TEXT)
    bottom, top = min(0, panel.get_ylim()[0]), panel.get_ylim()[1]
    panel.set_ylim(bottom, top + 0.08 * (top - bottom))  # a level line is not on the frame
    _label(panel, "step", "")
    _whole_numbers(panel)


def _terms(run: FinishedRun) -> Mapping[str, _Points]:
    terms: dict[str, _Points] = defaultdict(list)
    for row in run.log():
        if "train_runtime" in row:
            continue  # the trainer's summary
        for name, value in row.items():
            if name not in _LOG_NOTES and not name.startswith("eval_"):
                terms[name].append((row["step"], value))
    return terms


def weights(study: Study, factor: str) -> Picture | None:
    """Improvements by the value of one weight of the objective; None if it has one value only."""
    collected: dict[float, list[float]] = defaultdict(list)
    for row in study.sweep:
        collected[row.condition.first.weights[factor]] += row.improvement.values()
    groups = {value: gains for value, gains in collected.items() if gains}
    if len(groups) < 2:
        return None
    figure = new_figure(WIDTH, 3.0, DPI)
    panel = figure.subplots()
    panel.axhline(0, color=OTHER, linestyle="--", linewidth=1)
    _draw_boxes(panel, [groups[value] for value in sorted(groups)])
    panel.set_xticks(range(len(groups)), [f"{value:g}" for value in sorted(groups)])
    _label(panel, factor, f"gain in {study.metric}")
    return Picture(
        factor,
        f"Improvement of distilled runs over the undistilled student, by {factor}; the other "
        "weights as they came. Boxes: quartiles and median.",
        png(figure),
    )


def _draw_boxes(panel: "Axes", groups: Sequence[Sequence[float]]) -> None:
    """A box for each group of values, and the values beside each other on it."""
    median = {"color": COLOURS[1], "linewidth": 1.5}
    places = range(len(groups))
    panel.boxplot(groups, positions=places, widths=0.45, showfliers=False, medianprops=median)
    for place, values in zip(places, groups, strict=True):
        beside = np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else 0
        panel.plot(place + beside, values, "o", markersize=3.5, color=COLOURS[0])


def _label(panel: "Axes", x: str, y: str) -> None:
    panel.set_xlabel(plain(x, 60), fontsize=TEXT)
    panel.set_ylabel(plain(y, 60), fontsize=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)


def _whole_numbers(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
