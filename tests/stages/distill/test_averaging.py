"""Averaged weights: worked out once more in NumPy, evaluated, kept, cut and resumed."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.stages.distill.settings import TrainingSettings
from armada.stages.distill.training import Run, train
from cuts import assert_same_weights, go, spoil_generators
from pydantic import ValidationError
from tiny_runs import CLASSES, Bench, train_logged

pytestmark = pytest.mark.long

Weights = dict[str, npt.NDArray[np.float64]]
MEAN = {"average": "mean", "average_from": 0.5}
EMA = {"average": "ema", "average_decay": 0.7}


def trained(run: Run) -> Weights:
    named = run.model.named_parameters()
    return {n: p.detach().double().numpy().copy() for n, p in named if p.requires_grad}


def by_step(run: Run) -> list[Weights]:
    """Train; the weights after each step."""
    found: list[Weights] = []
    train(dataclasses.replace(run, on_step=lambda _: found.append(trained(run))))
    return found


def mean_of(steps: list[Weights], start: int, every: int = 1) -> Weights:
    chosen = steps[start - 1 :][::-every]
    return {name: np.mean([each[name] for each in chosen], axis=0) for name in steps[0]}


def ema_of(steps: list[Weights], start: int, decay: float) -> Weights:
    average = steps[start - 1]
    for step in steps[start:]:
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in average}
    return average


# 21 steps; 0.5 of them are 10.5, 0.75 are 15.75.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"average": "mean"}, lambda steps: mean_of(steps, 16), id="mean"),
        pytest.param(MEAN | {"average_every": 7}, lambda s: mean_of(s, 11, 7), id="by-epoch"),
        pytest.param({"average": "mean", "average_from": 0}, lambda s: mean_of(s, 1), id="all"),
        pytest.param(EMA, lambda steps: ema_of(steps, 1, 0.7), id="ema"),
        pytest.param(
            EMA | {"average_from": 2 / 3}, lambda steps: ema_of(steps, 14, 0.7), id="late-ema"
        ),
        pytest.param({"average": "ema"}, lambda steps: ema_of(steps, 1, 0.999), id="default-decay"),
        pytest.param(MEAN | {"lora_rank": 2}, lambda steps: mean_of(steps, 11), id="adapters"),
    ],
)
def test_the_student_is_the_average(
    bench: Bench,
    tmp_path: Path,
    settings: dict[str, Any],
    expected: Callable[[list[Weights]], Weights],
) -> None:
    run = bench.run(tmp_path, validate=False, objective="feature", **settings)
    frozen = {n: p.clone() for n, p in run.model.named_parameters() if not p.requires_grad}
    wanted = expected(by_step(run))
    got = trained(run)
    assert got.keys() == wanted.keys()
    assert any("projection" in name for name in got)
    for name, weight in wanted.items():
        np.testing.assert_allclose(got[name], weight, rtol=1e-5, atol=1e-7, err_msg=name)
    for name, weight in run.model.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])


def test_it_is_evaluated_and_kept_and_training_stays_as_it_was(
    bench: Bench, tmp_path: Path
) -> None:
    """Metrics of both; the aligner, which trains apart, is not averaged."""
    plain = bench.run(tmp_path / "plain", keep="last")
    averaged = bench.run(tmp_path / "averaged", keep="last", **MEAN)
    (figures, losses), (other, same) = train_logged(plain), train_logged(averaged)
    assert same == losses
    first, *late = other.epochs
    assert first == figures.epochs[0]
    assert [row["averaged_steps"] for row in late] == [4, 11]
    for row, before in zip(late, figures.epochs[1:], strict=True):
        names = before.keys() - {"step", "epoch"}
        assert {name: row[f"unaveraged_{name}"] for name in names} == {n: before[n] for n in names}
        assert row["loss"] != before["loss"]
    aligners = [run.model.objective.aligner for run in (plain, averaged)]
    for one, two in zip(*(each.parameters() for each in aligners if each), strict=True):
        assert torch.equal(one, two)


def test_an_epoch_before_the_average_is_not_the_best(bench: Bench, tmp_path: Path) -> None:
    """Without one, the first epoch of this run would be."""
    plain = dataclasses.replace(bench.run(tmp_path / "plain"), metric="loss")
    assert train(plain).best_epoch == 1
    late = bench.run(tmp_path / "late", average="mean", average_from=0.95)
    figures = train(dataclasses.replace(late, metric="loss"))
    assert [row.get("averaged_steps") for row in figures.epochs] == [None, None, 2]
    assert figures.best_epoch == 3


def test_the_exported_weights_have_the_metrics_that_are_told(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, keep="last", **EMA)
    training, _ = train_logged(run)
    run.model.eval()
    assert run.validation is not None
    batch = run.validation.__getitems__(list(range(len(run.validation))))
    with torch.no_grad():
        student = run.model.student
        output_BK = student(
            batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids")
        )[1]
    assert output_BK.shape[1] == CLASSES
    loss = torch.nn.functional.cross_entropy(output_BK, batch["labels"])
    assert training.epochs[-1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert training.epochs[-1]["loss"] != training.epochs[-1]["unaveraged_loss"]


@pytest.mark.parametrize(
    ("settings", "cut_at"),
    [
        pytest.param(MEAN, 7, id="mean-7"),
        pytest.param(MEAN, 18, id="mean-18"),
        pytest.param(EMA | {"schedule": "joint", "validate": False}, 18, id="ema-joint-18"),
        pytest.param(EMA | {"lora_rank": 2}, 7, id="adapters-7"),
    ],
)
def test_a_run_that_was_cut(
    bench: Bench, tmp_path: Path, settings: dict[str, Any], cut_at: int
) -> None:
    """Before the average begins, or after; in the middle of an epoch."""

    def make(name: str) -> Run:
        return bench.run(tmp_path / name, save_steps=3, **copy.deepcopy(settings))

    whole = make("whole")
    expected = go(whole)
    losses = go(make("cut"), cut_at)
    spoil_generators()
    resumed = make("cut")
    rest = go(resumed)
    assert len(rest) < len(expected)
    assert {**losses, **rest} == expected
    assert_same_weights(resumed, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average_decay": 0.9}, "average_decay: needs average; set average=mean or average=ema"),
        ({"average_from": 0.0}, "average_from: needs average"),
        ({"average_every": 3}, "average_every: needs average"),
        ({"average": "mean", "average_decay": 0.9}, "average_decay 0.9: is of average=ema"),
        ({"average": "ema", "shard_student": True}, "average=ema: the weights of a sharded"),
        ({"average": "swa"}, "Input should be 'mean' or 'ema'"),
        ({"average": "ema", "average_decay": 1}, "less than 1"),
        ({"average": "ema", "average_decay": float("nan")}, "less than 1"),
        ({"average": "mean", "average_from": 1}, "less than 1"),
        ({"average": "mean", "average_every": 0}, "greater than or equal to 1"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**settings)
