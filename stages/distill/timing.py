"""How long steps took, as seen from outside the model."""

import time
from typing import Any

import numpy as np
from transformers import TrainerCallback

WARM_UP_STEPS = 3


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """Seconds from batch to weights of each step, and of what comes before an epoch's first."""

    def __init__(self) -> None:
        self.epoch_start_seconds = 0.0
        self._seconds: list[float] = []
        self._epoch_started: float | None = None
        self._previous = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Registered before the schedule, so that the aligner's pass falls after this moment.
        self._epoch_started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        if self._epoch_started is not None:
            self.epoch_start_seconds += now - self._epoch_started
            self._epoch_started = None
        self._previous = now

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds.append(time.perf_counter() - self._previous)

    def summary(self) -> dict[str, float]:
        """Median and 90th percentile after warm-up; all steps if there were fewer."""
        counted = self._seconds[WARM_UP_STEPS:] or self._seconds
        if not counted:
            return {}
        return {
            "median": float(np.median(counted)),
            "p90": float(np.percentile(counted, 90)),
        }
