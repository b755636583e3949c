"""Figures of several repeats: median and spread, ratios of paired repeats, tables of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

Repeats = list[float]
"""One figure a repeat; empty if it was not measured."""

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of several repeats."""

    middle: float
    low: float
    high: float


def spread(repeats: Sequence[float]) -> Spread:
    """Median, least and greatest of at least one figure."""
    return Spread(median(repeats), min(repeats), max(repeats))


def ratios(ours: Repeats, others: Repeats) -> Repeats:
    """Ratio of each repeat to the other's of the same round: what slows both cancels out.

    One of them may have stopped earlier."""
    return [one / other for one, other in zip(ours, others, strict=False)]


def shown(repeats: Repeats) -> str:
    """`5.4M (5.1..5.8)`."""
    if not repeats:
        return ABSENT
    figures = spread(repeats)
    scale, unit = _unit(figures.middle)
    middle, low, high = (
        _digits(figure / scale) for figure in (figures.middle, figures.low, figures.high)
    )
    return f"{middle}{unit}" if len(repeats) == 1 else f"{middle}{unit} ({low}..{high})"


def shown_ratio(repeats: Repeats) -> str:
    """`0.87x`, or `1/1724` where that is easier to read."""
    if not repeats:
        return ABSENT
    ratio = median(repeats)
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"1/{1 / ratio:.0f}"


def _unit(figure: float) -> tuple[float, str]:
    if figure >= 1e6:
        return 1e6, "M"
    return (1e3, "k") if figure >= 1e4 else (1.0, "")


def _digits(figure: float) -> str:
    return f"{figure:.2f}" if figure < 10 else f"{figure:.1f}" if figure < 100 else f"{figure:.0f}"


def table(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Rows of cells, the first row a header; the first column to the left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        [cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in cells]
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    if not markdown:
        return "\n".join("  ".join(line) for line in lines)
    rule = [
        "-" * width if index == 0 else "-" * (width - 1) + ":" for index, width in enumerate(widths)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
