"""One small picture of a teacher's features: their two main components, coloured by label.

Rows: at most 2,000, drawn with a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import FeatureArray
from ..pictures.canvas import COLOURS, new_figure, png
from ..pictures.scatter import Labels, dots, draw_classes, draw_numbers, label_axes, main_components

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 2_000
MAX_VALUES = 2**24
"""128 MiB as float64."""
MAX_PANELS = 3


@dataclass(frozen=True, slots=True)
class Colouring:
    """What is known of some rows: numbers to be read off a scale, or names of classes."""

    rows: Rows
    labels: Labels
    title: str


def choose_rows(count: int, width: int) -> Rows:
    """At most 2,000 of `count` rows, fewer if they are wide; sorted, the same each time."""
    most = min(MAX_ROWS, max(MAX_VALUES // width, 100))
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False)).astype(np.int64)


def draw(features: Sequence[FeatureArray], colouring: Colouring | None) -> bytes:
    """A PNG with one panel for each of the first features; all of them have the same rows."""
    shown = features[:MAX_PANELS]
    figure = new_figure(4.4 * len(shown) + (1.6 if colouring else 0), 4.2, dpi=110)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, feature in zip(panels, shown, strict=True):
        _draw_panel(panel, feature, colouring, last=panel is panels[-1])
    return png(figure)


def _draw_panel(
    panel: "Axes", feature: FeatureArray, colouring: Colouring | None, last: bool
) -> None:
    known = np.arange(len(feature)) if colouring is None else colouring.rows
    chosen = choose_rows(len(known), feature.spec.values_per_row)
    components = main_components(feature.gather(known[chosen]))
    if colouring is None:
        dots(panel, components.places, 8, COLOURS[0], alpha=0.6)
    elif colouring.labels.dtype.kind == "f":
        draw_numbers(panel, components, colouring.labels[chosen], colouring.title, last)
    else:
        draw_classes(panel, components, colouring.labels[chosen], colouring.title, last)
    shape = " x ".join(map(str, feature.spec.shape)) or "one number"
    panel.set_title(f"{feature.spec.name} ({shape}), {len(chosen)} rows", fontsize=10)
    label_axes(panel, components)
