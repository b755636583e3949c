"""A run that was cut goes on as if it had not been: the same losses and weights, bit by bit."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.stages.distill import batches
from armada.stages.distill.checkpoints import last_checkpoint, steps_done
from armada.stages.distill.training import Run, train
from cuts import assert_same_weights, go, spoil_generators
from tiny_runs import Bench

pytestmark = pytest.mark.long

EPOCHS = 3


# Seven batches an epoch: seven steps, or four of two batches.
@pytest.mark.parametrize(
    ("settings", "cut_at", "resumed_from"),
    [
        pytest.param({}, 9, 7, id="at-an-epoch"),
        pytest.param({"save_steps": 5}, 12, 10, id="in-mid-epoch"),
        pytest.param({"gradient_accumulation": 2}, 7, 4, id="two-batches-at-an-epoch"),
        pytest.param(
            {"gradient_accumulation": 2, "save_steps": 3}, 8, 6, id="two-batches-in-mid-epoch"
        ),
        pytest.param({"lr_scheduler": "cosine", "save_steps": 2}, 20, 18, id="in-the-last-epoch"),
    ],
)
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_a_run_that_was_cut(bench, tmp_path, schedule, settings, cut_at, resumed_from):
    def make(name: str) -> Run:
        return bench.run(tmp_path / name, schedule=schedule, epochs=EPOCHS, **settings)

    whole = make("whole")
    expected = go(whole)
    losses = go(make("cut"), cut_at)
    assert steps_done(tmp_path / "cut") == resumed_from
    spoil_generators()
    resumed = make("cut")
    rest = go(resumed)
    assert min(rest) == resumed_from + 1
    assert {**losses, **rest} == expected
    assert_same_weights(resumed, whole)


@pytest.fixture
def small_blocks(monkeypatch):
    """Windows of sixteen examples, so that an epoch has four."""
    monkeypatch.setattr(batches, "BLOCK_ROWS", 8)
    monkeypatch.setattr(batches, "BLOCKS_PER_WINDOW", 2)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "how",
    [
        {"placement": "streamed"},
        {"placement": "streamed", "schedule": "joint"},
        {"control": "undistilled"},
        {"control": "random-aligner"},
        {"control": "noise=0.5"},
        {"objective": "kd", "weights": {"temperature": "learned"}},
        {"objective": "kd", "control": "permuted-classes"},
        {"objective": "taid", "weights": {"taid_step": 0.1}, "gradient_accumulation": 2},
        {"weights": {"orthogonal_map": "cayley", "orthogonal_projection": True}},
        {"lora_rank": 2},
        {"objective": "hidden_layers", "features": ("embedding", "logits")},
        {"objective": "infonce", "weights": {"negatives": 20}, "placement": "streamed"},
        {"objective": "wcord", "weights": {"negatives": 9, "mask_same_label": True}},
        {"objective": "feature", "student": "static:{}", "gradient_accumulation": 2},
    ],
    ids=[
        *("blocks", "blocks-joint", "undistilled", "random-aligner", "noise", "kd", "permuted"),
        *("taid", "orthogonal", "adapters", "layers", "negatives", "critic", "static"),
    ],
)
def test_other_runs_go_on_too(bench, tmp_path, how):
    how = dict(how)
    bench = replace(bench, student=how.pop("student", "{}").format(bench.student))
    whole, first = (bench.run(tmp_path / name, save_steps=5, **how) for name in ("whole", "cut"))
    expected = go(whole)
    go(first, cut_at=12)
    spoil_generators()
    resumed = bench.run(tmp_path / "cut", save_steps=5, **how)
    rest = go(resumed)
    assert rest == {step: loss for step, loss in expected.items() if step > 10}
    assert_same_weights(resumed, whole)


def test_weighted_epochs_go_on_too(bench, tmp_path):
    def weighted(name):
        run = bench.run(tmp_path / name, save_steps=5, objective="feature")
        run.train.weights = np.linspace(0.1, 3, len(run.train))
        return run

    expected = go(weighted("whole"))
    go(weighted("cut"), cut_at=12)
    spoil_generators()
    assert go(weighted("cut")) == {s: loss for s, loss in expected.items() if s > 10}
    plain = go(bench.run(tmp_path / "plain", objective="feature"))
    assert plain.keys() == expected.keys()
    assert plain != expected


@pytest.mark.usefixtures("small_blocks")
def test_blocks_change_the_order_of_both_passes(bench, tmp_path):
    first: dict[str, list[float]] = {}
    for placement in ("mapped", "streamed"):
        run = bench.run(tmp_path / placement, epochs=1, placement=placement)
        rows: list[dict[str, float]] = []
        train(dataclasses.replace(run, on_log=rows.append))
        first[placement] = [rows[0]["loss"], rows[0]["aligner"]]
    assert not set(first["mapped"]) & set(first["streamed"])


def test_seconds_are_those_of_all_processes_of_a_run(bench, tmp_path):
    go(bench.run(tmp_path / "cut", save_steps=5), cut_at=12)
    file = last_checkpoint(tmp_path / "cut") / "trainer_state.json"
    document = json.loads(file.read_text())
    kept = document["stateful_callbacks"]["StepTimes"]["attributes"]
    names = ("train_seconds", "aligner_seconds", "data_seconds")
    assert all(0 < kept[name] <= kept["train_seconds"] for name in names)
    for days, name in enumerate(names, start=1):
        kept[name] = 86400.0 * days  # no process of this test can take as long
    file.write_text(json.dumps(document))
    resumed = train(bench.run(tmp_path / "cut", save_steps=5))
    for days, name in enumerate(names, start=1):
        assert 86400 * days < getattr(resumed, name) < 86400 * (days + 0.5)


def test_a_checkpoint_that_kept_no_seconds_is_gone_on_from(bench, tmp_path):
    go(bench.run(tmp_path / "cut", save_steps=5), cut_at=12)
    file = last_checkpoint(tmp_path / "cut") / "trainer_state.json"
    document = json.loads(file.read_text())
    del document["stateful_callbacks"]["StepTimes"]
    file.write_text(json.dumps(document))
    resumed = train(bench.run(tmp_path / "cut", save_steps=5))
    assert 0 < resumed.data_seconds < resumed.train_seconds


def test_a_run_may_be_cut_many_times(bench, tmp_path):
    whole = bench.run(tmp_path / "whole", save_steps=2)
    expected = go(whole)
    losses: dict[int, float] = {}
    for cut_at in (3, 8, 15):
        losses |= go(bench.run(tmp_path / "cut", save_steps=2), cut_at)
    resumed = bench.run(tmp_path / "cut", save_steps=2)
    losses |= go(resumed)
    assert losses == expected
    assert_same_weights(resumed, whole)


def test_a_finished_run_has_nothing_left_to_do(bench, tmp_path):
    """Killed after the last step, before the student was written."""
    run = bench.run(tmp_path)
    first = train(run)
    again = bench.run(tmp_path)
    second = train(again)
    assert (second.steps, second.epochs, second.best_epoch) == (
        first.steps,
        first.epochs,
        first.best_epoch,
    )
    assert_same_weights(again, run)


def test_what_a_cut_run_evaluated_beyond_its_checkpoint_is_forgotten(bench, tmp_path):
    """Killed between the evaluation and the checkpoint of an epoch."""
    whole = bench.run(tmp_path / "whole", learning_rate=5e-3)
    expected = train(whole)
    go(bench.run(tmp_path / "cut", learning_rate=5e-3), cut_at=16)
    folder = tmp_path / "cut"
    shutil.rmtree(folder / "checkpoints" / "checkpoint-14")
    assert last_checkpoint(folder) is None
    resumed = bench.run(folder, learning_rate=5e-3)
    training = train(resumed)
    assert training.epochs == expected.epochs
    assert training.best_epoch == expected.best_epoch
    assert_same_weights(resumed, whole)


# --- killed while a checkpoint is written


def cut_trainer_state(checkpoint: Path) -> None:
    file = checkpoint / "trainer_state.json"
    file.write_bytes(file.read_bytes()[:100])


def leave_weights_only(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        if file.name != "model.safetensors":
            file.unlink()


@pytest.mark.parametrize("spoil", [cut_trainer_state, leave_weights_only])
def test_a_checkpoint_that_was_not_finished_is_no_checkpoint(
    bench: Bench, tmp_path: Path, spoil: Callable[[Path], None]
):
    whole = bench.run(tmp_path / "whole", save_steps=5)
    expected = go(whole)
    go(bench.run(tmp_path / "cut", save_steps=5), cut_at=12)
    checkpoints = tmp_path / "cut" / "checkpoints"
    kept = Path(shutil.copytree(checkpoints / "checkpoint-10", tmp_path / "kept"))
    go(bench.run(tmp_path / "cut", save_steps=5), cut_at=16)
    # As a kill would leave it: the newer one half written, the older one still there.
    spoil(checkpoints / "checkpoint-15")
    shutil.rmtree(checkpoints / "checkpoint-14", ignore_errors=True)
    kept.rename(checkpoints / "checkpoint-10")
    assert steps_done(tmp_path / "cut") == 10
    resumed = bench.run(tmp_path / "cut", save_steps=5)
    rest = go(resumed)
    assert rest == {step: loss for step, loss in expected.items() if step > 10}
    assert_same_weights(resumed, whole)


def test_a_checkpoint_is_whole_when_the_one_before_goes(bench, tmp_path, monkeypatch):
    """At that moment there is only one: it must have all that a run needs to go on."""
    from transformers import trainer

    rotate = trainer.rotate_checkpoints
    left: list[Any] = []

    def watched(output_dir: str, **how: Any) -> None:
        rotate(output_dir=output_dir, **how)
        folders = list(Path(output_dir).iterdir())
        left.append([sorted(file.name for file in folder.iterdir()) for folder in folders])

    monkeypatch.setattr(trainer, "rotate_checkpoints", watched)
    train(bench.run(tmp_path))
    assert len(left) == EPOCHS
    for folders in left:
        assert len(folders) == 1
        assert {"model.safetensors", "aligner_optimizer.safetensors", "optimizer.pt"} <= {
            *folders[0]
        }
