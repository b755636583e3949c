"""What a cache survives: each fault done to real runs of `precompute`, many times over, counted.

One command, one table:

    python benchmarks/faults.py [TEXTS.parquet --text-column text] [--trials 20]

Without a corpus, 8,000 made-up texts. Two counts a fault: after it, every committed answer could
be read and was right; after the same command was run again, the store was equal to that of a run
that nobody disturbed, file by file (for overlapping corpora: text by text).
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_kinds import disks, processes
from fault_kinds.bench import Bench
from fault_kinds.disks import NotPermittedError, cut, damaged, flip, lose

MADE_UP_TEXTS = 8_000

Trial = Callable[[Bench, random.Random], tuple[bool, bool]]

FAULTS: dict[str, Trial] = {
    "kill -9, run again": processes.killed,
    "kill -9 thrice, other batch sizes": processes.killed_thrice,
    "three writers of one corpus": processes.racing,
    "three writers, two killed -9": processes.racing_and_killed,
    "writers of overlapping corpora, one killed -9": processes.overlapping_and_killed,
    "a writer stopped, taken over, going on": processes.stopped,
    "clocks that go backwards, one of three killed -9": processes.bad_clock,
    "disk full in mid-run": disks.full,
    "read-only cache": disks.read_only,
    **{
        f"{what}: {kind}": damaged(kind, damage)
        for what, damage in (("a bit flipped", flip), ("cut", cut), ("lost", lose))
        for kind in disks.KINDS
    },
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", nargs="?", help="file of texts; default: made up")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--trials", type=int, default=20, help="of each fault")
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = arguments.corpus or make_corpus(Path(folder))
        bench = Bench(Path(folder), corpus, arguments.text_column)
        print(f"{len(bench.answers)} texts, {len(bench.answers.commits)} shards", file=sys.stderr)
        print("| fault | trials | committed answers right | store equal in the end |")
        print("| --- | --- | --- | --- |")
        for name, trial in FAULTS.items():
            if arguments.only in name:
                print(row(name, trial, bench, arguments.trials), flush=True)


def make_corpus(folder: Path) -> str:
    """Texts that are all different."""
    path = folder / "texts.csv"
    lines = (f"a text of number {number}\n" for number in range(MADE_UP_TEXTS))
    path.write_text("text\n" + "".join(lines))
    return str(path)


def row(name: str, trial: Trial, bench: Bench, trials: int) -> str:
    """One line of the table."""
    right, equal, started = 0, 0, time.monotonic()
    for number in range(trials):
        bench.clear()
        try:
            outcome = trial(bench, random.Random(f"{name} {number}"))
        except NotPermittedError as cause:
            return f"| {name} | not permitted here ({cause}) | | |"
        right += outcome[0]
        equal += outcome[1]
        if not all(outcome):
            print(f"{name}, trial {number}: {outcome}", file=sys.stderr)
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return f"| {name} | {trials} | {right} | {equal} |"


if __name__ == "__main__":
    main()
