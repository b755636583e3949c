"""One small picture of a teacher's features: their two main components, coloured by label.

Rows: at most 2,000, drawn with a fixed seed. Colours are those of Okabe and Ito, which people with
any common colour blindness can tell apart; each class has a marker of its own as well.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...stages.store.format.index import Rows
from ...stages.store.reading.feature_array import FeatureArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 2_000
MAX_VALUES = 2**24
"""128 MiB as float64."""
MAX_PANELS = 3
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
OTHER = "#999999"

Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Colouring:
    """What is known of some rows: numbers to be read off a scale, or names of classes."""

    rows: Rows
    labels: Labels
    title: str


@dataclass(frozen=True, slots=True)
class Components:
    """Places [N, 2] of N examples, and the share of the variance along each axis."""

    places: npt.NDArray[np.float64]
    shares: tuple[float, float]


def choose_rows(count: int, width: int) -> Rows:
    """At most 2,000 of `count` rows, fewer if they are wide; sorted, the same each time."""
    most = min(MAX_ROWS, max(MAX_VALUES // width, 100))
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False)).astype(np.int64)


def main_components(values: npt.NDArray[Any]) -> Components:
    """The first two principal components of N examples [N, ...]."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    flat -= flat.mean(axis=0)
    # The smaller of the two products has the same eigenvalues.
    wide = flat.shape[1] > flat.shape[0]
    eigenvalues, vectors = np.linalg.eigh(flat @ flat.T if wide else flat.T @ flat)
    strength = np.maximum(eigenvalues[::-1][:2], 0)
    main = vectors[:, ::-1][:, :2]
    places = main * np.sqrt(strength) if wide else flat @ main
    # An axis may point either way: its largest number shall be positive.
    places *= np.where(places[np.abs(places).argmax(axis=0), np.arange(places.shape[1])] < 0, -1, 1)
    missing = 2 - places.shape[1]
    total = max(float(np.maximum(eigenvalues, 0).sum()), np.finfo(float).tiny)
    first, second = [*(strength / total).tolist(), 0.0][:2]
    return Components(np.pad(places, ((0, 0), (0, missing))), (first, second))


def draw(features: Sequence[FeatureArray], colouring: Colouring | None) -> bytes:
    """A PNG with one panel for each of the first features; all of them have the same rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = features[:MAX_PANELS]
    figure = Figure(figsize=(4.4 * len(shown) + (1.6 if colouring else 0), 4.2), dpi=110)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, feature in zip(panels, shown, strict=True):
        _draw_panel(panel, feature, colouring, last=panel is panels[-1])
    buffer = BytesIO()
    with warnings.catch_warnings():
        # Names of classes in a script that the font lacks are drawn as boxes.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(
    panel: "Axes", feature: FeatureArray, colouring: Colouring | None, last: bool
) -> None:
    known = np.arange(len(feature)) if colouring is None else colouring.rows
    chosen = choose_rows(len(known), feature.spec.values_per_example)
    components = main_components(feature.gather(known[chosen]))
    if colouring is None:
        _dots(panel, components.places, 8, COLOURS[0], alpha=0.6)
    elif colouring.labels.dtype.kind == "f":
        _draw_numbers(panel, components, colouring.labels[chosen], colouring.title, last)
    else:
        _draw_classes(panel, components, colouring.labels[chosen], colouring.title, last)
    shape = " x ".join(map(str, feature.spec.shape)) or "one number"
    panel.set_title(f"{feature.spec.name} ({shape}), {len(chosen)} rows", fontsize=10)
    panel.set_xlabel(f"component 1 ({components.shares[0]:.1%} of the variance)", fontsize=9)
    panel.set_ylabel(f"component 2 ({components.shares[1]:.1%})", fontsize=9)
    panel.tick_params(labelsize=8)


def _draw_numbers(
    panel: "Axes", components: Components, labels: Labels, title: str, last: bool
) -> None:
    x, y = components.places.T
    points = panel.scatter(x, y, c=labels, s=10, cmap="cividis", linewidths=0)
    if last:
        bar = panel.figure.colorbar(points, ax=panel, shrink=0.8)
        bar.set_label(_plain(title), fontsize=9)
        bar.ax.tick_params(labelsize=8)


def _draw_classes(
    panel: "Axes", components: Components, labels: Labels, title: str, last: bool
) -> None:
    names, counts = np.unique(labels, return_counts=True)
    common = names[np.argsort(-counts, kind="stable")]
    shown = sorted(common if len(common) <= len(COLOURS) else common[: len(COLOURS) - 1])
    for name, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
        places = components.places[labels == name]
        _dots(panel, places, 14, colour, 0.7, marker, _plain(name))
    if len(shown) < len(names):
        others = components.places[~np.isin(labels, shown)]
        _dots(panel, others, 8, OTHER, 0.5, label=f"{len(names) - len(shown)} others", zorder=0)
    if last:
        panel.legend(
            title=_plain(title),
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            fontsize=8,
            title_fontsize=9,
            frameon=False,
        )


def _dots(
    panel: "Axes",
    places: npt.NDArray[np.float64],
    size: float,
    colour: str,
    alpha: float,
    marker: str = "o",
    label: str | None = None,
    zorder: float = 1,
) -> None:
    panel.scatter(
        places[:, 0],
        places[:, 1],
        s=size,
        color=colour,
        alpha=alpha,
        marker=marker,
        label=label,
        zorder=zorder,
        linewidths=0,
    )


def _plain(name: object) -> str:
    """A name as text that is no formula and no longer than the legend is wide."""
    text = re.sub(r"\s+", " ", "".join(c for c in str(name) if c.isprintable()))
    return (text if len(text) <= 24 else text[:22] + "…").replace("$", r"\$")
