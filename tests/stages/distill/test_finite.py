"""A loss that is not finite: which batch, which terms, and that no weight was updated."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import TrainingError
from armada.stages.distill import trainer
from armada.stages.distill.finite import FiniteLosses
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.training import Run, train
from tiny_runs import Bench, Changed, train_logged, weights

PLACES = np.arange(7)


def spoiled_from(run: Run, batch: int) -> None:
    """From that batch of the epoch (counted from 1) on, features are infinite."""
    features = run.train.features[SOURCE]
    spoiled = np.concatenate(list(run.train.batches(8, run.seed, 0))[batch - 1 :])

    def spoil(places: Any, found: Any) -> Any:
        found[np.isin(places, spoiled)] = np.inf
        return found

    run.train.features[SOURCE] = Changed(features, spoil)  # type: ignore[assignment]


@pytest.fixture(params=["at once", "deferred"])
def manner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU, and as on a GPU, where only the flag on the device stops the optimizer."""
    if request.param == "deferred":
        monkeypatch.setattr(
            trainer, "FiniteLosses", lambda dataset, deferred: FiniteLosses(dataset, deferred=True)
        )
    return str(request.param)


def test_the_batch_and_its_terms_are_named_and_weights_stay(
    bench: Bench, tmp_path: Path, manner: str
) -> None:
    run = bench.run(
        tmp_path, control="random-aligner", epochs=1, batch_size=8, validate=False, logging_steps=6
    )
    spoiled_from(run, batch=4)
    after: list[dict[str, torch.Tensor]] = []
    run = dataclasses.replace(run, on_step=lambda count: after.append(weights(run)))
    with pytest.raises(TrainingError) as caught:
        train(run)
    message = str(caught.value)
    fourth = list(run.train.batches(8, run.seed, 0))[3]
    named = ", ".join(f"example {place}" for place in fourth[:3])
    assert message.startswith("the loss is nan at step 4 (task ")
    assert "manifold nan" in message
    assert f") on {named} and 5 more; no weight was updated; the cached features of" in message
    assert message.endswith(
        "are not finite, though teachers store only finite values: run `armada cache verify` and "
        "`armada cache repair`"
    )
    assert len(after) == (3 if manner == "at once" else 6)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, after[2][name]), name


def test_watching_changes_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train_logged(bench.run(tmp_path / "a", epochs=2))
    deferred = partial(FiniteLosses, deferred=True)
    monkeypatch.setattr(trainer, "FiniteLosses", lambda dataset, _: deferred(dataset))
    _, losses = train_logged(bench.run(tmp_path / "b", epochs=2))
    assert losses == expected


def test_the_aligners_own_loss(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, epochs=1)
    spoiled_from(run, batch=1)
    match = (
        r"the aligner's loss is nan in epoch 1; the cached features of example .* and 5 more are "
    )
    with pytest.raises(TrainingError, match=match):
        train(run)


@pytest.mark.parametrize("part", ["student", "aligner"])
def test_features_that_are_finite_are_not_to_blame(bench: Bench, tmp_path: Path, part: str) -> None:
    run = bench.run(tmp_path, control="none", epochs=1, validate=False)
    with torch.no_grad():
        module = run.model.student if part == "student" else run.model.objective.aligner
        next(iter(module.parameters())).fill_(torch.inf)
    rate = "lower the learning rate, or use" if part == "student" else "lower aligner_learning_rate"
    with pytest.raises(TrainingError, match=rate) as caught:
        train(run)
    assert str(caught.value).endswith(
        "`armada cache verify` checks whether the teacher's features are as committed"
    )


def test_where_no_cache_is_read_none_is_to_blame(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, control="undistilled", epochs=1, validate=False)
    with torch.no_grad():
        next(iter(run.model.student.parameters())).fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"or use precision=float32$"):
        train(run)


def test_few_examples_are_all_named(bench: Bench, tmp_path: Path) -> None:
    dataset = bench.run(tmp_path, control="undistilled").train
    dataset.names = lambda places: [f"text {place}" for place in places]
    watch = FiniteLosses(dataset, deferred=True)
    terms = {"total": torch.tensor(float("inf")), "task": torch.tensor(2.0)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], fused=True)
    watch.look_at(7, terms, PLACES[:2], optimizer)
    with pytest.raises(TrainingError, match=r"is inf at step 7 \(task 2\) on text 0, text 1; no"):
        watch.check()
    watch.check()
