"""The trainer: rates and weight decay of each part, and which epoch is kept."""

import dataclasses

import numpy as np
import pytest
import torch
from armada.stages.distill.batches import EpochBatches
from armada.stages.distill.trainer import DistillTrainer
from armada.stages.distill.training import Run, train
from tiny_runs import changed, weights
from transformers import TrainingArguments

# --- rates


def optimizer_of(run: Run) -> torch.optim.Optimizer:
    arguments = TrainingArguments(
        output_dir=str(run.folder), learning_rate=1e-4, weight_decay=0.1, report_to="none"
    )
    batches = EpochBatches(run.train, 8, 0)
    return DistillTrainer(run.model, arguments, run.train, None, batches, 1e-2).create_optimizer()


def test_the_aligner_has_a_rate_of_its_own_and_only_matrices_decay(bench, tmp_path):
    run = bench.run(tmp_path)
    groups = optimizer_of(run).param_groups
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in run.model.named_parameters():
        rate = 1e-2 if name.startswith("objective.aligner.") else 1e-4
        assert settings[id(parameter)] == (rate, 0.1 if parameter.ndim == 2 else 0.0), name
    assert len(settings) == len(list(run.model.parameters()))


def test_what_is_frozen_is_not_optimized(bench, tmp_path):
    run = bench.run(tmp_path)
    run.model.objective.aligner.requires_grad_(False)
    groups = optimizer_of(run).param_groups
    assert {group["lr"] for group in groups} == {1e-4}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"warmup_ratio": 0.5}, [0.0, 0.5, 1.0, 1.0]),
        ({"lr_scheduler": "linear"}, [1.0, 0.75, 0.5, 0.25]),
    ],
    ids=["constant", "warm-up", "linear"],
)
def test_the_course_of_the_rate(bench, tmp_path, settings, expected):
    rows: list[dict[str, float]] = []
    run = bench.run(tmp_path, epochs=1, batch_size=14, learning_rate=2e-4, **settings)
    train(dataclasses.replace(run, on_log=rows.append))
    rates = [row["learning_rate"] / 2e-4 for row in rows if "learning_rate" in row]
    assert rates == pytest.approx(expected)


# --- which epoch is kept


def test_the_best_epoch_is_kept(bench, tmp_path):
    run = bench.run(tmp_path, epochs=6, learning_rate=5e-3)
    seen: dict[float, dict[str, torch.Tensor]] = {}
    accuracy: dict[float, float] = {}

    def watch(row: dict[str, float]) -> None:
        if "eval_accuracy" in row:
            accuracy[row["epoch"]] = row["eval_accuracy"]
            seen[row["epoch"]] = weights(run)

    training = train(dataclasses.replace(run, on_log=watch))
    best = max(accuracy.values())
    first_best = min(epoch for epoch, value in accuracy.items() if value == best)
    assert training.best_epoch == first_best
    assert first_best < 6, "the last epoch is the best: the test shows nothing"
    assert not changed(run, seen[first_best])
    assert changed(run, seen[6.0])
    assert [row["accuracy"] for row in training.epochs] == list(accuracy.values())


def test_the_last_epoch_is_kept_if_asked(bench, tmp_path):
    run = bench.run(tmp_path, epochs=6, learning_rate=5e-3, keep="last")
    seen: dict[float, dict[str, torch.Tensor]] = {}

    def watch(row: dict[str, float]) -> None:
        if "eval_accuracy" in row:
            seen[row["epoch"]] = weights(run)

    training = train(dataclasses.replace(run, on_log=watch))
    accuracy = [row["accuracy"] for row in training.epochs]
    assert accuracy[-1] < max(accuracy), "the last epoch is the best: the test shows nothing"
    assert training.best_epoch == 6
    assert not changed(run, seen[6.0])


def test_an_evaluation_is_that_of_the_model(bench, tmp_path):
    """By a second route: the student itself, text by text."""
    run = bench.run(tmp_path, epochs=1)
    training = train(run)
    run.model.eval()
    with torch.no_grad():
        batches = [run.validation[i] for i in range(len(run.validation))]
        outputs = [
            run.model(**{name: t for name, t in batch.items() if name != "indices"})
            for batch in batches
        ]
    hits = [
        output["logits"].argmax().item() == run.validation.labels[i].item()
        for i, output in enumerate(outputs)
    ]
    assert training.epochs[0]["accuracy"] == pytest.approx(np.mean(hits))
    losses = [output["loss"].item() for output in outputs]
    assert training.epochs[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_without_validation_the_last_weights_stay(bench, tmp_path):
    training = train(bench.run(tmp_path, validate=False, epochs=1))
    assert training.best_epoch is None
    assert training.epochs == []
