"""Figures of a study by epoch: its metric and other measures, and the distance to a teacher against
the distance to the truth.

Lines are means over seeds, shades the range of all seeds; at most as many conditions as there are
colours, each with a marker and a line of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..findings.conditions import Condition, Curve
from ..findings.findings import Study
from ..findings.hacking import TRUTH, Distances, by_measure, hacking_told
from ..messages import counted
from .drawing import (
    COLOURS,
    DPI,
    LINES,
    MARKERS,
    SMALL,
    WIDTH,
    Picture,
    label_panel,
    new_figure,
    plain,
    png,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = len(COLOURS)
MAX_TEACHERS = 4
"""Figures of distances, one for each teacher."""
MAX_MEASURES = 8
"""Figures of measures by epoch."""
_HALF_A_LINE = 30
"""Characters of a legend."""


def leading(conditions: Sequence[Condition]) -> list[Condition]:
    """At most as many as there are colours: one of each control first, then the others."""
    first_of = {each.control: each for each in reversed(conditions)}
    first = [each for each in conditions if first_of[each.control] is each]
    return (first + [each for each in conditions if each not in first])[:MAX_LINES]


def by_epoch(study: Study) -> Iterator[Picture]:
    """The metric, and measures beside it, after each epoch; none of those that no run was measured
    by twice. Distances to a teacher have figures of their own."""
    drawn = by_measure(leading(study.conditions))
    beside = [name for name in study.measures if name not in drawn]
    for name in (study.metric, *beside[:MAX_MEASURES]):
        picture = _by_epoch(study, name)
        if picture is not None:
            yield picture


def _by_epoch(study: Study, name: str) -> Picture | None:
    curves = {each.name: each.curve(name) for each in leading(study.conditions)}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    figure = new_figure(WIDTH, 3.1 + 0.2 * len(curves), DPI)
    panel = figure.subplots()
    for curve, style in zip(curves.values(), _styles(), strict=False):
        _draw_curve(panel, curve, style)
    label_panel(panel, "epoch", name)
    whole_numbers(panel)
    _legend(figure, list(curves))
    of = "" if name == study.metric else f"-{name}"
    title = f"{name} on the validation set after each epoch. {_OVER_SEEDS}"
    return Picture(f"epochs{of}", title + _left_out(study, len(curves)), png(figure))


_OVER_SEEDS = "Lines: mean over seeds; shades: the range of all seeds."


def teacher_and_truth(study: Study) -> Iterator[Picture]:
    """For each teacher, the distance to it above the distance to the truth, by epoch; where a
    condition begins to hack its teacher, both are marked."""
    found = by_measure(leading(study.conditions))
    for measure in list(found)[:MAX_TEACHERS]:
        yield _distances(study, measure, found[measure])


def _distances(study: Study, measure: str, found: Mapping[str, Distances]) -> Picture:
    figure = new_figure(WIDTH, 4.4 + 0.2 * len(found), DPI)
    near, far = figure.subplots(2, 1, sharex=True)
    for each, style in zip(found.values(), _styles(), strict=False):
        for panel, curve in ((near, each.teacher), (far, each.truth)):
            _draw_curve(panel, curve, style)
            if each.begins is not None:
                _mark(panel, curve, each.begins, style["color"])
    source = measure.rpartition(".")[0]
    label_panel(near, "", f"to teacher {source}" if source else "to the teacher")
    label_panel(far, "epoch", "to the truth")
    whole_numbers(far)
    _legend(figure, list(found))
    first = next(iter(found.values()))
    caption = (
        f"Above: distance to the teacher ({measure}: {first.about}); below: to the truth ({TRUTH} "
        f"on the validation set). {_OVER_SEEDS}{_left_out(study, len(found))} "
        f"{hacking_told(found) or 'No student here hacks its teacher.'}"
    )
    if any(each.begins is not None for each in found.values()):
        caption += " Rings and dotted lines: where that begins."
    return Picture(f"distances-{measure}", caption, png(figure))


def _mark(panel: "Axes", curve: Curve, epoch: float, colour: str) -> None:
    """A ring and a dotted line at an epoch of a curve."""
    height = next(each.mean for each in curve if each.epoch == epoch)
    panel.axvline(epoch, color=colour, linestyle=":", linewidth=1)
    panel.plot([epoch], [height], marker="o", markersize=11, fillstyle="none", color=colour)


def _left_out(study: Study, drawn: int) -> str:
    left_out = len(study.conditions) - drawn
    return f" {counted(left_out, 'more condition')} in the table." if left_out else ""


def _styles() -> Iterator[dict[str, Any]]:
    for colour, line, marker in zip(COLOURS, LINES, MARKERS, strict=True):
        yield {"color": colour, "linestyle": line, "marker": marker, "markersize": 4}


def _draw_curve(panel: "Axes", curve: Curve, style: Mapping[str, Any]) -> None:
    epochs, means, lows, highs = (np.array(column) for column in zip(*curve, strict=True))
    panel.plot(epochs, means, **style)
    panel.fill_between(epochs, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    shown = [plain(name, 2 * _HALF_A_LINE) for name in names]
    lines = [
        Line2D([], [], **style, label=name) for name, style in zip(shown, _styles(), strict=False)
    ]
    columns = 2 if max(map(len, names)) <= _HALF_A_LINE else 1
    figure.legend(
        handles=lines, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False
    )
