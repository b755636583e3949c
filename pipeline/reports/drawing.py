"""Common parts of all plots: colours that everybody can distinguish, clouds of points at their main
components, coloured by class or by number, and how a figure becomes a PNG.

The colours are those of Okabe and Ito, which people with any common colour blindness can
distinguish; whatever has a colour of its own has a marker or a line of its own as well.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
OTHER = "#999999"

WIDTH = 4.8
"""Inches of a figure, whose text of 9 points can be read on a telephone."""
DPI = 200
SMALL, TEXT = 8, 9

NAMED = {
    "red": "#D55E00",
    "orange": "#E69F00",
    "yellow": "#F0E442",
    "green": "#009E73",
    "blue": "#0072B2",
    "purple": "#CC79A7",
    "black": "#000000",
}
"""Palette colours for classes named after colours."""

Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, the name of its file, and what it shows in one or two sentences."""

    name: str
    caption: str
    png: bytes


def colours_of(names: Sequence[str]) -> Sequence[str]:
    """A colour for each of at most seven names; that of its name, if all are names of colours."""
    if all(name in NAMED for name in names):
        return [NAMED[name] for name in names]
    return COLOURS[: len(names)]


def new_figure(width: float, height: float, dpi: int) -> "Figure":
    """An empty figure of so many inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file, the same bytes each time."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # Names of classes in a script that the font lacks are drawn as boxes.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def plain(name: object, longest: int = 24) -> str:
    """A name as plain text that fits into a legend: longer ones lose their middle, because names
    differ at their ends."""
    text = re.sub(r"\s+", " ", "".join(c for c in str(name) if c.isprintable()))
    if len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-(longest // 2) + 1 :]}"
    return text.replace("$", r"\$")


def label_panel(panel: "Axes", x: str, y: str) -> None:
    """Label a panel's axes, and leave out its upper and right frame."""
    panel.set_xlabel(plain(x, 60), fontsize=TEXT)
    panel.set_ylabel(plain(y, 60), fontsize=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)


def whole_numbers(panel: "Axes") -> None:
    """Let the x axis have ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


@dataclass(frozen=True, slots=True)
class Components:
    """Coordinates [N, 2] of N examples, and the share of the variance along each axis."""

    points: npt.NDArray[np.float64]
    shares: tuple[float, float]


def main_components(values: npt.NDArray[Any]) -> Components:
    """The first two principal components of N examples [N, ...]."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    flat -= flat.mean(axis=0)
    # The smaller of the two products has the same eigenvalues.
    wide = flat.shape[1] > flat.shape[0]
    eigenvalues, vectors = np.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    strength = np.maximum(eigenvalues[::-1][:2], 0)
    main = vectors[:, ::-1][:, :2]
    points = main * np.sqrt(strength) if wide else flat @ main
    # An axis may point either way: its largest number shall be positive.
    points *= np.where(points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])] < 0, -1, 1)
    missing = 2 - points.shape[1]
    total = max(float(np.maximum(eigenvalues, 0).sum()), np.finfo(float).tiny)
    first, second = [*(strength / total).tolist(), 0.0][:2]
    return Components(np.pad(points, ((0, 0), (0, missing))), (first, second))


def label_axes(panel: "Axes", components: Components) -> None:
    """Label the axes with their share of the variance."""
    panel.set_xlabel(f"component 1 ({components.shares[0]:.1%} of the variance)", fontsize=9)
    panel.set_ylabel(f"component 2 ({components.shares[1]:.1%})", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.locator_params(axis="x", nbins=5)  # small numbers have long labels


def draw_numbers(
    panel: "Axes", components: Components, labels: Labels, title: str, last: bool = True
) -> None:
    """Points [N] by numbers [N]; the last panel of a row has the scale."""
    x, y = components.points.T
    points = panel.scatter(x, y, c=labels, s=10, cmap="cividis", linewidths=0)
    if last:
        bar = panel.figure.colorbar(points, ax=panel, shrink=0.8)
        bar.set_label(plain(title), fontsize=9)
        bar.ax.tick_params(labelsize=8)


def draw_classes(
    panel: "Axes", components: Components, labels: Labels, title: str, last: bool = True
) -> None:
    """Points [N] by classes [N], the rarest of many as one; the last panel has the legend."""
    names, counts = np.unique(labels, return_counts=True)
    common = names[np.argsort(-counts, kind="stable")]
    most = len(COLOURS) if len(common) <= len(COLOURS) else len(COLOURS) - 1
    shown = sorted(common[:most])
    colours = colours_of([str(name) for name in shown])
    for name, colour, marker in zip(shown, colours, MARKERS, strict=False):
        points = components.points[labels == name]
        dots(panel, points, 14, colour, 0.7, marker, plain(name))
    if len(shown) < len(names):
        others = components.points[~np.isin(labels, shown)]
        dots(panel, others, 8, OTHER, 0.5, label=f"{len(names) - len(shown)} others", zorder=0)
    if last:
        panel.legend(
            title=plain(title),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            fontsize=8,
            title_fontsize=9,
            frameon=False,
        )


def dots(
    panel: "Axes",
    points: npt.NDArray[np.float64],
    size: float,
    colour: str,
    alpha: float,
    marker: str = "o",
    label: str | None = None,
    zorder: float = 1,
) -> None:
    """Points [N, 2] as dots of one kind."""
    panel.scatter(
        points[:, 0],
        points[:, 1],
        s=size,
        color=colour,
        alpha=alpha,
        marker=marker,
        label=label,
        zorder=zorder,
        linewidths=0,
    )
