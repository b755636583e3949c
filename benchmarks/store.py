"""How fast features are written and read: our cache beside raw files and other formats.

One command, one table (and small ones for opening, handing over and what is to be reached):

    pip install zarrs tensorstore datasets litdata mosaicml-streaming webdataset
    python benchmarks/store.py

What is not installed is left out with a line that says so. All formats store the same random rows
in the same run. Every reader is first checked bit for bit; zarr-python, zarrs and tensorstore read
the very files of our cache. Mapped readers are compared in turns within one process, the order
shuffled each repeat; the ratio `x` is that to the fastest way to read np.memmap in the same repeat.
Cold figures include opening; they empty the page cache of the machine where that is permitted.
Figures are medians with (least..most) of `--repeats`. NumPy copies with one thread,
torch.index_select with all of them: it collapses where another process takes one. A quiet machine
of two cores takes about 6 minutes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from figures import table
from store_formats import FORMATS, missing
from store_formats.armada_cache import Gather
from store_formats.reader import Format
from store_formats.source import Source
from store_measures import cold
from store_measures.checking import check
from store_measures.cold import measure_cold
from store_measures.disk import NOT, cold_method, size_of
from store_measures.lines import Line, Protocol, preload
from store_measures.machine import describe
from store_measures.opening import measure_opening
from store_measures.prefetch import measure_prefetch
from store_measures.results import OURS, Results, main_table, small_tables
from store_measures.targets import target_table
from store_measures.warm import measure_alone, measure_in_turns
from store_measures.writing import measure_writes

COLD_ENOUGH = 0.01
QUICK = {"rows": 33_000, "dim": 64, "repeats": 1, "limit": 0.02, "shards": 20}


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="store-", dir=options.folder) as name:
        folder = Path(name)
        print("\n".join(describe(folder, options)), flush=True)
        if options.quick:
            print("--quick: so few and small rows show that everything runs, not how fast")
        results = measure(folder, options)
    for title, rows in (main_table(results), *small_tables(results), target_table(results)):
        print(f"\n{title}\n\n{table(rows, options.markdown)}")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=1024, help="float16 numbers of a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.5, help="seconds of one measure at most")
    parser.add_argument("--shards", type=int, default=1000, help="of the cache that is opened")
    parser.add_argument("--only", nargs="+", help="formats, by the beginning of their names")
    parser.add_argument("--folder", type=Path, help="data goes into a new folder in this one")
    parser.add_argument("--markdown", action="store_true", help="tables for RESULTS.md")
    parser.add_argument(
        "--quick", action="store_true", help="few small rows, to see that everything runs"
    )
    options = parser.parse_args()
    if options.quick:
        left_out = {key for key in QUICK if getattr(options, key) == parser.get_default(key)}
        vars(options).update({key: QUICK[key] for key in left_out})
    if options.rows < 1024 or options.dim < 4 or options.repeats < 1:
        parser.error("at least 1024 --rows, 4 --dim and 1 --repeats")
    if options.folder and not options.folder.is_dir():
        parser.error(f"--folder {options.folder}: is not a folder")
    for name in options.only or ():
        if not any(is_meant(format_, name) for format_ in FORMATS):
            parser.error(f"--only {name}: one of {', '.join(each.name for each in FORMATS)}")
    return options


def is_meant(format_: Format, name: str) -> bool:
    """Whether a format's name begins so."""
    return format_.name.lower().startswith(name.lower())


def measure(folder: Path, options: argparse.Namespace) -> Results:
    """Everything, one step after another."""
    protocol = Protocol(options.repeats, options.limit, options.seed)
    method = cold_method(folder, spare_the_machine=options.quick)
    say("making rows")
    source = Source(options.rows, options.dim, options.seed)
    formats = chosen(options.only)
    preload(formats)
    folders = {format_.name: folder / str(index) for index, format_ in enumerate(formats)}
    say("writing")
    results = Results(source.row_bytes, measure_writes(formats, folders, source, protocol))
    results.sizes.update({name: size_of(folders[name]) for name in folders})
    results.lines.extend(checked_lines(formats, folders, source, options.seed))
    read_warm(results, protocol)
    if OURS in folders:
        say("opening many shards")
        many = measure_opening(folder / "many", options.shards, protocol, method)
        results.opening.update(many)
    read_cold(results, protocol, method)
    return results


def chosen(only: list[str] | None) -> list[Format]:
    """The formats that were asked for and can be imported; the others get a line."""
    formats = []
    for format_ in FORMATS:
        if only and not any(is_meant(format_, name) for name in only):
            continue
        if reason := missing(format_.modules):
            print(f"left out: {format_.name}: {reason}", flush=True)
        else:
            formats.append(format_)
    return formats


def checked_lines(
    formats: list[Format], folders: dict[str, Path], source: Source, seed: int
) -> list[Line]:
    """A line for each reader that is there; ends the run if one gives other values."""
    lines = []
    for format_ in formats:
        for reader in format_.readers:
            folder = folders[format_.name]
            if reason := missing(reader.modules) or reader.unavailable(folder):
                print(f"left out: {reader.name}: {reason}", flush=True)
                continue
            say(f"checking {reader.name}")
            lines.append(Line(format_.name, reader, folder, *source.values.shape))
            try:
                check(lines[-1], source, seed)
            except ValueError as wrong:
                sys.exit(f"{reader.name}: other values than were written: {wrong}")
    print(f"checked: {len(lines)} readers give the same bits", flush=True)
    return lines


def read_warm(results: Results, protocol: Protocol) -> None:
    """Mapped readers in turns; then ours through threads and workers; then the slow, one by one."""
    mapped = [line for line in results.lines if line.reader.mapped]
    if mapped:
        say("reading mapped memory in turns")
        measure_in_turns(mapped, protocol)
    for line in mapped:
        if line.reader is Gather:
            say("handing batches over")
            results.handing.update(measure_prefetch(line, protocol))
    for line in results.lines:
        if not line.reader.mapped:
            say(f"reading {line.reader.name}")
            measure_alone(line, protocol)


def read_cold(results: Results, protocol: Protocol, method: str) -> None:
    """All readers on files that are on disk only; a line for those that were not."""
    if method == NOT:
        print("no cold figures: files here cannot be taken out of memory")
        return
    say("reading cold")
    measure_cold(results.lines, results.row_bytes, protocol, method)
    for line in results.lines:
        left = max(line.of(cold.LEFT))
        if left > COLD_ENOUGH:
            print(f"not really cold: {line.reader.name}: up to {left:.0%} stayed in memory")


def say(doing: str) -> None:
    """Progress, for people who wait."""
    print(f"... {doing}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
