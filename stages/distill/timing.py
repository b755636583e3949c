"""Seconds of training and of its steps.

The time of earlier processes of a run, up to the checkpoint that was resumed from, is kept in that
checkpoint and counted; work beyond it is lost, and so are its seconds.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

WARM_UP_STEPS = 3

Moment = float | torch.cuda.Event
"""On a GPU, one in the device's own time: the host runs ahead of it."""


class StepTimes(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Seconds from batch to weights of each step, and of what comes before an epoch's first."""

    def __init__(self, device: torch.device, data_seconds: Callable[[], float]) -> None:
        """`data_seconds`: what this process has spent until now on making batches."""
        self._data_seconds = data_seconds
        self._aligner_seconds = 0.0
        self._before: dict[str, float] = {}
        self._began: float | None = None
        self._ended: float | None = None
        self._on_gpu = device.type == "cuda"
        self._steps: list[tuple[Moment, Moment]] = []
        self._epoch_started: float | None = None
        self._previous: Moment = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()
        # A checkpoint of an older version has no entry, and the trainer saves into the same file.
        kept = state.stateful_callbacks.setdefault(type(self).__name__, {})
        self._before = kept.get("attributes", {})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ended = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """`train_seconds`, and of these `aligner_seconds` (before an epoch's first step) and
        `data_seconds`, of the run: this process and those whose checkpoints it resumes from."""
        now = self._ended or time.perf_counter()
        here = {
            "train_seconds": 0.0 if self._began is None else now - self._began,
            "aligner_seconds": self._aligner_seconds,
            "data_seconds": self._data_seconds(),
        }
        return {name: self._before.get(name, 0.0) + value for name, value in here.items()}

    def state(self) -> dict[str, Any]:
        """State in a checkpoint."""
        return {"args": {}, "attributes": self.seconds()}

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Registered before the schedule, so that the aligner's pass falls after this moment.
        self._epoch_started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._epoch_started is not None:
            self._aligner_seconds += time.perf_counter() - self._epoch_started
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
