"""The aligner's own pass over an epoch, as `armada distill` makes it before the student's.

A few batches of it are timed: with features of 1024 numbers one takes a second.
"""

import time
from types import SimpleNamespace

import torch
from armada.stages.distill.objectives.armada import ArmadaObjective
from armada.stages.distill.schedules import AlternateSchedule
from armada.stages.distill.settings import TrainingSettings

from .material import Material, Size

BATCHES, REPEATS = 2, 3


def aligner_seconds(
    material: Material, size: Size, batch_size: int, orthogonal_map: str, device: torch.device
) -> float:
    """Median seconds an example."""
    model = material.model(size, "armada", orthogonal_map=orthogonal_map).to(device)
    objective, settings = model.objective, TrainingSettings()
    assert isinstance(objective, ArmadaObjective)
    examples = min(len(material.texts), BATCHES * batch_size)
    schedule = AlternateSchedule(
        objective,
        material.dataset(size, with_features=True, count=examples),
        batch_size=batch_size,
        learning_rate=settings.aligner_learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=0,
        resume_from=None,
    )
    seconds = []
    for epoch in range(REPEATS):
        started = time.perf_counter()
        schedule.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2] / examples
