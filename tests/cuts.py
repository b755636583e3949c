"""Runs that are interrupted at a step of their own choosing."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from armada.pipeline.run_folder import append_log
from armada.stages.distill.checkpoints import steps_done
from armada.stages.distill.training import Run, train

Losses = dict[int, float]


def cut_at(step: int) -> Any:
    """A log that stands for Ctrl-C at a step."""

    def append(folder: Path, row: Any) -> None:
        append_log(folder, row)
        if row["step"] == step:
            raise KeyboardInterrupt

    return append


class CutError(Exception):
    """Stands for whatever ends a run early."""


def go(run: Run, cut_at: int | None = None) -> Losses:
    """Train to the end, or to a step; the loss of each step."""
    losses: Losses = {}
    steps = steps_done(run.folder)

    def log(row: dict[str, float]) -> None:
        if "loss" in row:
            losses[int(row["step"])] = row["loss"]

    def advance(count: int) -> None:
        nonlocal steps
        steps += count
        if steps == cut_at:
            raise CutError

    run = dataclasses.replace(run, on_log=log, on_step=advance)
    if cut_at is None:
        train(run)
    else:
        with pytest.raises(CutError):
            train(run)
    return losses


def assert_same_weights(one: Run, other: Run) -> None:
    expected = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def spoil_generators() -> None:
    """What else ran in the process before must not matter."""
    torch.manual_seed(1234)
    torch.rand(7)
