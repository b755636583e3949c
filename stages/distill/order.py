"""Which examples come together, and when: a function of (seed, epoch) alone.

Neither the number of processes nor what was read before has a say, so a run can be cut at any step
and go on with another number of processes.
"""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .batches import DistillDataset

Places = npt.NDArray[np.int64]
"""Numbers of examples in a data set."""

GROUPED_BATCHES = 64
"""Among so many batches, texts of like length come together: little padding, and still batches of
other texts in every epoch."""

_GROUPS = 2
"""The stream of random numbers that groups are shuffled by; the aligner's pass has stream 1."""


def epoch_order(count: int, seed: int, epoch: int, stream: int = 0) -> Places:
    """The order of an epoch; `stream` tells independent passes over the same epoch apart."""
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


def grouped_by_length(
    batches: Iterator[Places],
    lengths: npt.NDArray[np.int64],
    seed: int,
    epoch: int,
    group: int = GROUPED_BATCHES,
) -> Iterator[Places]:
    """The same examples in batches of the same sizes, each of texts of like length; the batches of
    a group come in random order."""
    random = np.random.default_rng([seed, epoch, _GROUPS])
    while chosen := list(islice(batches, group)):
        places = np.concatenate(chosen)
        by_length = places[np.argsort(lengths[places], kind="stable")]
        parts = np.split(by_length, np.cumsum([len(batch) for batch in chosen])[:-1])
        yield from (parts[number] for number in random.permutation(len(parts)))


class EpochBatches(Sampler[list[int]]):
    """A student's batches, the last of an epoch maybe smaller. `set_epoch` chooses the epoch."""

    def __init__(
        self, dataset: "DistillDataset", batch_size: int, seed: int, group_by_length: bool = False
    ) -> None:
        self._dataset, self._seed, self._group = dataset, seed, group_by_length
        self.batch_size = batch_size
        self.drop_last = False
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for places in self.of(self._epoch, read_ahead=not self._dataset.apart):
            yield places.tolist()

    def of(self, epoch: int, read_ahead: bool = True) -> Iterator[Places]:
        """The batches of an epoch; `read_ahead` is for who reads their features."""
        batches = self._dataset.batches(self.batch_size, self._seed, epoch, read_ahead=read_ahead)
        if not self._group:
            return batches
        # Of what is streamed, no more than is read ahead.
        most = GROUPED_BATCHES * self.batch_size
        rows = min(self._dataset.window_rows or most, most)
        group = max(1, rows // self.batch_size)
        return grouped_by_length(batches, self._dataset.lengths, self._seed, epoch, group)
