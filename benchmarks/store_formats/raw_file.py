"""The limit: one file of nothing but rows, read through np.memmap."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .reader import BATCH_ROWS, SHARD_ROWS, Batch, Format, Reader, window_rows, windows
from .selecting import Selecting
from .source import RowNumbers, Values

FILE = "rows.bin"


def _write(folder: Path, values: Values) -> None:
    with (folder / FILE).open("wb") as file:
        for start in range(0, len(values), SHARD_ROWS):
            file.write(values[start : start + SHARD_ROWS].reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def as_tensor(mapped: Values) -> torch.Tensor:
    """A tensor over read-only memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(mapped)


class Indexed(Reader):
    """`memmap[rows]`."""

    name = "np.memmap[rows]"
    mapped = True

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        memory = np.memmap(folder / FILE, dtype=np.float16, mode="r", shape=(rows, dim))
        # The plain view of the same memory: a memmap's own indexing wraps every batch anew.
        self.array: Values = np.asarray(memory)

    def gather(self, rows: RowNumbers) -> Batch:
        return self.array[rows]

    def span(self, start: int, stop: int) -> Batch:
        return self.array[start:stop].copy()

    def shuffled(self, seed: int) -> Iterator[Batch]:
        for blocks, order in windows(self.rows, seed):
            rows = window_rows(blocks, order)
            for start in range(0, len(rows), BATCH_ROWS):
                yield self.gather(rows[start : start + BATCH_ROWS])

    def close(self) -> None:
        del self.array


class Taken(Indexed):
    """`np.take(memmap, rows)`."""

    name = "np.take(np.memmap)"

    def gather(self, rows: RowNumbers) -> Batch:
        return np.take(self.array, rows, axis=0)


class Selected(Selecting, Indexed):
    """`torch.index_select` on a tensor over the memmap."""

    name = "torch.index_select(np.memmap)"

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        super().__init__(folder, rows, dim)
        self.tensor = as_tensor(self.array)


FORMAT = Format(name="raw file", modules=(), write=_write, readers=(Indexed, Taken, Selected))
