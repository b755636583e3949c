"""Training batches: tokens, labels and cached features of the same examples, joined by key.

A batch costs one padding of token ids and one gather of features; nothing is done row by row. The
order of an epoch is a function of (seed, epoch) alone: at random, or, for features that do not fit
into memory, in blocks of examples whose features lie together, the next few read ahead.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..corpus.labels import LabelValues
from ..store.reading.block_shuffle import BLOCK_ROWS, BLOCKS_PER_WINDOW, BlockOrder, batches_of
from ..store.reading.read_ahead import ReadAhead
from .controls import Gather
from .tokens import Tokens

Batch = dict[str, Any]
"""Tensors by name; `places` is an array, which stays where it is when tensors move to a device."""


def _numbers(places: npt.NDArray[np.int64]) -> list[str]:
    return [f"example {place}" for place in places]


class DistillDataset(Dataset[Batch]):
    """N examples; `features` is None where no feature is to be read (evaluation, undistilled)."""

    def __init__(
        self,
        tokens: Tokens,
        labels: LabelValues,
        features: Gather | None,
        names: Callable[[npt.NDArray[np.int64]], list[str]] = _numbers,
    ) -> None:
        """`names` says for people what the examples at some places are."""
        self._tokens, self.names = tokens, names
        self.truncated = tokens.truncated
        self.labels = torch.tensor(labels)  # a copy: Arrow's memory may not be written to
        if self.labels.is_floating_point():
            self.labels = self.labels.float()
        self.features = features
        self.replayed = False
        """Whether batches do without features: what is read out of these is known ahead."""
        self.seconds = 0.0
        """Time spent making batches."""
        self._blocks: BlockOrder | None = None
        self._ahead: ReadAhead | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])

    def __getitems__(self, places: list[int]) -> Batch:
        started = time.perf_counter()
        chosen = np.asarray(places, dtype=np.int64)
        batch: Batch = {**self._tokens.pad(chosen), "places": chosen}
        if self.replayed:
            batch["labels"] = self._labels_of(chosen)
        else:
            batch |= self.aligner_batch(chosen)
        self.seconds += time.perf_counter() - started
        return batch

    def aligner_batch(self, places: npt.NDArray[np.int64]) -> Batch:
        """Labels and features alone: all that an aligner sees."""
        batch = {"labels": self._labels_of(places)}
        if self.features is not None:
            batch["feature"] = self.features_of(places)
        return batch

    def features_of(self, places: npt.NDArray[np.int64]) -> torch.Tensor:
        """The features of examples [B, *shape], as they are stored."""
        assert self.features is not None
        if self._ahead is not None:
            self._ahead.start()
        return torch.from_numpy(self.features(places))

    def _labels_of(self, places: npt.NDArray[np.int64]) -> torch.Tensor:
        return self.labels[torch.from_numpy(places)]

    def shuffle_in_blocks(self) -> None:
        """From now on, epochs go through examples whose features lie together; the same as ever
        where no features are read."""
        if self.features is not None:
            self._blocks = BlockOrder(self.features.file_order(), BLOCK_ROWS, BLOCKS_PER_WINDOW)
            self._ahead = ReadAhead(self.features.will_need)

    def batches(
        self, batch_size: int, seed: int, epoch: int, stream: int = 0, read_ahead: bool = True
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Every example of an epoch once: places in batches, the last one maybe smaller.

        `read_ahead` is for who reads the features of these batches."""
        if self._blocks is None or self._ahead is None:
            return batches_of(iter([epoch_order(len(self), seed, epoch, stream)]), batch_size)
        windows = self._blocks.windows(seed, epoch, stream)
        return batches_of(self._ahead.planned(windows) if read_ahead else windows, batch_size)


def as_batch(batch: Any) -> Batch:
    """The collating function: the dataset has joined the examples already."""
    assert isinstance(batch, dict)
    return batch


def epoch_order(count: int, seed: int, epoch: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """The order of an epoch; `stream` tells independent passes over the same epoch apart."""
    return np.random.default_rng([seed, epoch, stream]).permutation(count)


class EpochBatches(Sampler[list[int]]):
    """Batches of a shuffled epoch, the last one maybe smaller. `set_epoch` chooses the epoch."""

    def __init__(self, dataset: DistillDataset, batch_size: int, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self.batch_size = batch_size
        self.drop_last = False
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        dataset = self._dataset
        for places in dataset.batches(
            self.batch_size, self._seed, self._epoch, read_ahead=not dataset.replayed
        ):
            yield places.tolist()
