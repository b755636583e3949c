"""Figures of a study: conditions compared, loss terms, effects of weights, where teacher and
students put the same texts, and how sure students are.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..findings.conditions import Condition
from ..findings.findings import Study
from ..findings.runs import FinishedRun
from ..run_folder import spread
from .drawing import (
    COLOURS,
    DPI,
    LINES,
    MARKERS,
    OTHER,
    SMALL,
    TEXT,
    WIDTH,
    Components,
    Picture,
    draw_classes,
    draw_numbers,
    label_axes,
    label_panel,
    main_components,
    new_figure,
    plain,
    png,
    whole_numbers,
)
from .job import Method
from .looks import Looks, Points, StudentLook

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TERMS = 12
MAX_CALIBRATED = 2
_LOG_NOTES = frozenset({"step", "epoch", "grad_norm", "learning_rate"})
_SPREAD = 0.12
"""Offset of single runs, so that they do not overlap."""


def comparison(study: Study) -> Picture:
    """Each condition's mean, standard deviation and single runs."""
    shown = [each for each in study.conditions if each.values]
    figure = new_figure(WIDTH, 0.9 + 0.3 * len(shown), DPI)
    panel = figure.subplots()
    for position, condition in enumerate(shown):
        _draw_condition(panel, position, condition)
        if condition is study.reference or not condition.first.distilled:
            panel.axvline(mean(condition.values), color=OTHER, linestyle="--", linewidth=1)
    panel.set_yticks(range(len(shown)), [plain(each.name, 40) for each in shown], fontsize=TEXT)
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    label_panel(panel, f"{study.metric} on the validation set", "")
    return Picture(
        "comparison",
        "Dots and bars: mean and standard deviation over seeds; strokes: single runs; dashed: "
        f"{study.reference.name if study.reference else 'the student without a teacher'}.",
        png(figure),
    )


def _draw_condition(panel: "Axes", position: int, condition: Condition) -> None:
    colour = COLOURS[0] if condition.first.distilled else COLOURS[1]
    found = spread(condition.values)
    panel.errorbar(found["mean"], position, xerr=found["std"], fmt="o", color=colour, capsize=3)
    beside = [position + 2 * _SPREAD] * len(condition.values)
    panel.plot(condition.values, beside, linestyle="", marker="|", color="black")


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
    seeds = ", ".join(str(run.seed) for run in condition.runs[: len(COLOURS)])
    return Picture(
        "losses",
        f"Training losses of the student “{condition.name}”; one line per seed ({seeds}). Terms "
        f"are unweighted, the total is weighted.",
        png(figure),
    )


_Points = list[tuple[float, float]]


def _draw_term(panel: "Axes", name: str, logs: Sequence[_Points]) -> None:
    for log, colour, line in zip(logs, COLOURS, LINES, strict=False):
        panel.plot(*zip(*log, strict=True), color=colour, linestyle=line, linewidth=1)
    panel.set_title("total" if name == "loss" else plain(name), fontsize=TEXT)
    bottom, top = min(0, panel.get_ylim()[0]), panel.get_ylim()[1]
    panel.set_ylim(bottom, top + 0.08 * (top - bottom))  # a level line is not on the frame
    label_panel(panel, "step", "")
    whole_numbers(panel)


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
    label_panel(panel, factor, f"gain in {study.metric}")
    return Picture(
        factor,
        f"Improvement of distilled runs over the undistilled student, by {factor}; the other "
        "weights vary. Boxes: quartiles and median.",
        png(figure),
    )


def _draw_boxes(panel: "Axes", groups: Sequence[Sequence[float]]) -> None:
    """A box for each group of values, and the values beside each other on it."""
    median = {"color": COLOURS[1], "linewidth": 1.5}
    positions = range(len(groups))
    panel.boxplot(groups, positions=positions, widths=0.45, showfliers=False, medianprops=median)
    for position, values in zip(positions, groups, strict=True):
        beside = np.linspace(-_SPREAD, _SPREAD, len(values)) if len(values) > 1 else 0
        panel.plot(position + beside, values, "o", markersize=3.5, color=COLOURS[0])


def manifolds(looks: Looks, method: Method) -> Iterator[Picture]:
    """The teacher's texts, those of the distilled student, those of the undistilled one; of
    students that embed, those of the first three."""
    embeds = looks.agreement == "neighbours"
    if looks.teacher is not None:
        title = "Teacher" if embeds else "Teacher, as the aligner sees it"
        yield _cloud("teacher", title, looks.teacher, looks, method)
    of_kind: Counter[str] = Counter()
    for student in looks.students[: 3 if embeds else 2]:
        name = plain(student.condition.name, 30)
        distilled = student.condition.first.distilled
        title = f"Student, projected: {name}" if distilled and not embeds else f"Student: {name}"
        kind = "student" if distilled else "undistilled"
        of_kind[kind] += 1
        again = f"-{of_kind[kind]}" if of_kind[kind] > 1 else ""
        yield _cloud(f"{kind}{again}", title, student.points, looks, method)


def _cloud(name: str, title: str, points: Points, looks: Looks, method: Method) -> Picture:
    figure = new_figure(WIDTH, 3.6, DPI)
    panel = figure.subplots()
    components = main_components(points) if method == "pca" else _tsne(points)
    draw = draw_numbers if looks.colours.dtype.kind == "f" else draw_classes
    draw(panel, components, looks.colours, looks.colours_title)
    panel.set_title(title, fontsize=TEXT + 1)
    if method == "pca":
        label_axes(panel, components)
    else:
        panel.set_xlabel("t-SNE 1 (no unit)", fontsize=TEXT)
        panel.set_ylabel("t-SNE 2 (no unit)", fontsize=TEXT)
        panel.tick_params(labelsize=SMALL)
    caption = f"{len(points)} training texts, coloured by {looks.colours_title or 'nothing'}."
    return Picture(f"manifold-{name}", caption, png(figure))


def _tsne(points: Points) -> Components:
    from sklearn.manifold import TSNE

    flat = points.reshape(len(points), -1).astype(np.float64)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(flat)
    coordinates: npt.NDArray[np.float64] = made.astype(np.float64)
    return Components(coordinates, (0.0, 0.0))


def reliability(looks: Looks) -> Picture | None:
    """Accuracy by confidence; None without classes to predict."""
    shown = [each for each in looks.students if each.calibration is not None][:MAX_CALIBRATED]
    if not shown:
        return None
    figure = new_figure(WIDTH, 3.9, DPI)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=OTHER, linestyle="--", linewidth=1, label="calibrated")
    for student, colour, line, marker in zip(shown, COLOURS, LINES, MARKERS, strict=False):
        _draw_reliability(panel, student, colour, line, marker)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_xlabel("confidence (softmax of the predicted class)", fontsize=TEXT)
    panel.set_ylabel("accuracy", fontsize=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    caption = (
        "Predictions on the validation set in 15 bins of confidence; larger marks hold more of "
        "them. ECE: mean distance from the diagonal."
    )
    return Picture("calibration", caption, png(figure))


def _draw_reliability(
    panel: "Axes", student: StudentLook, colour: str, line: Any, marker: str
) -> None:
    found = student.calibration
    assert found is not None
    label = f"{plain(student.condition.name)}: ECE {found.error:.2f}"
    panel.plot(found.confidence, found.accuracy, color=colour, linestyle=line, lw=1)
    sizes = 12 + 120 * found.counts / found.counts.sum()
    panel.scatter(
        found.confidence,
        found.accuracy,
        s=sizes,
        color=colour,
        marker=marker,
        label=label,
        clip_on=False,  # the best is in a corner
        zorder=3,
    )
