"""Rates of files that are on disk only, opening included, each beside what the disk itself reads.

The disk's rate is that of plain read() on the same files, measured just before: virtual disks
change theirs from minute to minute.
"""

import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from store_formats.reader import BATCH_ROWS
from store_formats.source import RowNumbers

from .disk import make_cold, read_rate, resident_share
from .lines import Line, Protocol, rows_per_second

FIRST_BATCHES = 8
PATIENCE = 3
"""Cold measures may take so many times as long: opening is a part of them, half a second of it for
formats that read all their headers."""

BLOCKS, OF_DISK, FIRST, DISK = "cold blocks", "cold share of disk", "cold first", "disk"
LEFT = "share of the files still in memory after they were made cold"


def measure_cold(lines: Sequence[Line], row_bytes: int, protocol: Protocol, method: str) -> None:
    """Add the cold figures of all readers, in turns."""
    random = np.random.default_rng(protocol.seed)
    limit_s = PATIENCE * protocol.limit_s
    for repeat in range(protocol.repeats):
        for index in random.permutation(len(lines)):
            line = lines[index]
            disk = _disk(line, method)
            rate = line.run(_blocks, repeat, limit_s)
            line.add({BLOCKS: rate, OF_DISK: rate * row_bytes / disk})
            if line.reader.random:
                make_cold(line.folder, method)
                rows = random.integers(0, line.rows, FIRST_BATCHES * BATCH_ROWS)
                line.add({FIRST: line.run(_first, rows, limit_s)})


def _disk(line: Line, method: str) -> float:
    """Bytes a second of the disk; leaves the files cold."""
    make_cold(line.folder, method)
    left = resident_share(line.folder)
    disk = read_rate(line.folder)
    line.add({DISK: disk, LEFT: left})
    make_cold(line.folder, method)
    return disk


def _blocks(line: Line, seed: int, limit_s: float) -> float:
    started = time.perf_counter()
    with closing(line.open()) as reader:
        return rows_per_second(reader.shuffled(seed), limit_s, started)


def _first(line: Line, rows: RowNumbers, limit_s: float) -> float:
    started = time.perf_counter()
    with closing(line.open()) as reader:
        batches = (reader.gather(batch) for batch in rows.reshape(FIRST_BATCHES, -1))
        return rows_per_second(batches, limit_s, started)
