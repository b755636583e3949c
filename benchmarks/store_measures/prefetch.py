"""Rows a second that reach a consumer in batches of 256: thread or worker processes?

The consumer does nothing, so this is the cost of handing batches over. Worker processes are
counted from their first batch on, their start is not.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from figures import Repeats
from store_formats.reader import BATCH_ROWS, Reader
from store_formats.source import RowNumbers
from torch.utils.data import DataLoader, Dataset

from .lines import Line, Protocol, rows_per_second

THREAD, WORKER = "one prefetch thread", "DataLoader, 1 worker"

AHEAD = 4
"""Batches waiting for the consumer at most."""


class Rows(Dataset[torch.Tensor]):
    """Whole batches of a reader, as a DataLoader asks for them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return self._reader.rows

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> torch.Tensor:
        return torch.as_tensor(self._reader.gather(np.asarray(rows)))


def measure_prefetch(line: Line, protocol: Protocol) -> dict[str, Repeats]:
    """Rows a second by way of handing over, ways in turns."""
    reader = line.open()
    ways: dict[str, Callable[[list[RowNumbers]], Iterator[Any]]] = {
        "no thread, no worker": lambda batches: map(reader.gather, batches),
        THREAD: lambda batches: _through_thread(reader, batches),
        "DataLoader, 0 workers": lambda batches: _through_workers(reader, batches, 0),
        WORKER: lambda batches: _through_workers(reader, batches, 1),
        "DataLoader, 2 workers": lambda batches: _through_workers(reader, batches, 2),
    }
    rates: dict[str, Repeats] = {name: [] for name in ways}
    random = np.random.default_rng(protocol.seed)
    for _ in range(protocol.repeats):
        rows = random.permutation(line.rows)
        batches = np.array_split(rows, -(-len(rows) // BATCH_ROWS))
        for name in random.permutation(list(ways)).tolist():
            rates[name].append(_rate(ways[name](batches), protocol.limit_s))
    reader.close()
    return rates


def _rate(batches: Iterator[Any], limit_s: float) -> float:
    next(batches)
    return rows_per_second(batches, limit_s)


def _through_thread(reader: Reader, batches: list[RowNumbers]) -> Iterator[Any]:
    waiting: Queue[Any] = Queue(AHEAD)
    enough = Event()

    def fill() -> None:
        for batch in batches:
            if enough.is_set():
                break
            waiting.put(reader.gather(batch))
        waiting.put(None)

    thread = Thread(target=fill)
    thread.start()
    try:
        while (batch := waiting.get()) is not None:
            yield batch
    finally:
        # The consumer may have left early: the thread must not wait for it.
        enough.set()
        while thread.is_alive():
            _drain(waiting)
        thread.join()


def _drain(waiting: "Queue[Any]") -> None:
    with suppress(Empty):
        waiting.get(timeout=0.01)


def _through_workers(reader: Reader, batches: list[RowNumbers], workers: int) -> Iterator[Any]:
    return iter(
        DataLoader(
            Rows(reader),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            collate_fn=_as_it_is,
        )
    )


def _as_it_is(batch: Any) -> Any:
    return batch
