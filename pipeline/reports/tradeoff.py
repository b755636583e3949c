"""Quality against size and against speed: what a student costs where it is used.

Size is the bytes of a student's weights; of two towers both count, and that of queries is timed.
Speed is measured here and now, on the texts of the plots, one student after the other: tokens
included, in batches of 64 of similar length, after a batch to warm up, the median of at least three
rounds (one, of a student that takes ten seconds for it). So all students of a page are compared on
one machine, whichever they were trained on; those of one form (the same modules, widths and longest
texts) are measured once.

A student is on the front if no other is at least as good and as small (or as fast), and better in
one of the two.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import ArmadaError
from ...stages.distill.export import tower_folders
from ...stages.distill.saved_student import SavedReader, load_student
from ..environment import choose_device, hardware
from ..findings.conditions import Condition
from ..findings.findings import Study
from ..findings.runs import better_by
from ..messages import counted, size
from ..run_folder import spread
from .drawing import (
    COLOURS,
    DPI,
    MARKERS,
    OTHER,
    SMALL,
    WIDTH,
    Picture,
    label_panel,
    new_figure,
    plain,
    png,
)
from .looks import Looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BATCH = 64
_LEAST_ROUNDS, _LEAST_SECONDS = 3, 0.2
_SLOW_SECONDS = 10.0
_WIDEST_TICKS = 5
_LEAST_RANGE = 6.0
"""The least ratio of an axis' ends, so that it has two ticks."""
_HALF_A_LINE = 30
"""Characters of a legend."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a student of a condition costs where it is used."""

    condition: Condition
    weights_bytes: int
    texts_per_second: float


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of the students of a study that can be loaded, and how they were measured.
    `teacher_value` is the teacher's own metric, where it is known."""

    students: tuple[Cost, ...]
    texts: int
    machine: str
    teacher_value: float | None

    def fronts(self, cost: Cost) -> str:
        """The fronts that a student is on: `size`, `speed`, both or none."""
        found = {"size": self.smallest, "speed": self.fastest}
        return ", ".join(name for name, front in found.items() if cost in front)

    @property
    def smallest(self) -> list[Cost]:
        """The front of quality and size, by size."""
        return self._front(lambda each: each.weights_bytes)

    @property
    def fastest(self) -> list[Cost]:
        """The front of quality and speed, the fastest first."""
        return self._front(lambda each: -each.texts_per_second)

    def _front(self, price: Callable[[Cost], float]) -> list[Cost]:
        """Students in the order of a price, each better than all that cost no more."""
        measured = (each for each in self.students if each.condition.values)
        by_price = sorted(measured, key=lambda each: (price(each), -quality(each)))
        front: list[Cost] = []
        for each in by_price:
            if not front or quality(each) > quality(front[-1]):
                front.append(each)
        return front


def quality(cost: Cost) -> float:
    """The mean of the metric over seeds, larger if better."""
    return better_by(cost.condition.first.metric) * mean(cost.condition.values)


def embed(student: SavedReader, texts: Sequence[tuple[str, ...]]) -> npt.NDArray[np.float32]:
    """What a student gives for texts [N, K]: for one that embeds, as queries."""
    return student.outputs(student.prompted(texts, "query"), _BATCH)[0]


def measure_costs(study: Study, looks: Looks, device: str) -> Costs:
    """Load a student of each condition that can be loaded, and let it read the texts."""
    found, rates = [], dict[tuple[str, ...], float]()
    for condition in study.conditions:
        try:
            towers = [load_student(each) for each in tower_folders(condition.first.folder)]
            student = towers[0]
            if not isinstance(student, SavedReader):
                continue
            form = _form(student)
            if form not in rates:
                rates[form] = _texts_per_second(student.to(choose_device(device)), looks.texts)
        except (ArmadaError, OSError):
            continue  # the plots of students name it
        found.append(Cost(condition, sum(each.weights_bytes for each in towers), rates[form]))
    return Costs(tuple(found), len(looks.texts), _machine(device), looks.teacher_value)


def _form(student: SavedReader) -> tuple[str, ...]:
    """What two students have in common that take the same time for a text."""
    prompts = student.card.embedding
    query = "" if prompts is None else prompts.query_prompt
    tokenizer = f"{type(student.tokenizer).__name__} {len(student.tokenizer)}"
    told = (student, student.weights_bytes, student.card.max_length, query, tokenizer)
    return tuple(map(str, told))


def _texts_per_second(student: SavedReader, texts: Sequence[tuple[str, ...]]) -> float:
    embed(student, texts[:_BATCH])
    seconds: list[float] = []
    while len(seconds) < _LEAST_ROUNDS or sum(seconds) < _LEAST_SECONDS:
        started = time.perf_counter()
        embed(student, texts)
        seconds.append(max(time.perf_counter() - started, 1e-9))
        if seconds[0] > _SLOW_SECONDS:
            break
    return len(texts) / median(seconds)


