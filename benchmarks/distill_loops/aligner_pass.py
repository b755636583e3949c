"""The aligner's own pass over an epoch, as `armada distill` makes it before the student's, and with
the orthogonal matrix worked out in every step, as torch's parametrization does it.

A pass over all examples goes before, so that the map has turned as far as it does in training.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from armada.stages.distill.aligner import ProjectionHead
from armada.stages.distill.objectives.armada import ArmadaObjective
from armada.stages.distill.schedules import AlternateSchedule
from armada.stages.distill.settings import TrainingSettings
from torch import Tensor

from .material import Material, Size

WARM_BATCH, REPEATS = 32, 5
FEW_BATCHES, MORE_BATCHES = 1, 8


class AlignerPass:
    """An aligner with a map of some kind, in training."""

    def __init__(
        self, material: Material, size: Size, orthogonal_map: str, device: torch.device
    ) -> None:
        self._material, self._size, self._device = material, size, device
        model = material.model(size, "armada", orthogonal_map=orthogonal_map).to(device)
        assert isinstance(model.objective, ArmadaObjective)
        self._objective = model.objective
        self._train(WARM_BATCH, len(material.texts))

    def seconds(self, batch_size: int) -> tuple[float, float]:
        """Medians of an example's seconds: applied to batches, and with the matrix worked out; they
        take turns."""
        applied, worked_out = [], []
        for _ in range(REPEATS):
            applied.append(self._train(batch_size, MORE_BATCHES * batch_size))
            with matrix_in_every_step():
                worked_out.append(self._train(batch_size, FEW_BATCHES * batch_size))
        return median(applied), median(worked_out)

    def _train(self, batch_size: int, examples: int) -> float:
        count = min(examples, len(self._material.texts))
        settings = TrainingSettings()
        self._objective.aligner.requires_grad_(True)  # the pass before left it frozen
        schedule = AlternateSchedule(
            self._objective,
            self._material.dataset(self._size, with_features=True, count=count),
            batch_size=batch_size,
            learning_rate=settings.aligner_learning_rate,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=0,
            resume_from=None,
        )
        started = time.perf_counter()
        schedule.on_epoch_begin(None, SimpleNamespace(epoch=0), None)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count


@contextmanager
def matrix_in_every_step() -> Iterator[None]:
    """Heads multiply by their weight, which is worked out, with its graph, whenever it is asked."""

    def forward(head: ProjectionHead, input: Tensor) -> Tensor:
        return F.linear(input.to(head.weight.dtype), head.weight, head.bias)

    with patch.object(ProjectionHead, "forward", forward):
        yield
