"""Three ways to train the same student, a step at a time, each with its time split into parts.

plain            fine-tuning: no teacher
armada           the full objective, as `armada distill` runs it
straightforward  the full objective as the paper's schedule says it: a file for each example, the
                 aligner asked in every step, every term of the loss on its own

All have the same batches of tokens, the same optimizer and clipping. Nothing is logged.
"""

import time
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from armada.stages.distill import closed_forms, losses
from armada.stages.distill.batches import Batch, DistillDataset, EpochBatches
from armada.stages.distill.model import DistillModel
from armada.stages.distill.objectives.armada import ArmadaObjective
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.optimizers import adamw, parameter_groups
from armada.stages.distill.schedules import Replay, freeze
from torch import Tensor

from .material import Material, Size

Indices = npt.NDArray[np.int64]
PARTS = ("data", "aligner", "step")


class Loop:
    """A student that trains without a teacher."""

    name = "plain"
    objective = "undistilled"

    def __init__(
        self, material: Material, size: Size, batch_size: int, device: torch.device
    ) -> None:
        self.material, self.batch_size, self.device = material, batch_size, device
        self.model: DistillModel = material.model(size, self.objective).to(device).train()
        self.dataset: DistillDataset = material.dataset(size, self.objective != "undistilled")
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.prepare()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = adamw(parameter_groups(trained, 2e-5, 0.01))
        self._trained = trained
        self._order = self._batches()

    def prepare(self) -> None:
        """Before the first epoch."""

    def begin(self, epoch: int) -> None:
        """Before each epoch."""

    def _batches(self) -> Iterator[Indices]:
        for epoch in count():
            self.begin(epoch)
            batches = self.dataset.batches(self.batch_size, 0, epoch)
            yield from (batch for batch in batches if len(batch) == self.batch_size)

    def data(self, indices: Indices) -> Batch:
        """The batch, on the device."""
        batch = self.dataset.__getitems__(indices.tolist())
        del batch["indices"]
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def teacher(self, batch: Batch, indices: Indices) -> None:
        """The teacher's side of a batch."""

    def loss(self, batch: Batch) -> Tensor:
        """The total to backpropagate."""
        total: Tensor = self.model(**batch)["loss"]
        return total

    def step(self) -> float:
        """One step; returns its seconds."""
        indices = next(self._order)
        started = self._now()
        batch = self.data(indices)
        data = self._now()
        self.teacher(batch, indices)
        aligner = self._now()
        self.loss(batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        ended = self._now()
        moments = (started, data, aligner, ended)
        for part, begin, end in zip(PARTS, moments[:-1], moments[1:], strict=True):
            self.seconds[part] += end - begin
        return ended - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class ArmadaLoop(Loop):
    """With a teacher, as `armada distill` does it."""

    name = "armada"
    objective = "armada"

    def prepare(self) -> None:
        objective = _objective(self.model)
        freeze(objective.aligner)
        batches = EpochBatches(self.dataset, self.batch_size, 0)
        self._replay = Replay(objective, self.dataset, batches)

    def begin(self, epoch: int) -> None:
        self._replay.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)

    def teacher(self, batch: Batch, indices: Indices) -> None:
        batch["features"] = {self._replay.name: self._replay.answers(indices)}


class StraightforwardLoop(Loop):
    """With a teacher, as the paper's schedule says."""

    name = "straightforward"
    objective = "armada"

    def prepare(self) -> None:
        freeze(_objective(self.model).aligner)
        self.dataset.features = {}
        self.dataset.apart = True

    def data(self, indices: Indices) -> Batch:
        return super().data(indices) | {
            "features": {SOURCE: self.material.from_files(indices).to(self.device)}
        }

    def teacher(self, batch: Batch, indices: Indices) -> None:
        batch["features"] = {SOURCE: _objective(self.model).read(batch["features"][SOURCE])}

    def loss(self, batch: Batch) -> Tensor:
        with patch.object(closed_forms, "armada_loss", losses.armada_loss):
            return super().loss(batch)


def _objective(model: DistillModel) -> ArmadaObjective:
    assert isinstance(model.objective, ArmadaObjective)
    return model.objective


LOOPS = (Loop, ArmadaLoop, StraightforwardLoop)
