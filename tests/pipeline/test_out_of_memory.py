"""Memory that does not suffice ends a command by one line with what helps, and loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from scarce_memory import room_for

FEW = 3
LOGGED = ("--set", "logging_steps=1")


def failed(armada: CommandLine, *words: object) -> str:
    """The line of a command that ran out of memory."""
    result = armada(*words)
    assert result.code == 1, result
    return result.error


def test_a_step_that_does_not_fit(armada: CommandLine, distill_bench: Any, tmp_path: Path) -> None:
    with room_for(FEW):
        line = failed(armada, *distill_bench.words(tmp_path / "run"))
    assert line.startswith("device memory: a step of 16 examples does not fit beside the student")
    for remedy in ("gradient_checkpointing", "batch_size", "gradient_accumulation", "precision"):
        assert remedy in line
    assert line.endswith("no checkpoint yet (save_steps); --resume starts over")


def test_a_run_goes_on_from_its_checkpoint_with_what_helps(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    words = distill_bench.words(tmp_path / "run", *LOGGED)
    with room_for(FEW, begins=100):
        line = failed(armada, *words, "--set", "save_steps=1")
    assert "the checkpoint of step " in line
    assert line.endswith("--resume continues from there")
    more = ("--set", "save_steps=1", "--set", "gradient_checkpointing=true", "--resume")
    armada.done(*words, *more)
    armada.done(*distill_bench.words(tmp_path / "whole", *LOGGED))
    told = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("run", "whole")]
    assert told[0]["train_losses"] == pytest.approx(told[1]["train_losses"], rel=1e-5)


def test_a_batch_of_evaluate_and_predict(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    armada.done(*distill_bench.words(tmp_path / "run", "--set", "epochs=1"))
    texts = ("--corpus", distill_bench.train, "--set", "batch_size=32")
    output = tmp_path / "said.jsonl"
    with room_for(FEW):
        for words in (
            ["evaluate", tmp_path / "run"],
            ["predict", tmp_path / "run", "--output", output, "--quiet"],
        ):
            line = failed(armada, *words, *texts)
            assert line.startswith("device memory: a batch of 32 examples does not fit")
            assert "smaller batch_size" in line
    assert not output.exists()


def test_a_teacher_that_does_not_fit(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    named = ("--teacher", f"encoder:{distill_bench.student}", "--text-column", "text")
    cache = tmp_path / "cache"
    with room_for(0):
        line = failed(
            armada, "precompute", "--corpus", distill_bench.train, *named, "--cache", cache
        )
    assert line.startswith("device memory: the model of teacher encoder:bert does not fit")
    assert not cache.exists()
