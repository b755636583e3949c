"""Training: what is exact, what a control leaves alone, which epoch is kept, when it stops."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import TrainingError
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.training import train
from tiny_runs import (
    NUMBERS,
    TEXTS,
    TWO_CLASSES,
    Changed,
    changed,
    class_labels,
    train_logged,
    weights,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "losses_cpu.txt"
NONE_LABELLED = np.full(len(TEXTS), -100)


# --- the same again


def test_the_same_run_has_exactly_the_same_losses(bench, tmp_path):
    runs = [bench.run(tmp_path / name) for name in "ab"]
    (first, losses), (second, others) = map(train_logged, runs)
    assert first.steps == second.steps == len(losses) == 21
    assert losses == others
    assert first.epochs == [{**row, "loss": pytest.approx(row["loss"])} for row in second.epochs]
    assert not changed(runs[0], weights(runs[1]))


def test_another_seed_has_other_losses(bench, tmp_path):
    _, losses = train_logged(bench.run(tmp_path / "a", epochs=1))
    _, others = train_logged(bench.run(tmp_path / "b", epochs=1, seed=1))
    assert not set(losses) & set(others)


def test_losses_are_those_written_down(bench, tmp_path):
    """20 losses of an earlier version: the numbers of a run do not drift unnoticed.

    Dropout is on, so the random numbers of every step count as well. 1e-4, because builds of the
    matrix products round differently and 20 steps spread that: between one thread and two, SSE,
    AVX2 and AVX512 it came to 3e-7. A change of what is computed is seldom below 1e-2."""
    run = bench.run(tmp_path, epochs=3, validate=False)
    _, losses = train_logged(run)
    rows = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    np.testing.assert_allclose(losses[:20], [float(row) for row in rows], rtol=1e-4)


# --- who trains what


def test_an_alternate_run_trains_all_parts(bench, tmp_path):
    run = bench.run(tmp_path, validate=False)
    before = weights(run)
    train(run)
    still = set(before) - changed(run, before)
    # The base of an orthogonal map is a buffer.
    assert still == {"objective.aligner.projection.parametrizations.weight.0.base"}


def test_a_random_aligner_stays_as_it_was_drawn(bench, tmp_path):
    run = bench.run(tmp_path, control="random-aligner", validate=False)
    before = weights(run)
    _, losses = train_logged(run)
    moved = changed(run, before)
    assert not [name for name in moved if name.startswith("objective.aligner.")]
    assert {"objective.projection.weight", "student.model.classifier.weight"} <= moved
    _, trained = train_logged(bench.run(tmp_path / "trained", validate=False))
    assert losses[1] != trained[1]


@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_a_random_aligner_is_random_in_either_schedule(bench, tmp_path, schedule):
    run = bench.run(tmp_path, control="random-aligner", schedule=schedule, epochs=1)
    train(run)
    before = weights(bench.run(tmp_path / "other", control="random-aligner"))
    assert not [n for n in changed(run, before) if n.startswith("objective.aligner.")]


def test_undistilled_reads_no_feature(bench, tmp_path):
    run = bench.run(tmp_path, control="undistilled")
    assert "feature" not in run.train.__getitems__([0, 1])
    _, losses = train_logged(run)
    assert [name for name, _ in run.model.objective.named_parameters()] == []
    assert len(losses) == 21


@pytest.mark.parametrize(
    ("schedule", "objective", "passes"),
    [("alternate", "armada", 2), ("joint", "armada", 1), ("alternate", "feature", 1)],
)
def test_evaluation_asks_for_no_feature(bench, tmp_path, schedule, objective, passes):
    run = bench.run(tmp_path, schedule=schedule, objective=objective)
    asked: list[int] = []
    gather = run.train.features[SOURCE]

    def counted(places: Any, found: Any) -> Any:
        asked.extend(places.tolist())
        return found

    run.train.features[SOURCE] = Changed(gather, counted)
    training = train(run)
    assert len(training.epochs) == 3  # evaluated each time
    assert sorted(asked) == sorted(list(range(len(TEXTS))) * 3 * passes)


@pytest.mark.parametrize("control", ["shuffled", "noise=0.5"])
def test_controls_train(bench, tmp_path, control):
    _, losses = train_logged(bench.run(tmp_path / "a", control=control, epochs=1))
    _, plain = train_logged(bench.run(tmp_path / "b", epochs=1))
    assert not set(losses) & set(plain)


@pytest.mark.parametrize("objective", ["armada", "kd", "feature"])
def test_students_learn(bench, tmp_path, objective):
    """The label is a matter of who did it; the features know nothing of that."""
    run = bench.run(
        tmp_path,
        objective=objective,
        labels=np.arange(len(TEXTS)) % 5 % 3,
        weights={} if objective in ("feature", "undistilled") else {"alpha": 0.1},
        learning_rate=2e-3,
        epochs=12,
        validate=False,
    )
    rows: list[dict[str, float]] = []
    train(dataclasses.replace(run, on_log=rows.append))
    task = [row["task"] for row in rows if "task" in row]
    assert np.mean(task[-7:]) < 0.85 * np.mean(task[:7])


def test_a_regression_trains(bench, tmp_path):
    labels = np.random.default_rng(0).random(len(TEXTS)) * 5
    run = bench.run(tmp_path, space=NUMBERS, labels=labels, epochs=2)
    training = train(run)
    assert set(training.epochs[0]) == {"step", "epoch", "loss", "pearson", "spearman", "mse"}
    assert training.epochs[0]["loss"] == pytest.approx(training.epochs[0]["mse"], rel=1e-5)


# --- rows without a label


def test_a_batch_without_any_label_trains_the_alignment(bench, tmp_path):
    run = bench.run(tmp_path, labels=NONE_LABELLED, space=TWO_CLASSES, validate=False)
    before = weights(run)
    rows: list[dict[str, float]] = []
    train(dataclasses.replace(run, on_log=rows.append))
    logged = [row for row in rows if "loss" in row]
    assert all(row["task"] == 0 for row in logged)
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in logged)
    assert "student.model.classifier.weight" in changed(run, before)


@pytest.mark.parametrize("space", [TWO_CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_a_missing_label_has_no_gradient_in_the_task(bench, tmp_path, space):
    """Through the whole model: with alpha = beta = 0 a text without a label has no say, and with
    alpha = 1 its label has none."""
    missing = np.arange(len(TEXTS)) % 2 == 1
    labels = class_labels(len(TEXTS), 2).astype(float if space is NUMBERS else int)
    labels[missing] = np.nan if space is NUMBERS else -100

    def gradient(places: list[int], alpha: float) -> torch.Tensor:
        run = bench.run(
            tmp_path, space=space, labels=labels, dropout=0.0, weights={"alpha": alpha, "beta": 0}
        )
        embeddings = run.model.student.backbone.embeddings.word_embeddings
        run.model.objective.train()
        run.model.training = True  # terms, but no dropout in the student
        run.model.student.eval()
        batch = run.train.__getitems__(places)
        del batch["indices"]
        run.model(**batch)["loss"].backward()
        return embeddings.weight.grad

    labelled, with_others = [0, 2, 4], [0, 1, 2, 3, 4]
    torch.testing.assert_close(
        gradient(with_others, alpha=0), gradient(labelled, alpha=0), rtol=1e-4, atol=1e-7
    )
    assert not torch.allclose(gradient(with_others, 1), gradient(labelled, 1), rtol=1e-2)
    assert gradient([1, 3], alpha=0).abs().max() == 0
    assert gradient([1, 3], alpha=1).abs().max() > 0


# --- when it stops


@pytest.mark.parametrize("logging_steps", [1, 1000], ids=["every-step", "never"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_the_run(bench, tmp_path, number, logging_steps):
    run = bench.run(
        tmp_path, control="random-aligner", logging_steps=logging_steps, epochs=1, validate=False
    )
    gather = run.train.features[SOURCE]
    run.train.features[SOURCE] = Changed(gather, lambda places, found: found * np.float32(number))
    before = weights(run)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(.*; the cached features"):
        train(run)
    assert not changed(run, before)


def test_figures(bench, tmp_path):
    steps: list[int] = []
    run = bench.run(tmp_path, epochs=2)
    training = train(dataclasses.replace(run, on_step=steps.append))
    assert steps == [1] * 14
    assert training.steps == 14
    assert 0 < training.step_seconds["median"] <= training.step_seconds["p90"]
    assert 0 < training.data_seconds < training.train_seconds
    assert 0 < training.aligner_seconds < training.train_seconds
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(events) == 1
