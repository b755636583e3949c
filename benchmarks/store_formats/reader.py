"""What the benchmark asks of a format: how it is written, and the ways to read it back.

Batches are arrays or tensors [B, D] of float16 that own their memory, as training needs them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .source import RowNumbers, Values

Batch = Any
"""[B, D] float16: a numpy array or a torch tensor."""

BATCH_ROWS = 256
SHARD_ROWS = 16_384
"""Rows of one file, for formats that have several: 32 MiB of 1024 numbers."""

BLOCK_ROWS, WINDOW_BLOCKS = 2048, 4
"""Block shuffling: blocks in random order, four of them mixed at a time."""


class Reader:
    """One way to read a written format. Opening it is `Reader(folder, rows, dim)`."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    mapped: ClassVar[bool] = False
    """Reads mapped memory: fast enough that readers are compared in turns, in one process."""
    apart: ClassVar[bool] = False
    """Leaves threads or mappings behind when it is closed: is used in processes of its own."""
    random: ClassVar[bool] = True
    """Reads rows by number; `gather` and `span` work."""

    @classmethod
    def unavailable(cls, folder: Path) -> str:
        """Why these files cannot be read so; "" if they can."""
        return ""

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        self.folder, self.rows, self.dim = folder, rows, dim

    def gather(self, rows: RowNumbers) -> Batch:
        """The rows of these numbers [B]."""
        raise NotImplementedError

    def span(self, start: int, stop: int) -> Batch:
        """Rows start to stop - 1."""
        return self.gather(np.arange(start, stop))

    def sequence(self) -> Iterator[Batch]:
        """All rows in order, in batches."""
        for start in range(0, self.rows, BATCH_ROWS):
            yield self.span(start, min(start + BATCH_ROWS, self.rows))

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """All rows, shuffled by blocks, in batches."""
        for blocks, order in windows(self.rows, seed):
            rows = np.concatenate([np.asarray(self.span(*block)) for block in blocks])
            for start in range(0, len(rows), BATCH_ROWS):
                yield rows[order[start : start + BATCH_ROWS]]

    def close(self) -> None:
        """Let go of files and mappings."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format: `write` makes an empty folder hold the rows, durably."""

    name: str
    modules: tuple[str, ...]
    write: Callable[[Path, Values], None]
    readers: tuple[type[Reader], ...]


def windows(rows: int, seed: int) -> Iterator[tuple[list[tuple[int, int]], RowNumbers]]:
    """Windows of a block-shuffled epoch: blocks as (start, stop), and the order of their rows."""
    random = np.random.default_rng(seed)
    starts = random.permutation(np.arange(0, rows, BLOCK_ROWS))
    for first in range(0, len(starts), WINDOW_BLOCKS):
        window = starts[first : first + WINDOW_BLOCKS].tolist()
        blocks = [(start, min(start + BLOCK_ROWS, rows)) for start in window]
        yield blocks, random.permutation(sum(stop - start for start, stop in blocks))


def window_rows(blocks: list[tuple[int, int]], order: RowNumbers) -> RowNumbers:
    """The row numbers of a window in shuffled order."""
    return np.concatenate([np.arange(start, stop) for start, stop in blocks])[order]
