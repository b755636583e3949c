"""What is to be reached, and whether it was."""

from statistics import median

from figures import Repeats, ratios, shown
from store_formats.armada_cache import Gather, Mapped
from store_formats.raw_file import Indexed, Selected, Taken
from store_formats.zarr_libraries import ZarrPython

from . import cold, opening, prefetch, warm
from .results import OURS, RAW, Results, Titled

TargetRow = tuple[str, str, float, Repeats]
"""What, "at least" or "at most", the limit, the figures."""

SIZES = {256: warm.RANDOM, 32: warm.SMALL}


def target_table(results: Results) -> Titled:
    """Every target with its figure: met, not met, or not measured."""
    rows = [["target", "limit", "figure", ""]]
    for what, kind, limit, figures in (*_random(results), *_others(results)):
        rows.append([what, f"{kind} {limit:g}", shown(figures), _verdict(kind, limit, figures)])
    return "Targets", rows


def _verdict(kind: str, limit: float, figures: Repeats) -> str:
    if not figures:
        return "not measured"
    figure = median(figures)
    return "met" if (figure >= limit if kind == "at least" else figure <= limit) else "not met"


def _random(results: Results) -> list[TargetRow]:
    rows: list[TargetRow] = []
    for size, figure in SIZES.items():
        ours = results.fastest(figure, OURS)
        numpy_lines = [results.of(kind.name, figure) for kind in (Indexed, Taken)]
        numpy_way = max((each for each in numpy_lines if each), key=median, default=[])
        pairs = {
            "fastest of ours / fastest np.memmap": (ours, results.fastest(figure, RAW)),
            "gather / fastest numpy on np.memmap": (results.of(Gather.name, figure), numpy_way),
            "index_select, ours / np.memmap": (
                results.of(Mapped.name, figure),
                results.of(Selected.name, figure),
            ),
        }
        for what, (one, other) in pairs.items():
            rows.append((f"random {size}: {what}", "at least", 0.85, ratios(one, other)))
        zarr = ratios(ours, results.of(ZarrPython.name, figure))
        rows.append((f"random {size}: fastest of ours / zarr-python", "at least", 1000.0, zarr))
    return rows


def _others(results: Results) -> list[TargetRow]:
    writes = ratios(results.writes.get(OURS, []), results.writes.get(RAW, []))
    blocks = results.of(Gather.name, cold.OF_DISK)
    opened = [1000 * seconds for seconds in results.opening.get(opening.OPENED, [])]
    handing = (results.handing.get(way, []) for way in (prefetch.THREAD, prefetch.WORKER))
    return [
        ("cold epoch shuffled by blocks: gather / disk", "at least", 0.5, blocks),
        ("write / raw file, both with fsync", "at least", 0.6, writes),
        ("ms to open the cache of many shards", "at most", 200.0, opened),
        ("one prefetch thread / one DataLoader worker", "at least", 1.0, ratios(*handing)),
    ]
