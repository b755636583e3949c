"""Before anything is timed: does a reader give back what was written, bit for bit?"""

from contextlib import closing
from itertools import islice

import numpy as np
from store_formats.reader import BATCH_ROWS, SHARD_ROWS, Reader
from store_formats.source import RowNumbers, Source

from .lines import Line

CHECKED_BATCHES = 4
AROUND = 300


def check(line: Line, source: Source, seed: int) -> None:
    """Raise ValueError unless a reader gives the source's rows at random, in order and shuffled."""
    if line.reader.apart:
        line.run(_check_with_new_source, seed)
    else:
        _check(line, source, seed)


def _check_with_new_source(line: Line, seed: int) -> None:
    _check(line, Source(line.rows, line.dim, seed), seed)


def _check(line: Line, source: Source, seed: int) -> None:
    with closing(line.open()) as reader:
        if reader.random:
            _check_random(reader, source, seed)
        _check_sequence(reader, source)
        found = [source.find(batch) for batch in islice(reader.shuffled(seed), CHECKED_BATCHES)]
    rows = np.concatenate(found)
    if len(np.unique(rows)) != len(rows):
        raise ValueError("a row came twice in one shuffled epoch")


def _check_random(reader: Reader, source: Source, seed: int) -> None:
    """Random rows and those around the borders of shards, once shuffled, once as a span."""
    rows = np.random.default_rng(seed).permutation(_telling_rows(len(source.values), seed))
    source.check(reader.gather(rows), rows)
    middle = min(SHARD_ROWS, len(source.values) // 2)
    span = np.arange(max(middle - AROUND, 0), min(middle + AROUND, len(source.values)))
    source.check(reader.span(int(span[0]), int(span[-1]) + 1), span)


def _telling_rows(count: int, seed: int) -> RowNumbers:
    borders = np.arange(0, count + SHARD_ROWS, SHARD_ROWS)[:, None] + np.arange(-3, 3)
    random = np.random.default_rng(seed).integers(0, count, 2 * BATCH_ROWS)
    rows: RowNumbers = np.unique(np.concatenate([borders.ravel(), random]).clip(0, count - 1))
    return rows


def _check_sequence(reader: Reader, source: Source) -> None:
    done = 0
    for batch in islice(reader.sequence(), CHECKED_BATCHES):
        source.check(batch, np.arange(done, done + len(batch)))
        done += len(batch)
