"""Answers of the aligner that were worked out ahead are those that it gives batch by batch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.distill import schedules as replay_module
from armada.stages.distill import training
from armada.stages.distill.batches import DistillDataset, EpochBatches
from armada.stages.distill.objectives.armada import ArmadaObjective
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.schedules import Replay
from tiny_runs import TEXTS, Bench, train_logged, weights

ROWS = 8


def prepared(bench: Bench, folder: Path) -> tuple[ArmadaObjective, DistillDataset]:
    run = bench.run(folder)
    objective = run.model.objective
    assert isinstance(objective, ArmadaObjective)
    return objective, run.train


def begin(replay: Replay, epoch: float) -> None:
    replay.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)


def check(objective: ArmadaObjective, train: DistillDataset, places: Any, replay: Replay) -> None:
    """One batch of the replay against the aligner itself."""
    found = replay.answers(places)
    expected = objective.read(train.features_of(places, SOURCE))
    for name in expected._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)


@pytest.mark.parametrize("rows", [1, 20, 1024], ids=lambda rows: f"window of {rows}")
@pytest.mark.parametrize("skipped", [0, 3])
def test_answers_belong_to_their_batches(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, skipped: int
) -> None:
    """Also from the middle of an epoch on, where a resumed run begins, and in the next epoch, for
    which the aligner has learned."""
    monkeypatch.setattr(replay_module, "WINDOW_ROWS", rows)
    objective, train = prepared(bench, tmp_path)
    replay = Replay(objective, train, EpochBatches(train, ROWS, seed=5))
    for epoch in (2, 3):
        begin(replay, epoch + skipped / 7)
        batches = list(train.batches(ROWS, seed=5, epoch=epoch))
        assert [len(batch) for batch in batches] == [8] * 6 + [5]
        for places in batches[skipped:]:
            check(objective, train, places, replay)
        with torch.no_grad():
            objective.aligner.hidden1.weight += 1.0


def test_features_are_gathered_a_window_at_a_time(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "WINDOW_ROWS", 24)
    objective, train = prepared(bench, tmp_path)
    gathered: list[int] = []
    features = train.features[SOURCE]

    def counted(places: Any) -> Any:
        gathered.append(len(places))
        return features(places)

    monkeypatch.setitem(train.features, SOURCE, counted)
    replay = Replay(objective, train, EpochBatches(train, ROWS, seed=0))
    begin(replay, 0)
    for places in train.batches(ROWS, seed=0, epoch=0):
        assert "features" not in train.__getitems__(places.tolist())
        windows, before = len(gathered), train.seconds
        replay.answers(places)
        # The time of the gather counts as data, as it would in the batch itself.
        assert (train.seconds > before) == (len(gathered) > windows)
    assert gathered == [24, 24, 5]


def test_a_batch_of_another_order_is_not_answered(bench: Bench, tmp_path: Path) -> None:
    objective, train = prepared(bench, tmp_path)
    replay = Replay(objective, train, EpochBatches(train, ROWS, seed=0))
    begin(replay, 0)
    with pytest.raises(AssertionError, match="none of the batches that are left"):
        replay.answers(np.arange(ROWS))


def doubled(bench: Bench, folder: Path, **settings: Any) -> training.Run:
    run = bench.run(folder, dropout=0.1, epochs=3, batch_size=ROWS, **settings)
    run.model.double()
    return run


@pytest.mark.parametrize("manifold", ["cosine", "pointwise"])
@pytest.mark.parametrize("control", ["none", "random-aligner", "noise=0.5"])
def test_the_student_is_that_of_the_step_by_step_schedule(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str, manifold: str
) -> None:
    """In float64, bit for bit: losses of all steps, and all weights at the end."""
    knobs = {"control": control, "weights": {"manifold": manifold}}
    replayed = doubled(bench, tmp_path / "replayed", **knobs)
    _, losses = train_logged(replayed)
    monkeypatch.setattr(training, "_replays", lambda run, batches: [])
    stepwise = doubled(bench, tmp_path / "stepwise", **knobs)
    _, expected = train_logged(stepwise)
    assert replayed.train.apart
    assert not stepwise.train.apart
    assert len(losses) == 3 * -(-len(TEXTS) // ROWS)
    assert losses == expected
    for name, weight in weights(stepwise).items():
        assert torch.equal(weights(replayed)[name], weight), name


def test_joint_training_asks_the_aligner_itself(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, schedule="joint", epochs=1)
    train_logged(run)
    assert not run.train.apart
