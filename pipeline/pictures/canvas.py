"""What all pictures share: colours that everybody can tell apart, and how a figure becomes a PNG.

The colours are those of Okabe and Ito, which people with any common colour blindness can tell
apart; whatever has a colour of its own has a marker or a line of its own as well.
"""

import re
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
OTHER = "#999999"

NAMED = {
    "red": "#D55E00",
    "orange": "#E69F00",
    "yellow": "#F0E442",
    "green": "#009E73",
    "blue": "#0072B2",
    "purple": "#CC79A7",
    "black": "#000000",
}
"""For classes that are called like colours: the palette's nearest."""


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
    """A name as text that is no formula and no longer than a legend is wide: what is too long loses
    its middle, because names differ at their ends."""
    text = re.sub(r"\s+", " ", "".join(c for c in str(name) if c.isprintable()))
    if len(text) > longest:
        text = f"{text[: longest // 2 - 1]}…{text[-(longest // 2) + 1 :]}"
    return text.replace("$", r"\$")
