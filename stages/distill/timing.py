"""How long steps took, as seen from outside the model."""

import time
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

WARM_UP_STEPS = 3

Moment = float | torch.cuda.Event
"""On a GPU, one in the device's own time: the host runs ahead of it."""


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """Seconds from batch to weights of each step, and of what comes before an epoch's first."""

    def __init__(self, device: torch.device) -> None:
        self.epoch_start_seconds = 0.0
        self._on_gpu = device.type == "cuda"
        self._steps: list[tuple[Moment, Moment]] = []
        self._epoch_started: float | None = None
        self._previous: Moment = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Registered before the schedule, so that the aligner's pass falls after this moment.
        self._epoch_started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._epoch_started is not None:
            self.epoch_start_seconds += time.perf_counter() - self._epoch_started
            self._epoch_started = None
        self._previous = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._steps.append((self._previous, self._now()))

    def _now(self) -> Moment:
        if not self._on_gpu:
            return time.perf_counter()
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def summary(self) -> dict[str, float]:
        """Median and 90th percentile after warm-up; all steps if there were fewer."""
        if self._on_gpu:
            torch.cuda.synchronize()
        counted = [_seconds(*step) for step in self._steps[WARM_UP_STEPS:] or self._steps]
        if not counted:
            return {}
        return {
            "median": float(np.median(counted)),
            "p90": float(np.percentile(counted, 90)),
        }


def _seconds(began: Moment, ended: Moment) -> float:
    if isinstance(began, torch.cuda.Event):
        return float(began.elapsed_time(ended)) / 1e3  # type: ignore[arg-type]
    return float(ended) - began  # type: ignore[arg-type]
