"""Logging to experiment trackers during a run.

TensorBoard's files are in the run's folder. The others are transformers' own callbacks: destination
and user are set by their environment variables (WANDB_MODE, MLFLOW_TRACKING_URI). A tracker that
cannot start stops the run before its first step; one that fails later is reported once, and the run
continues: its log is in `log.jsonl` in any case.
"""

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from ...cache_schemas.errors import JobError, RunError
from ..pretrained import one_line
from ..store.files.atomic import make_folders
from .settings import Reporter, TrainingSettings

TENSORBOARD = "tensorboard"

_LOGGER = logging.getLogger(__name__)


def check_reporters(settings: TrainingSettings) -> None:
    """Raise JobError unless the package of each tracker is installed."""
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise JobError(
                f"job key 'report_to': {name} is not installed; `pip install {name}`, or leave it "
                "out"
            )


def reporters(settings: TrainingSettings, folder: Path) -> list[TrainerCallback]:
    """Callbacks of the trackers; every tracker gets every logged row."""
    return [
        _tensorboard(folder) if name == TENSORBOARD else _Tracker(name)
        for name in settings.report_to
    ]


def _tensorboard(folder: Path) -> TensorBoardCallback:
    from torch.utils.tensorboard import SummaryWriter

    make_folders(folder / TENSORBOARD)
    return TensorBoardCallback(SummaryWriter(str(folder / TENSORBOARD)))


class _Tracker(TrainerCallback):  # type: ignore[misc]
    """A callback of transformers', whose failures are those of its service."""

    def __init__(self, name: Reporter) -> None:
        self._name, self._lost = name, False
        self._callback = _CALLBACKS[name]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        try:
            self._callback.on_train_begin(args, state, control, **others)
        except Exception as cause:  # a service and its package may raise anything
            raise RunError(
                f"report_to: {self._name} cannot start: {one_line(cause)}; fix that, or leave it "
                "out, and continue with resume=true"
            ) from cause

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._tell("on_log", args, state, control, **others)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._tell("on_save", args, state, control, **others)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._tell("on_train_end", args, state, control, **others)

    def _tell(self, event: str, *given: Any, **others: Any) -> None:
        if self._lost:
            return
        try:
            getattr(self._callback, event)(*given, **others)
        except Exception as cause:
            self._lost = True
            _LOGGER.warning(f"report_to: {self._name} stopped logging: {one_line(cause)}")


class _OneWandbRun(WandbCallback):  # type: ignore[misc]
    """Ends the run that it began, or the next seed would be logged as more of this one."""

    def on_train_begin(self, *given: Any, **others: Any) -> None:
        self._began = self._wandb.run is None
        super().on_train_begin(*given, **others)

    def on_train_end(self, *given: Any, **others: Any) -> None:
        super().on_train_end(*given, **others)
        if self._began:
            self._wandb.finish()


_CALLBACKS: Mapping[Reporter, type[TrainerCallback]] = {
    "wandb": _OneWandbRun,
    "mlflow": MLflowCallback,
    "trackio": TrackioCallback,
}
