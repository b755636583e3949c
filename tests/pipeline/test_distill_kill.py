"""`kill -9` of a real run of `armada distill`, then `--resume`: the same losses, the same bytes."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hangs import HANG_S

pytestmark = pytest.mark.long

EPOCHS, SAVE_EVERY = 20, 3
STEPS = EPOCHS * 4


def rows(output: Path) -> list[dict[str, Any]]:
    """The whole rows of the log."""
    file = output / "log.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def losses(output: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(output) if "loss" in row]


def last_row(output: Path) -> dict[str, Any]:
    """What the log ends with, but how long the process took."""
    return {name: value for name, value in rows(output)[-1].items() if name != "train_runtime"}


def wait_for_step(step: int, output: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + HANG_S
    while not any(row["step"] >= step for row in rows(output)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run takes no steps"
        time.sleep(0.001)


def kept(output: Path) -> dict[str, bytes]:
    """All bytes of a student and its aligner, but the card with its title."""
    files = [*(output / "student").iterdir(), *(output / "aligner").iterdir()]
    return {file.name: file.read_bytes() for file in files if file.name != "README.md"}


def test_a_killed_run_goes_on(armada, start, distill_bench, tmp_path):
    settings = (f"epochs={EPOCHS}", f"save_steps={SAVE_EVERY}", "logging_steps=1", "device=cpu")
    more = [word for setting in settings for word in ("--set", setting)]
    armada.done(*distill_bench.words(tmp_path / "whole", *more))
    output = tmp_path / "killed"
    process = start(*distill_bench.words(output, *more))
    wait_for_step(6, output, process)
    process.kill()
    process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGKILL
    assert not (output / "metrics.json").exists()
    assert (output / "run.lock").exists()
    assert 6 <= losses(output)[-1][0] < STEPS
    line = armada(*distill_bench.words(output, *more)).error
    assert line.startswith(f"output {output}: holds an unfinished run; continue with resume=true")
    armada.done(*distill_bench.words(output, "--resume", *more))
    # The log has each step once, as if nothing had happened.
    assert losses(output) == losses(tmp_path / "whole")
    assert [step for step, _ in losses(output)] == list(range(1, STEPS + 1))
    assert last_row(output) == last_row(tmp_path / "whole")
    assert kept(output) == kept(tmp_path / "whole")
    figures = [
        json.loads((path / "metrics.json").read_text()) for path in (output, tmp_path / "whole")
    ]
    assert figures[0]["epochs"] == figures[1]["epochs"]
    assert figures[0]["best_epoch"] == figures[1]["best_epoch"]


def test_of_several_seeds_the_finished_ones_stay(armada, distill_bench, tmp_path, monkeypatch):
    """Cut in the second of three seeds."""
    from armada.pipeline import seed_run

    more = ("--set", "seed=[0, 1, 2]")
    armada.done(*distill_bench.words(tmp_path / "whole", *more))
    make_card, made = seed_run.model_card, []

    def break_at_the_second(*given: Any) -> str:
        made.append(given)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make_card(*given)

    monkeypatch.setattr(seed_run, "model_card", break_at_the_second)
    output = tmp_path / "cut"
    assert armada(*distill_bench.words(output, *more)).code != 0
    first = (output / "seed-0" / "metrics.json").stat().st_mtime_ns
    armada.done(*distill_bench.words(output, "--resume", *more))
    assert (output / "seed-0" / "metrics.json").stat().st_mtime_ns == first
    for seed in ("seed-0", "seed-1", "seed-2"):
        assert kept(output / seed) == kept(tmp_path / "whole" / seed)
    summaries = [
        json.loads((path / "metrics.json").read_text()) for path in (output, tmp_path / "whole")
    ]
    assert summaries[0] == summaries[1]
