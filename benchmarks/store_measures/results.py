"""All figures of a run, and the tables of them."""

from dataclasses import dataclass, field
from statistics import median

from figures import Repeats, ratios, shown, shown_ratio

from . import cold, warm
from .lines import Line

Titled = tuple[str, list[list[str]]]
"""A title, and rows of cells, the first of them a header."""

OURS, RAW = "armada", "raw file"
MEGA = 1e6


@dataclass(slots=True)
class Results:
    """Rates are rows a second; `writes` bytes a second and `sizes` (files, bytes), by format;
    `handing` rows a second and `opening` seconds, by what was done."""

    row_bytes: int
    writes: dict[str, Repeats]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    handing: dict[str, Repeats] = field(default_factory=dict)
    opening: dict[str, Repeats] = field(default_factory=dict)

    def fastest(self, figure: str, format_name: str) -> Repeats:
        """The figures of that format's reader with the highest median, mapped readers only."""
        measured = [
            line.of(figure)
            for line in self.lines
            if line.reader.mapped and line.format == format_name and line.of(figure)
        ]
        return max(measured, key=median, default=[])

    def of(self, reader: str, figure: str) -> Repeats:
        """The figures of a reader by its name; empty if it is not there."""
        named = (line.of(figure) for line in self.lines if line.reader.name == reader)
        return next(named, [])


HEADER = [
    "reader",
    "write MB/s",
    "x raw",
    "files",
    "MB",
    "sequential MB/s",
    "random 256 rows/s",
    "x",
    "random 32 rows/s",
    "x",
    "cold blocks rows/s",
    "x disk",
    "first cold rows/s",
]


def main_table(results: Results) -> Titled:
    """One line a reader; what belongs to the files stands in the first line of a format."""
    rows = [HEADER]
    formats_seen: set[str] = set()
    for line in results.lines:
        new = line.format not in formats_seen
        formats_seen.add(line.format)
        files = _file_cells(results, line.format) if new else [""] * 4
        rows.append([line.reader.name, *files, *_read_cells(results, line)])
    return "Formats and readers (x: ratio to the fastest np.memmap line)", rows


def _file_cells(results: Results, name: str) -> list[str]:
    files, size = results.sizes[name]
    writes = results.writes[name]
    ratio = ratios(writes, results.writes.get(RAW, []))
    rate = shown([each / MEGA for each in writes])
    return [rate, shown_ratio(ratio), str(files), f"{size / MEGA:.0f}"]


def _read_cells(results: Results, line: Line) -> list[str]:
    cells = [shown([rate * results.row_bytes / MEGA for rate in line.of(warm.SEQUENCE)])]
    for figure in (warm.RANDOM, warm.SMALL):
        rates = line.of(figure)
        cells += [shown(rates), shown_ratio(ratios(rates, results.fastest(figure, RAW)))]
    cells += [shown(line.of(cold.BLOCKS)), shown_ratio(line.of(cold.OF_DISK))]
    return [*cells, shown(line.of(cold.FIRST))]


def small_tables(results: Results) -> list[Titled]:
    """Handing over, opening, and the disk."""
    tables: list[Titled] = []
    if results.handing:
        rows = [[name, shown(rates)] for name, rates in results.handing.items()]
        tables.append(("Handing batches of 256 over (armada, gather)", [["way", "rows/s"], *rows]))
    if results.opening:
        rows = [
            [name, shown([1000 * each for each in seconds])]
            for name, seconds in results.opening.items()
        ]
        tables.append(("Opening a cache of many shards", [["action", "ms"], *rows]))
    disk = [rate for line in results.lines for rate in line.of(cold.DISK)]
    if disk:
        cell = shown([rate / MEGA for rate in disk])
        tables.append(("The disk", [["action", "MB/s"], ["cold read() of all files", cell]]))
    return tables