def _machine(device: str) -> str:
    found = hardware(str(choose_device(device)))
    if "gpu" in found:
        return found["gpu"]
    return f"{found['processor'] or found['system']}, {counted(int(found['threads']), 'thread')}"


def quality_by_cost(study: Study, costs: Costs) -> Picture | None:
    """Each condition's metric by size, and by speed; None for fewer than two."""
    shown = [each for each in costs.students if each.condition.values]
    if len(shown) < 2:
        return None
    fronts = (costs.smallest, costs.fastest)
    first = sorted(shown, key=lambda each: not any(each in front for front in fronts))
    named = first[: len(COLOURS)]
    figure = new_figure(WIDTH, 5.0 + 0.2 * len(named), DPI)
    panels = figure.subplots(2, 1)
    _draw(panels[0], first, fronts[0], [each.weights_bytes for each in first], "steps-post")
    _draw(panels[1], first, fronts[1], [each.texts_per_second for each in first], "steps-pre")
    for panel, x in zip(panels, ("bytes of the weights", "texts per second"), strict=True):
        if costs.teacher_value is not None:
            panel.axhline(costs.teacher_value, color=OTHER, linestyle="--", linewidth=1)
        less = "" if better_by(study.metric) > 0 else " (less is better)"
        label_panel(panel, x, f"{study.metric}{less}")
    _set_log_axis(panels[0], [each.weights_bytes for each in shown], (1,), 2, size)
    _set_log_axis(panels[1], [each.texts_per_second for each in shown], (1, 2, 5), 10, _rate)
    handles = _legend(named, len(shown) - len(named), costs.teacher_value is not None)
    longest = max(len(handle.get_label()) for handle in handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if longest <= _HALF_A_LINE else 1,
        fontsize=SMALL,
        frameon=False,
    )
    return Picture("quality-size-speed", _caption(costs), png(figure))


def _caption(costs: Costs) -> str:
    teacher = "" if costs.teacher_value is None else " Dashed: the teacher's own, of any size."
    return (
        "Quality against size, and against speed: means and standard deviations over seeds. "
        "Filled, and on the grey line: no other student is as good and as small (as fast). "
        f"Speed: of {counted(costs.texts, 'text')}, tokens included, on this machine "
        f"({costs.machine}), a median of rounds.{teacher}"
    )


def _draw(
    panel: "Axes", shown: Sequence[Cost], front: Sequence[Cost], xs: Sequence[float], steps: str
) -> None:
    """The students, those with a colour of their own first, over the front's line."""
    along = sorted((x, _mean(each)) for x, each in zip(xs, shown, strict=True) if each in front)
    panel.plot(*zip(*along, strict=True), color=OTHER, linewidth=1, drawstyle=steps, zorder=0)
    for number, (x, each) in enumerate(zip(xs, shown, strict=True)):
        style = _style(number)
        found = spread(each.condition.values)
        if each not in front:
            style |= {"markerfacecolor": "white"}
        spread_of_seeds = found["std"] if len(found["runs"]) > 1 else None
        panel.errorbar(x, found["mean"], yerr=spread_of_seeds, capsize=3, elinewidth=1, **style)


def _mean(cost: Cost) -> float:
    return mean(cost.condition.values)


def _style(number: int) -> dict[str, Any]:
    if number >= len(COLOURS):
        return {"color": OTHER, "marker": ".", "markersize": 5, "linestyle": ""}
    return {
        "color": COLOURS[number],
        "marker": MARKERS[number],
        "markersize": 6,
        "linestyle": "",
    }


def _legend(named: Sequence[Cost], others: int, teacher: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def line(label: str, **style: Any) -> Any:
        return Line2D([], [], label=label, **style)

    longest = 2 * _HALF_A_LINE
    lines = [line(plain(each.condition.name, longest), **_style(n)) for n, each in enumerate(named)]
    if others:
        lines.append(line(counted(others, "other"), **_style(len(COLOURS))))
    if teacher:
        lines.append(line("teacher", color=OTHER, linestyle="--"))
    return lines


def _set_log_axis(
    panel: "Axes", values: Sequence[float], mantissas: Sequence[int], base: int, name: Any
) -> None:
    """A logarithmic x axis around values, with up to five round ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values) / 1.3, max(values) * 1.3
    widened = max(1.0, _LEAST_RANGE / (high / low)) ** 0.5
    low, high = low / widened, high * widened
    powers = range(int(np.floor(np.log(low) / np.log(base))), int(np.log(high) / np.log(base)) + 1)
    ticks = [m * float(base) ** power for power in powers for m in mantissas]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) > _WIDEST_TICKS and len(mantissas) > 1:
        ticks = [float(base) ** power for power in powers if low <= float(base) ** power <= high]
    ticks = ticks[:: -(-len(ticks) // _WIDEST_TICKS)]
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: name(tick)))


def _rate(texts_per_second: float) -> str:
    return f"{texts_per_second:,.0f}" if texts_per_second >= 1 else f"{texts_per_second:g}"
