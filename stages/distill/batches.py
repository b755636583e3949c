"""Training batches: tokens, labels and cached features of the same examples, joined by key.

A batch costs one padding of token ids and one gather of features; nothing is done row by row. The
examples of an epoch come in random order, or, for streamed features, in blocks of examples whose
features are contiguous, the next few read ahead.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..corpus.labels import LabelValues
from ..language.masks import needs_mask
from ..store.reading.prefetch import (
    BLOCK_ROWS,
    BLOCKS_PER_WINDOW,
    BlockOrder,
    ReadAhead,
    batches_of,
)
from .controls import Gather
from .negatives import Negatives, draw
from .order import GROUPED_BATCHES, Indices, epoch_order, grouped_by_length, weighted_order
from .placement import to_device
from .processes import ALONE
from .teacher_answers import AllAnswers
from .token_features import TokenGather

Batch = dict[str, Any]
"""Tensors by name, of this process's share, and `masked`, whether attention needs a mask for them;
`indices`, those of the whole batch's examples, an array, which stays on the CPU when tensors
move to a device."""

_COPIED_BYTES = 64 * 2**20


Features = Gather | TokenGather
"""Reader of a source's features."""


class Rows(Protocol):
    """The texts of a data set, as a student reads them: N rows of tokens."""

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Start of each row's tokens, all concatenated, and the end of the last."""

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""

    def __len__(self) -> int: ...

    def pad(self, examples: Indices) -> Batch:
        """A batch of some rows."""


def _numbers(indices: Indices) -> list[str]:
    return [f"example {index}" for index in indices]


