"""`torchrun -m armada.cli distill`: several processes, one run folder, one line for an error."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from armada.cache_schemas.errors import JobError
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.stages.distill.checkpoints import last_checkpoint
from hangs import HANG_S


@pytest.fixture
def launch(torchrun: Sequence[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `armada` in two processes."""

    def launch(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun, "-m", "armada.cli", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    return launch


def test_one_run_folder_of_two_processes(launch, distill_bench, tmp_path):
    output = tmp_path / "run"
    done = launch(*distill_bench.words(output, "--json", "--set", "seed=[0, 1]"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # said once
    assert summary["seeds"] == [0, 1]
    names = {path.name for path in (output / "seed-0").iterdir()}
    expected = {"job.yaml", "run.json", "log.jsonl", "metrics.json", "student", "aligner"}
    assert names == {*expected, "tensorboard"}
    assert len(list((output / "seed-0" / "tensorboard").iterdir())) == 1
    metrics = json.loads((output / "seed-0" / "metrics.json").read_bytes())
    assert metrics["processes"] == 2
    assert metrics["steps"] == 8
    log = (output / "seed-0" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in log]
    assert steps == sorted(steps)


def test_what_is_wrong_is_said_once(launch, distill_bench, tmp_path):
    done = launch(*distill_bench.words(tmp_path / "run", "--set", "feature=none"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "'none'" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "'batch_size': 32 examples cannot be shared by 64 proc"),
        ({"batch_size": 64, "auto_batch_size": True}, "auto_batch_size: is for one process"),
    ],
)
def test_what_many_processes_cannot_do(
    distill_bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    words: str,
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "64"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    keys = {
        "train": str(distill_bench.train),
        "text_column": "text",
        "label_column": "label",
        "cache": str(distill_bench.cache),
        "student": str(distill_bench.student),
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(JobError, match=words):
        run_distill(make(DistillJob, keys | settings))


@pytest.mark.parametrize(
    ("count", "settings", "reason"),
    [
        (1, ["shard_student=true"], "shard_student: needs several processes"),
        (2, ["shard_student=true", "precision=fp16"], "does not support precision 'fp16'"),
    ],
)
def test_a_student_that_cannot_be_divided(
    distill_bench, tmp_path, monkeypatch, refused, count, settings, reason
):
    for name, value in (("RANK", 0), ("WORLD_SIZE", count), ("LOCAL_RANK", 0)):
        monkeypatch.setenv(name, str(value))
    words = [word for setting in settings for word in ("--set", setting)]
    assert reason in refused(*distill_bench.words(tmp_path / "run", *words))


def test_a_divided_run_does_not_go_on_whole(torchrun, launch, distill_bench, tmp_path):
    """Nor without the launcher; the line comes before anything is written."""
    output = tmp_path / "run"
    sharded = ("--set", "shard_student=true", "--set", "save_steps=1", "--set", "epochs=50")
    words = distill_bench.words(output, *sharded)
    process = subprocess.Popen(
        [*torchrun, "-m", "armada.cli", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.monotonic() + HANG_S
    while last_checkpoint(output) is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=HANG_S)
    checkpoint = last_checkpoint(output)  # beside the one before it, if that was still there
    assert checkpoint is not None
    whole = ("--set", "shard_student=false", "--resume")
    run = distill_bench.words(output, *sharded[2:], *whole)
    job = output / "job.yaml"
    job.write_text(job.read_text().replace("shard_student: true", "shard_student: false"))
    done = launch(*run)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines[0].startswith(f"error: shard_student: {checkpoint} is of a divided student")
