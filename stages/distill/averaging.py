"""Averages of the weights of many steps, which are evaluated, kept and exported in place of the
last ones.

    mean  W̄ = (W_1 + ... + W_n) / n     (SWA, Izmailov et al., arXiv 1803.05407)
    ema   W̄ <- d · W̄ + (1 - d) · W      begins with the first W of the average

W are the weights after a step, of everything that trains beside the student, too. With `mean` over
every step of the last part of a run, it is what Weight Averaging Improves Knowledge Distillation
under Domain Shift (arXiv 2305.12519) found best for distilled students. Nothing is drawn: a step
costs one more pass over the weights, an evaluation is made twice, of both. Students have no batch
statistics that would have to be computed anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback

from .settings import TrainingSettings

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]

STATE_FILE = "averaged_weights.safetensors"
"""Averages in a checkpoint, in the order of the model's parameters that train."""
AVERAGED_STEPS = "averaged_steps"
"""Metric: number of steps in the average that was evaluated."""
UNAVERAGED = "unaveraged"
"""Prefix of the metrics of the weights of the last step."""

DEFAULT_DECAY = 0.999
DEFAULT_MEAN_FROM = 0.75


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """The average of the weights of a model that train, over the steps of a run."""

    def __init__(
        self, model: nn.Module, settings: TrainingSettings, resume_from: Path | None
    ) -> None:
        """`settings.average` is set."""
        ema = settings.average == "ema"
        self._own = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        decay = settings.average_decay or DEFAULT_DECAY
        update = get_ema_multi_avg_fn(decay) if ema else self._add  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._own, multi_avg_fn=update)
        begins = settings.average_from
        self._from = (0.0 if ema else DEFAULT_MEAN_FROM) if begins is None else begins
        self._every = settings.average_every or 1
        self._resume_from = resume_from

    @property
    def steps(self) -> int:
        """Number of steps in the average."""
        return int(self._average.n_averaged)

    def _add(self, averages: Tensors, weights: Tensors, _: Any) -> None:
        # torch's own reads the count, which it moves to the device, back for a number.
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 / (self.steps + 1))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restores the average when training resumes."""
        if self._resume_from is not None:
            self._average.load_state_dict(load_file(self._resume_from / STATE_FILE))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Adds the weights after a step; those after the last one always count."""
        left = state.max_steps - state.global_step
        if state.global_step / state.max_steps >= self._from and left % self._every == 0:
            self._average.update_parameters(self._own)

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint of the trainer."""
        state = self._average.state_dict()
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, folder / STATE_FILE
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in place of the model's weights, which are there again afterwards."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the model's weights."""
        for own, average in zip(self._own, self._average.module.parameters(), strict=True):
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)
