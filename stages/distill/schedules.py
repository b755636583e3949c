"""Schedules of aligner and student.

alternate  Before each epoch of the student, one pass over the cached features trains the aligner
           alone; then it is frozen, in eval mode. The reference's schedule.
joint      One pass: aligner and student step together; the student sees detached aligner outputs.

An objective without an aligner has nothing to schedule. While an aligner is frozen, its outputs are
computed ahead (`Replay`).
"""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from .aligner import AlignerAnswers
from .batches import Batch, DistillDataset, EpochBatches
from .finite import aligner_error
from .objectives.base import AlignedObjective, freeze
from .optimizers import adamw, parameter_groups
from .order import Indices
from .placement import to_device

STATE_FILE = "aligner_optimizer.safetensors"
"""State file in a checkpoint; of further aligners of a run `aligner_optimizer.1.safetensors` and so
on."""
ALIGNER_STREAM = 1


class AlternateSchedule(TrainerCallback):  # type: ignore[misc]
    """Trains the aligner at the start of each epoch; keeps its optimizer in the checkpoints."""

    def __init__(
        self,
        objective: AlignedObjective,
        dataset: DistillDataset,
        *,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        max_grad_norm: float,
        seed: int,
        resume_from: Path | None,
        number: int = 0,
    ) -> None:
        """`number`: which aligner of the run it is."""
        self._objective, self._dataset = objective, dataset
        self._batch_size, self._max_grad_norm, self._seed = batch_size, max_grad_norm, seed
        self._resume_from, self._number = resume_from, number
        (self._source,) = objective.sources
        self._epochs_done = 0
        self.loss: float | None = None
        """Mean loss of the aligner in its last pass."""
        self._optimizer = adamw(
            parameter_groups(objective.aligner.parameters(), learning_rate, weight_decay)
        )
        freeze(objective.aligner)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restores the optimizer when training resumes; the weights are the trainer's to load."""
        if self._resume_from is not None:
            notes = _load_optimizer(self._optimizer, self._resume_from / self._state_file)
            self._epochs_done, self.loss = int(notes["epochs_done"]), float(notes["loss"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One pass of the aligner, unless a resumed epoch has had it."""
        epoch = int(state.epoch or 0)
        if epoch >= self._epochs_done:
            self._train(epoch)
            self._epochs_done = epoch + 1

    def save(self, folder: Path) -> None:
        """Write the optimizer into a checkpoint of the trainer."""
        notes = {"epochs_done": str(self._epochs_done), "loss": repr(self.loss)}
        _save_optimizer(self._optimizer, notes, folder / self._state_file)

    @property
    def term(self) -> str:
        """Name of its loss in logs."""
        return f"{self._objective.label}.aligner".lstrip(".")

    @property
    def _state_file(self) -> str:
        return f"{Path(STATE_FILE).stem}.{self._number}.safetensors" if self._number else STATE_FILE

    def _train(self, epoch: int) -> None:
        aligner = self._objective.aligner
        # Its own random numbers: those of the student, and so a resumed run, stay as they were.
        device = next(aligner.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(self._seed, epoch, self._number))
            aligner.train().requires_grad_(True)
            losses = [self._step(aligner, batch) for batch in self._batches(epoch)]
            self.loss = torch.stack(losses).mean().item()
        if not math.isfinite(self.loss):
            raise aligner_error(self.loss, epoch, self._dataset, self._order(epoch))
        # Gradients left behind would count when the student's are clipped.
        self._optimizer.zero_grad()
        freeze(aligner)
        # All processes made the same steps; should their devices round differently, one counts.
        self._dataset.processes.agree([parameter.data for parameter in aligner.parameters()])

    def _batches(self, epoch: int) -> Iterator[Batch]:
        device = next(self._objective.parameters()).device
        for indices in self._order(epoch):
            feature = self._dataset.features_of(indices, self._source)
            labels = self._dataset.labels_of(indices)
            yield {"feature": to_device(feature, device), "labels": to_device(labels, device)}

    def _order(self, epoch: int) -> Iterator[Indices]:
        streams = self._dataset.streams(self._source)
        return self._dataset.batches(
            self._batch_size, self._seed, epoch, ALIGNER_STREAM, streams, self._source
        )

    def _step(self, aligner: nn.Module, batch: Batch) -> torch.Tensor:
        self._optimizer.zero_grad()
        loss = self._objective.aligner_loss(batch["feature"], batch["labels"])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(aligner.parameters(), self._max_grad_norm)
        self._optimizer.step()
        return loss.detach()


def _seed(seed: int, epoch: int, number: int) -> int:
    entropy = [seed, epoch, ALIGNER_STREAM, *([number] if number else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _save_optimizer(optimizer: torch.optim.Optimizer, notes: dict[str, str], file: Path) -> None:
    tensors = {
        f"{parameter}.{name}": tensor.contiguous()
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, tensor in values.items()
    }
    save_file(tensors, file, metadata=notes)


def _load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> dict[str, str]:
    from safetensors import safe_open

    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


# --- The frozen aligner's outputs, computed for many batches of an epoch at a time and handed
# out batch by batch.
#
#     aligner's pass (schedules.py) -> on_epoch_begin -> answers, answers, ...
#
# The aligner sees cached features and nothing else, so between two of its own passes its outputs
# for an epoch's batches are known before the student needs them: a few large matrix products
# replace a small forward pass in every step, and one gather replaces many. The next batches follow
# from (seed, epoch), so they need not be announced. One window of outputs is kept.

WINDOW_ROWS = 1024
"""Matrix products are at full speed, and outputs of 1024 numbers take 4 MiB."""


class Replay(TrainerCallback):  # type: ignore[misc]
    """Outputs of an objective's aligner for this process's share of the batches of a dataset's
    epochs, in their order. `name` is their name among a batch's sources."""

    def __init__(
        self, objective: AlignedObjective, dataset: DistillDataset, batches: EpochBatches
    ) -> None:
        dataset.apart = True
        self.name, (self.source,) = objective.answers_name, objective.sources
        dataset.replayed.add(self.source)
        self._objective, self._dataset, self._batches = objective, dataset, batches
        self._coming: Iterator[Indices] = iter(())
        self._window: Iterator[AlignerAnswers] = iter(())
        self._left = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start an epoch, whose batches are requested next; the aligner may have changed."""
        self._coming = self._batches.of(int(state.epoch or 0), self._dataset.streams(self.source))
        self._left = 0
        # What a frozen aligner works out once and keeps, such as its map, waits for the device.
        shape, weight = self._objective.sizes.feature_shape, next(self._objective.parameters())
        assert shape is not None
        self._objective.read(weight.new_zeros(1, *shape))

    def answers(self, indices: Indices) -> AlignerAnswers:
        """Outputs for one batch; batches before it that were not requested are skipped."""
        if not self._left:
            self._work_out(indices)
        self._left -= 1
        return next(self._window)

    def _work_out(self, indices: Indices) -> None:
        """The outputs for this batch and the next ones."""
        if not any(np.array_equal(batch, indices) for batch in self._coming):
            raise AssertionError("this is none of the batches that are left of the epoch")
        share = self._dataset.processes.share
        following = max(1, WINDOW_ROWS // len(share(indices))) - 1
        window = [share(batch) for batch in (indices, *islice(self._coming, following))]
        sizes = [len(batch) for batch in window]
        started = time.perf_counter()
        features = self._dataset.features_of(np.concatenate(window), self.source)
        # What a batch would have spent on them itself.
        self._dataset.seconds += time.perf_counter() - started
        device = next(self._objective.parameters()).device
        found = self._objective.read(to_device(features, device))
        parts = zip(*(torch.split(part, sizes) for part in found), strict=True)
        self._window, self._left = (AlignerAnswers(*part) for part in parts), len(window)
