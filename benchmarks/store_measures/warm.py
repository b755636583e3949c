"""Rates of files that are in memory: in order, and random batches of 256 and of 32 rows.

Mapped readers are measured in turns, in a new random order each repeat, so that the machine's moods
hit all of them: their ratios need that. The others come one by one.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import cycle

import numpy as np
from store_formats.reader import BATCH_ROWS, Reader
from store_formats.source import RowNumbers

from .disk import read_rate
from .lines import Line, Protocol, rows_per_second

SMALL_BATCH_ROWS = 32

SEQUENCE, RANDOM, SMALL = "sequence", "random", "random, small batches"

Figures = dict[str, float]


def measure_in_turns(lines: Sequence[Line], protocol: Protocol) -> None:
    """Add the warm figures, in rows a second, of readers of mapped memory."""
    random = np.random.default_rng(protocol.seed)
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(line.open())) for line in lines]
        for line, reader in zip(lines, readers, strict=True):
            read_rate(line.folder)
            # Every page is touched once: what is measured is the second epoch and later ones.
            rows_per_second(reader.sequence(), float("inf"))
        for _ in range(protocol.repeats):
            rows = random.permutation(lines[0].rows)
            for index in random.permutation(len(lines)):
                lines[index].add(_measure(readers[index], rows, protocol.limit_s))


def measure_alone(line: Line, protocol: Protocol) -> None:
    """Add the warm figures, in rows a second, of one reader."""
    read_rate(line.folder)
    for figures in line.run(_repeats, protocol):
        line.add(figures)


def _repeats(line: Line, protocol: Protocol) -> list[Figures]:
    random = np.random.default_rng(protocol.seed)
    with closing(line.open()) as reader:
        rows_per_second(reader.sequence(), protocol.limit_s)
        return [
            _measure(reader, random.permutation(line.rows), protocol.limit_s)
            for _ in range(protocol.repeats)
        ]


def _measure(reader: Reader, rows: RowNumbers, limit_s: float) -> Figures:
    figures = {SEQUENCE: rows_per_second(reader.sequence(), limit_s)}
    if reader.random:
        figures[RANDOM] = _gather_rate(reader, rows, BATCH_ROWS, limit_s)
        figures[SMALL] = _gather_rate(reader, rows, SMALL_BATCH_ROWS, limit_s)
    return figures


def _gather_rate(reader: Reader, rows: RowNumbers, size: int, limit_s: float) -> float:
    """Random batches round and round: a mapped epoch would be over too soon to be measured."""
    batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
    started, done = time.perf_counter(), 0
    for batch in cycle(batches):
        reader.gather(batch)
        done += size
        if time.perf_counter() - started > limit_s:
            break
    return done / (time.perf_counter() - started)
