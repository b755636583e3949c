"""What holds on a GPU only; skipped where there is none."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from armada.stages.distill.timing import StepTimes
from tiny_runs import Bench, freeze_dropout, train_logged

pytestmark = pytest.mark.gpu

WARM = 8
"""Steps in which kernels are compiled and memory is set aside."""


@pytest.fixture(autouse=True)
def _waiting_is_allowed_again() -> Iterator[None]:
    """After a step that waited, too: it ends before its end is noted."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("placement", ["mapped", "resident"])
@pytest.mark.parametrize("objective", ["armada", "feature", "kd"])
def test_no_step_waits_for_the_device(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, placement: str
) -> None:
    begin, end = StepTimes.on_step_begin, StepTimes.on_step_end
    watched: list[int] = []

    def begin_watching(times: StepTimes, args: Any, state: Any, control: Any, **rest: Any) -> None:
        begin(times, args, state, control, **rest)
        if state.global_step >= WARM:
            torch.cuda.set_sync_debug_mode("error")

    def end_watching(times: StepTimes, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if torch.cuda.get_sync_debug_mode():
            watched.append(state.global_step)
        torch.cuda.set_sync_debug_mode("default")
        end(times, args, state, control, **rest)

    monkeypatch.setattr(StepTimes, "on_step_begin", begin_watching)
    monkeypatch.setattr(StepTimes, "on_step_end", end_watching)
    how = {"objective": objective, "placement": placement, "precision": "bf16"}
    run = bench.run(tmp_path, epochs=3, batch_size=8, logging_steps=1000, validate=False, **how)
    train_logged(replace(run, device=torch.device("cuda")))
    assert len(watched) == 21 - WARM


def test_losses_are_those_of_the_cpu(bench: Bench, tmp_path: Path) -> None:
    student = freeze_dropout(Path(shutil.copytree(bench.student, tmp_path / "bert")))
    still = Bench(student, bench.cache)
    how = {"dropout": 0.0, "epochs": 1, "batch_size": 8, "validate": False}
    expected = train_logged(still.run(tmp_path / "cpu", **how))[1]
    run = still.run(tmp_path / "cuda", **how)
    found = train_logged(replace(run, device=torch.device("cuda")))[1]
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(bench: Bench, tmp_path: Path) -> None:
    """Deterministic attention and products, so to the last bit."""
    on_gpu = {"device": torch.device("cuda")}
    how = {"epochs": 2, "batch_size": 8, "validate": False, "deterministic": True}
    whole = train_logged(replace(bench.run(tmp_path / "whole", **how), **on_gpu))[1]
    half = bench.run(tmp_path / "half", **how | {"epochs": 1})
    begun = train_logged(replace(half, **on_gpu))[1]
    resumed = train_logged(replace(bench.run(tmp_path / "half", **how), **on_gpu))[1]
    assert begun + resumed == whole
