"""Write rates in payload bytes a second, until all is on disk; formats in turns, order shuffled."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import Repeats
from store_formats.reader import Format
from store_formats.source import Source

from .lines import Protocol

OFTEN = 3
"""Formats are written so many times as often as they are read: disks are moody ..."""
ENOUGH_S = 8.0
"""... but not again when they have taken so long."""


def measure_writes(
    formats: Sequence[Format], folders: dict[str, Path], source: Source, protocol: Protocol
) -> dict[str, Repeats]:
    """Bytes a second of each format by name; afterwards its folder holds the rows."""
    random = np.random.default_rng(protocol.seed)
    rates: dict[str, Repeats] = {format_.name: [] for format_ in formats}
    for _ in range(OFTEN * protocol.repeats):
        for index in random.permutation(len(formats)):
            format_ = formats[index]
            spent = sum(source.values.nbytes / rate for rate in rates[format_.name])
            if spent < ENOUGH_S:
                seconds = _write(format_, folders[format_.name], source)
                rates[format_.name].append(source.values.nbytes / seconds)
    return rates


def _write(format_: Format, folder: Path, source: Source) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.perf_counter()
    format_.write(folder, source.values)
    return time.perf_counter() - started
