"""Training batches: tokens, labels and cached features of the same examples, joined by key.

A batch costs one padding of token ids and one gather of features; nothing is done row by row. The
order of an epoch is a function of (seed, epoch) alone.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..corpus.labels import LabelValues
from .controls import Gather
from .tokens import Tokens

Batch = dict[str, torch.Tensor]


class DistillDataset(Dataset[Batch]):
    """N examples; `features` is None where no feature is to be read (evaluation, undistilled)."""

    def __init__(self, tokens: Tokens, labels: LabelValues, features: Gather | None) -> None:
        self._tokens = tokens
        self.truncated = tokens.truncated
        self.labels = torch.tensor(labels)  # a copy: Arrow's memory may not be written to
        if self.labels.is_floating_point():
            self.labels = self.labels.float()
        self.features = features
        self.seconds = 0.0
        """Time spent making batches."""

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])

    def __getitems__(self, places: list[int]) -> Batch:
        started = time.perf_counter()
        chosen = np.asarray(places, dtype=np.int64)
        batch = self._tokens.pad(chosen) | self.aligner_batch(chosen)
        self.seconds += time.perf_counter() - started
        return batch

    def aligner_batch(self, places: npt.NDArray[np.int64]) -> Batch:
        """Labels and features alone: all that an aligner sees."""
        batch = {"labels": self.labels[torch.from_numpy(places)]}
        if self.features is not None:
            batch["feature"] = torch.from_numpy(self.features(places))
        return batch


def as_batch(batch: Any) -> Batch:
    """The collating function: the dataset has joined the examples already."""
    assert isinstance(batch, dict)
    return batch


def epoch_order(count: int, seed: int, epoch: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """The order of an epoch; `stream` tells independent passes over the same epoch apart."""
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


class EpochBatches(Sampler[list[int]]):
    """Batches of a shuffled epoch, the last one maybe smaller. `set_epoch` chooses the epoch."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self.batch_size = batch_size
        self.drop_last = False
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self._count, self._seed, self._epoch)
        for start in range(0, self._count, self.batch_size):
            yield order[start : start + self.batch_size].tolist()
