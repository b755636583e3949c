"""Seconds to open a cache of many small shards, and to read its first rows and all its keys."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from armada.stages.store.reading.reader import open_cache
from figures import Repeats
from store_formats.armada_cache import FEATURE, write_cache
from store_formats.reader import BATCH_ROWS
from store_formats.source import Source

from .disk import NOT, make_cold
from .lines import Protocol

ROWS_PER_SHARD = 64
DIM = 64
"""Rows of whole pages: 8 KiB a shard."""

OPENED, FIRST_BATCH, KEYS = "opened", "opened, first 256 random rows", "opened, all keys read"
COLD = ", cold"


def measure_opening(
    folder: Path, shards: int, protocol: Protocol, method: str
) -> dict[str, Repeats]:
    """Seconds by what was done; in memory, and cold where files can be made cold."""
    values = Source(shards * ROWS_PER_SHARD, DIM, protocol.seed).values
    write_cache(folder, values, ROWS_PER_SHARD)
    rows = np.random.default_rng(protocol.seed).integers(0, len(values), BATCH_ROWS)
    actions: dict[str, Callable[[], object]] = {
        OPENED: lambda: open_cache(folder)[FEATURE],
        FIRST_BATCH: lambda: open_cache(folder)[FEATURE].gather(rows),
        KEYS: lambda: open_cache(folder).keys,
    }
    seconds: dict[str, Repeats] = {name: [] for name in actions}
    for _ in range(protocol.repeats):
        for name, action in actions.items():
            seconds[name].append(_seconds(action))
    for name, action in actions.items() if method != NOT else ():
        make_cold(folder, method)
        seconds[name + COLD] = [_seconds(action)]
    return seconds


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
