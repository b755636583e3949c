"""What `distill` and `precompute` say at their end: figures, warnings, how to go on."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from armada.pipeline import seed_run
from armada.stages.distill.settings import SCRATCH_LEARNING_RATE
from command_line import wait_until_asked
from hangs import HANG_S

SCRATCH = ("--set", "student_layers=1", "--set", "student_hidden_size=16")
DISTINCT = "eval_distinct_predictions"
ONE_CLASS = "the student predicts the same for every validation text"


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_without_validation_the_last_losses_are_printed(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    out = armada.done(*distill_bench.words(output, validation=None))
    last = [row for row in log_of(output) if "loss" in row][-1]
    assert f"no validation; at the end of training: loss {last['loss']:.4f}, " in out
    assert f"manifold {last['manifold']:.4f}" in out
    losses = json.loads((output / "metrics.json").read_text())["train_losses"]
    assert losses == {name: last[name] for name in losses}
    assert not {"learning_rate", "epoch", "step"} & losses.keys()


def test_their_mean_over_seeds(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    words = distill_bench.words(output, "--set", "seed=[0, 1]", "--json", validation=None)
    losses = json.loads(armada.done(*words))["train_losses"]["loss"]
    single = [
        json.loads((output / f"seed-{seed}" / "metrics.json").read_text())["train_losses"]["loss"]
        for seed in (0, 1)
    ]
    assert losses["runs"] == single
    assert losses["mean"] == pytest.approx(np.mean(single))


def test_a_student_that_predicts_one_class_is_told(armada, distill_bench, tmp_path):
    output, rate = tmp_path / "run", ("--set", "learning_rate=1e-9")
    words = distill_bench.words(output, *rate, *SCRATCH, student="scratch:bert")
    result = armada(*words)
    assert [row[DISTINCT] for row in log_of(output) if DISTINCT in row] == [1, 1]
    assert result.err.count(ONE_CLASS) == 1
    assert json.loads((output / "metrics.json").read_text())["distinct_predictions"] == 1
    assert "distinct" not in result.out


def test_one_that_learns_is_not(armada, distill_bench, tmp_path):
    output = tmp_path / "run"
    result = armada(*distill_bench.words(output, "--set", "epochs=6"))
    assert result.code == 0
    best = json.loads((output / "metrics.json").read_text())["best_epoch"]
    (found,) = [row[DISTINCT] for row in log_of(output) if DISTINCT in row and row["epoch"] == best]
    assert found > 1
    assert ONE_CLASS not in result.err


@pytest.mark.parametrize(
    ("student", "more", "expected"),
    [
        ("scratch:bert", SCRATCH, SCRATCH_LEARNING_RATE),
        ("scratch:bert", (*SCRATCH, "--set", "learning_rate=2e-5"), 2e-5),
        (None, ("--set", "student_from_scratch=true"), SCRATCH_LEARNING_RATE),
        (None, (), 2e-5),
    ],
)
def test_random_weights_have_a_rate_of_their_own(
    armada, distill_bench, tmp_path, student, more, expected
):
    output = tmp_path / "run"
    changes = {"student": student} if student else {}
    words = distill_bench.words(output, "--set", "epochs=1", **changes)
    at = words.index("learning_rate=1e-3")
    armada.done(*words[: at - 1], *words[at + 1 :], *more)
    assert yaml.safe_load((output / "job.yaml").read_text())["learning_rate"] == expected


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C once a run has logged that step."""
    before = seed_run.append_log

    def append(folder: Path, row: dict[str, Any]) -> None:
        before(folder, row)
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(seed_run, "append_log", append)


@pytest.fixture
def interruptible():
    """A shell that starts the tests in the background makes them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("step", "told"),
    [
        (1, "interrupted; no checkpoint yet (save_steps); --resume starts over"),
        (5, "interrupted; kept: the checkpoint of step 4; --resume continues from there"),
    ],
)
def test_ctrl_c_says_what_is_kept(armada, distill_bench, tmp_path, monkeypatch, step, told):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        result = armada(*distill_bench.words(tmp_path / "run", "--set", "logging_steps=1"))
    assert result.code == 130
    assert result.err.splitlines()[-1] == f"warning: {told}"
    armada.done(*distill_bench.words(tmp_path / "run", "--resume", "--set", "logging_steps=1"))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_of_a_teacher(tmp_path: Path, armada, start) -> None:
    corpus, journal = tmp_path / "texts.csv", tmp_path / "journal"
    corpus.write_text("text\n" + "".join(f"text {number}\n" for number in range(30_000)))
    words = ["precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "slow:4"]
    words += ["--cache", tmp_path / "cache", "--quiet", "--set", "rows_per_shard=64"]
    process: subprocess.Popen[str] = start(*words, journal=journal)
    wait_until_asked(200, journal, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (130, "")
    assert (
        err == "warning: interrupted; committed shards are kept; run the same command to continue\n"
    )
