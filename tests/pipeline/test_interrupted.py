"""Ctrl-C in the midst of a command is followed by what is kept, and the same command continues."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from armada.pipeline import evaluate
from armada.pipeline.messages import CountProgress
from command_line import RUN, CommandLine

BEGINS = "nothing was written; run the same command again"
TOLD = {
    "predict": BEGINS,
    "export": BEGINS,
    "push": "sent files are kept; run the same command to continue",
    "pull": "received files are kept; run the same command to continue",
    "merge": "copied shards are kept; run the same command to continue",
    "import": "written shards are kept; run the same command to continue",
}


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell that starts the tests in the background makes them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run_words(bench: Any, tmp_path: Path) -> list[object]:
    quick = ("--set", "epochs=1", "--set", "control=undistilled")
    return bench.words(tmp_path / "run", *quick, cache=None, teacher=None)


def words(command: str, bench: Any, tmp_path: Path) -> list[object]:
    """A command that shows its progress."""
    texts = ("--corpus", bench.train, "--text-column", "text", "--quiet")
    if command == "predict":
        output = ("--output", tmp_path / "said.jsonl")
        return ["predict", tmp_path / "run", *texts, *output]
    of = ("--teacher", bench.hash)
    cache, new = bench.cache, tmp_path / "new"
    each: dict[str, list[object]] = {
        "export": [cache, *of, *texts, "--format", "npy", "--output", new],
        "push": [cache, new, "--quiet"],
        "pull": [cache, new, "--quiet"],
        "merge": [new, cache, "--quiet"],
        "import": [new, tmp_path / "rows.npy", "--name", "x", *texts],
    }
    return ["cache", command, *each[command]]


@pytest.mark.parametrize("command", TOLD)
def test_ctrl_c_says_what_is_kept(
    armada: CommandLine,
    distill_bench: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    if command == "predict":
        armada.done(*run_words(distill_bench, tmp_path))
    np.save(
        tmp_path / "rows.npy", np.ones((pq.read_table(distill_bench.train).num_rows, 4), np.float32)
    )
    given = words(command, distill_bench, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CountProgress, "advance", interrupt)
        result = armada(*given)
    assert result.code == 130
    assert result.err.splitlines()[-1] == f"warning: interrupted; {TOLD[command]}"
    armada.done(*given)


def test_ctrl_c_of_evaluate(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    armada.done(*run_words(distill_bench, tmp_path))
    monkeypatch.setattr(evaluate, "predict", interrupt)
    result = armada("evaluate", tmp_path / "run", "--corpus", distill_bench.validation)
    assert result.code == 130
    assert result.err.endswith("interrupted; nothing was written; run the same command again\n")


def test_ctrl_c_while_a_command_starts() -> None:
    late = "import armada.cli as cli, signal; cli._run = lambda _: signal.raise_signal(2); "
    code = "import signal; signal.signal(2, signal.default_int_handler); " + late + RUN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
