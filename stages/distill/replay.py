"""The frozen aligner's answers, worked out for many batches of an epoch at a time and handed out
batch by batch.

    aligner's pass (schedules.py) -> on_epoch_begin -> answers, answers, ...

The aligner sees cached features and nothing else, so between two of its own passes its answers to
an epoch's batches are known before the student asks: a few large matrix products stand for a small
forward pass in every step, and one gather for many. The next batches follow from (seed, epoch), so
nobody has to announce them. What is kept is one window of answers.
"""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from .aligner import AlignerAnswers
from .batches import DistillDataset
from .objectives.base import AlignedObjective
from .order import Places
from .placement import to_device
from .sampler import EpochBatches

WINDOW_ROWS = 1024
"""Matrix products are as fast as they get, and answers of 1024 numbers take 4 MiB."""


class Replay(TrainerCallback):  # type: ignore[misc]
    """Answers of an objective's aligner to this process's share of the batches of a data set's
    epochs, in their order. `name` is under which they stand among a batch's sources."""

    def __init__(
        self, objective: AlignedObjective, dataset: DistillDataset, batches: EpochBatches
    ) -> None:
        dataset.apart = True
        self.name, (self.source,) = objective.answers_name, objective.sources
        dataset.replayed.add(self.source)
        self._objective, self._dataset, self._batches = objective, dataset, batches
        self._coming: Iterator[Places] = iter(())
        self._window: Iterator[AlignerAnswers] = iter(())
        self._left = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From now on the batches of this epoch are asked for; the aligner may have changed."""
        self._coming = self._batches.of(int(state.epoch or 0), self._dataset.streams(self.source))
        self._left = 0

    def answers(self, places: Places) -> AlignerAnswers:
        """To one batch; batches before it that nobody asked for are passed over."""
        if not self._left:
            self._work_out(places)
        self._left -= 1
        return next(self._window)

    def _work_out(self, places: Places) -> None:
        """The answers to this batch and to those that come next."""
        if not any(np.array_equal(batch, places) for batch in self._coming):
            raise AssertionError("this is none of the batches that are left of the epoch")
        share = self._dataset.processes.share
        following = max(1, WINDOW_ROWS // len(share(places))) - 1
        window = [share(batch) for batch in (places, *islice(self._coming, following))]
        sizes = [len(batch) for batch in window]
        started = time.perf_counter()
        features = self._dataset.features_of(np.concatenate(window), self.source)
        # What a batch would have spent on them itself.
        self._dataset.seconds += time.perf_counter() - started
        device = next(self._objective.parameters()).device
        found = self._objective.read(to_device(features, device))
        parts = zip(*(torch.split(part, sizes) for part in found), strict=True)
        self._window, self._left = (AlignerAnswers(*part) for part in parts), len(window)