class DistillDataset(Dataset[Batch]):
    """N examples; `features` are those of each source, by its name: none where none are to be read
    (evaluation, undistilled)."""

    def __init__(
        self,
        tokens: Rows,
        labels: LabelValues,
        features: Mapping[str, Features],
        names: Callable[[Indices], list[str]] = _numbers,
        weights: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """`names` gives descriptions of examples by index; `weights` [N] say how often each comes
        in the student's epochs; None: once."""
        self.tokens, self.names, self.weights = tokens, names, weights
        self.truncated = tokens.truncated
        self.labels = torch.tensor(labels)  # a copy: Arrow's memory may not be written to
        if self.labels.is_floating_point():
            self.labels = self.labels.float()
        self.features = dict(features)
        self.apart = False
        """If true, features are fetched separately, by index."""
        self.processes = ALONE
        """Processes that share the batches."""
        self.answers: AllAnswers | None = None
        """Teachers' answers that an evaluation on these examples compares with the student's."""
        self.seconds = 0.0
        """Seconds spent waiting for batches."""
        self.replayed: set[str] = set()
        """Sources that are read ahead of the student's steps, for a frozen aligner."""
        self.draws: Mapping[str, int] = {}
        """Negatives to draw for each batch, by source."""
        self.draw_seed = 0
        self._resident: dict[str, torch.Tensor] = {}
        self._streamed: str | None = None
        self._blocks: BlockOrder | None = None
        self._ahead: ReadAhead | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        started = time.perf_counter()
        batch = self._batch(np.asarray(indices, dtype=np.int64))
        self.seconds += time.perf_counter() - started
        return batch

    def expect(self, indices: Indices | None) -> None:
        """Called with the batch after the next one; None: none."""

    def _batch(self, whole: Indices) -> Batch:
        chosen = self.processes.share(whole)
        batch: Batch = {**self.tokens.pad(chosen), "indices": whole}
        batch["masked"] = needs_mask(batch)
        if self.apart:
            return batch | {"labels": self.labels_of(chosen)}
        batch |= self.aligner_batch(chosen)
        return batch | ({"negatives": self.negatives_of(whole)} if self.draws else {})

    @property
    def reads_cache(self) -> bool:
        """Whether something of a cache is in its batches."""
        return bool(self.features)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example [N]."""
        return np.diff(self.tokens.offsets)

    def aligner_batch(self, indices: Indices) -> Batch:
        """Labels and features alone: all that an aligner sees."""
        batch: Batch = {"labels": self.labels_of(indices)}
        if self.features:
            batch["features"] = self.all_features_of(indices)
        return batch

    def all_features_of(self, indices: Indices) -> dict[str, torch.Tensor]:
        """The features of examples from all sources, by name."""
        return {source: self.features_of(indices, source) for source in self.features}

    def features_of(self, indices: Indices, source: str) -> torch.Tensor:
        """The features of examples [B, *shape] from a source, as stored, on their device."""
        resident = self._resident.get(source)
        if resident is not None:
            chosen = to_device(torch.from_numpy(indices), resident.device)
            return resident.index_select(0, chosen)
        if self._ahead is not None:
            self._ahead.start()
        return torch.from_numpy(self.features[source](indices))

    def negatives_of(self, whole: Indices) -> dict[str, Negatives]:
        """Negatives of a whole batch, by source: the same in all processes."""
        found = {}
        for source, count in self.draws.items():
            rows = self.features[source].rows
            drawn = draw(rows, whole, count, self.draw_seed, source)
            features, labels = self.features_of(drawn, source), self.labels_of(drawn)
            found[source] = Negatives(features, labels)
        return found

    def repeats(self, indices: Indices) -> dict[str, Indices]:
        """A number for each example's text [B], of those sources of which a batch has a text more
        than once: the row of its cache, -1 without a feature."""
        found = {
            source: np.asarray(features.rows)[indices] for source, features in self.features.items()
        }
        return {source: rows for source, rows in found.items() if _repeats(rows[rows >= 0])}

    def has_answers(self, indices: Indices) -> dict[str, npt.NDArray[np.bool_]]:
        """Which examples [B] have features, of those sources that lack some of them."""
        found = {source: features.has(indices) for source, features in self.features.items()}
        return {source: each for source, each in found.items() if not each.all()}

    def has(self, source: str, indices: Indices) -> npt.NDArray[np.bool_]:
        """Which examples [B] have features of a source."""
        return self.features[source].has(indices)

    def labels_of(self, indices: Indices) -> torch.Tensor:
        """The labels of examples [B]."""
        return self.labels[torch.from_numpy(indices)]

    def keep_on(self, device: torch.device, sources: Collection[str]) -> None:
        """Move the features of some sources to a device; from now on all are fetched separately
        from batches."""
        for source in sources:
            features = self.features[source]
            order = np.argsort(features.file_order())
            step = max(1, _COPIED_BYTES * len(order) // max(1, features.bytes))
            for start in range(0, len(order), step):
                indices = order[start : start + step]
                rows = torch.from_numpy(features(indices))
                if source not in self._resident:
                    whole = rows.new_empty(len(order), *rows.shape[1:], device=device)
                    self._resident[source] = whole
                self._resident[source][torch.from_numpy(indices).to(device)] = rows.to(device)
            self.apart = True

    def follow_shards(self, source: str) -> None:
        """From now on, epochs follow the shards of a source."""
        features = self.features[source]
        self._blocks = BlockOrder(features.file_order(), BLOCK_ROWS, BLOCKS_PER_WINDOW)
        self._ahead, self._streamed = ReadAhead(features.will_need), source

    def streams(self, source: str) -> bool:
        """Whether epochs follow the shards of this source."""
        return source == self._streamed

    @property
    def streams_to_steps(self) -> bool:
        """Whether streamed features are read batch by batch by the student."""
        return self._streamed is not None and self._streamed not in self.replayed

    @property
    def window_rows(self) -> int | None:
        """Blocks of contiguous examples that are read ahead of use; None without streaming."""
        return None if self._blocks is None else BLOCK_ROWS * BLOCKS_PER_WINDOW

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        stream: int = 0,
        read_ahead: bool = True,
        source: str | None = None,
    ) -> Iterator[Indices]:
        """Every example of an epoch once, or those with a feature of `source`: batches of indices,
        the last one maybe smaller. With weights, so many draws, for the student's batches alone,
        those of stream 0.

        `read_ahead` is for the reader of these batches' features."""
        if self.weights is not None and stream == 0:
            windows = iter([weighted_order(self.weights, seed, epoch)])
        elif self._blocks is None or self._ahead is None:
            windows = iter([epoch_order(len(self), seed, epoch, stream)])
        else:
            windows = self._blocks.windows(seed, epoch, stream)
            windows = self._ahead.planned(windows) if read_ahead else windows
        if source is not None:
            has = self.features[source].has
            windows = (window[has(window)] for window in windows)
        return batches_of(windows, batch_size)


def _repeats(rows: npt.NDArray[np.int64]) -> bool:
    return len(set(rows.tolist())) < len(rows)


def as_batch(batch: Any) -> Batch:
    """The collating function: the dataset has joined the examples already."""
    assert isinstance(batch, dict)
    return batch


class EpochBatches(Sampler[list[int]]):
    """A student's batches, the last of an epoch maybe smaller. `set_epoch` chooses the epoch."""

    def __init__(
        self, dataset: DistillDataset, batch_size: int, seed: int, group_by_length: bool = False
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
        batches = self.of(self._epoch, read_ahead=self._dataset.streams_to_steps)
        for indices, following in pairwise(chain(batches, [None])):
            assert indices is not None
            self._dataset.expect(following)
            yield indices.tolist()

    def of(self, epoch: int, read_ahead: bool = True) -> Iterator[Indices]:
        """The batches of an epoch; `read_ahead` is for the reader of their features."""
        batches = self._dataset.batches(self.batch_size, self._seed, epoch, read_ahead=read_ahead)
        if not self._group:
            return batches
        # Of streamed features, no more than is read ahead.
        most = GROUPED_BATCHES * self.batch_size
        rows = min(self._dataset.window_rows or most, most)
        group = max(1, rows // self.batch_size)
        return grouped_by_length(batches, self._dataset.lengths, self._seed, epoch, group)
