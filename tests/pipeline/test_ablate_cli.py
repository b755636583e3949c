"""`armada ablate`: real runs side by side, resumed, extended, interrupted, failed."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.cache_schemas.locations import shown
from armada.pipeline.ablation.ablate import LOCK
from armada.pipeline.ablation.parallel import room
from armada.pipeline.run_folder import is_free
from armada.stages.store.files.lock import open_lock, try_lock
from command_line import CommandLine
from hangs import HANG_S

SMALL = {"epochs": 1, "batch_size": 16, "aligner_hidden_size": 8, "learning_rate": 1e-3}
GRID = {"control": ["none", "undistilled"], "dropout": [0.0, 0.3]}
RUNS = [
    f"{name}-dropout={dropout}/seed-{seed}"
    for name in ("distilled", "undistilled")
    for dropout in ("0.0", "0.3")
    for seed in (0, 1)
]


@pytest.fixture
def job(distill_bench: Any, forked_workers: None, tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file; keys replace those of a small ablation."""

    def write(**changes: Any) -> Path:
        keys = SMALL | {
            "train": str(distill_bench.train),
            "validation": str(distill_bench.validation),
            "text_column": "text",
            "label_column": "label",
            "cache": str(distill_bench.cache),
            "teacher": distill_bench.hash,
            "student": str(distill_bench.student),
            "output": str(tmp_path / "out"),
            "seed": [0, 1],
            "workers": 2,
            "grid": GRID,
        }
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(keys | changes, sort_keys=False))
        return file

    return write


def made(folder: Path) -> list[str]:
    return sorted(str(file.parent.relative_to(folder)) for file in folder.rglob("metrics.json"))


def stamps(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("metrics.json")}


def test_every_run_is_made_once_and_compared(armada: CommandLine, job, tmp_path: Path):
    out = tmp_path / "out"
    printed = armada.done("ablate", job(), "--quiet")
    assert made(out) == RUNS
    for folder in RUNS:
        assert (out / folder / "student" / "model.safetensors").is_file()
    document = json.loads((out / "ablation.json").read_text())
    (study,) = document["studies"]
    for row in study["conditions"]:
        folders = [out / row["name"].replace(", ", "-") / f"seed-{seed}" for seed in (0, 1)]
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        assert row["value"]["runs"] == [each["validation"]["accuracy"] for each in metrics]
        assert f"{row['value']['mean']:.3f} ± {row['value']['std']:.3f}" in printed
        assert row["undistilled"] == (
            None if row["control"] == "undistilled" else row["name"].replace("dis", "undis", 1)
        )
    (cost,) = document["costs"]
    assert (cost["runs"], cost["rows"]) == (4, 2 * 53)
    assert not (out / "logs").exists()

    # Again: refused. Resumed: nothing is made twice. With more values: only those.
    again = armada("ablate", job(), "--quiet")
    assert again.code == 2
    assert again.error.endswith(
        "holds an ablation; continue with --resume, or choose another folder"
    )
    before = stamps(out)
    assert armada.done("ablate", job(), "--quiet", "--resume") == printed
    assert stamps(out) == before
    wider = job(grid=GRID | {"dropout": [0.0, 0.3, 0.5]})
    armada.done("ablate", wider, "--quiet", "--resume")
    assert len(made(out)) == 12
    assert {file: t for file, t in stamps(out).items() if file in before} == before

    # With other settings, the runs that are there are of another job.
    other = armada("ablate", job(epochs=2), "--quiet", "--resume")
    assert other.code == 2
    assert "holds a run of another job: epochs: was 1, now 2" in other.error
    assert stamps(out).keys() >= before.keys()


def test_a_run_is_the_one_that_distill_makes(armada: CommandLine, job, tmp_path, distill_bench):
    file = job(seed=1, grid={"control": ["undistilled", "none"]}, workers=1)
    armada.done("ablate", file, "--quiet")
    settings = [f"--set={key}={value}" for key, value in (SMALL | {"seed": 1}).items()]
    armada.done(*distill_bench.words(tmp_path / "alone"), *settings)
    alone, ours = (
        json.loads((folder / "metrics.json").read_text())["epochs"]
        for folder in (tmp_path / "alone", tmp_path / "out" / "distilled" / "seed-1")
    )
    assert alone == ours


def test_a_dry_run_checks_the_data_and_makes_nothing(armada: CommandLine, job, tmp_path: Path):
    out = armada.done("ablate", job(), "--dry-run").splitlines()
    assert out[0] == "8 runs, 0 finished, 32 steps left"
    assert out[1] == "distilled, dropout=0.0: seeds 0, 1, 53 examples, 4 steps each"
    assert not (tmp_path / "out").exists()
    cells = json.loads(armada.done("ablate", job(), "--dry-run", "--json"))
    assert [cell["steps"] for cell in cells] == [4] * 4
    wrong = armada("ablate", job(grid={"text_column": ["text", "words"]}, text_column="text"))
    assert "is set beside the grid" in wrong.error
    student = armada("ablate", job(student="scratch:brt"), "--dry-run")
    assert student.error == "grid, distilled, dropout=0.0: student scratch:brt: is not a model type"
    nowhere = armada("ablate", job(student="./no/where"), "--dry-run")
    assert nowhere.error.endswith("source ./no/where: no such folder")
    missing = armada("ablate", job(label_column="colour"), "--dry-run")
    assert missing.code == 2
    assert "colour" in missing.error


def test_all_cells_are_checked_before_a_run_starts(armada: CommandLine, job, tmp_path: Path):
    result = armada("ablate", job(label_column="colour"), "--quiet")
    assert result.code == 2
    assert result.error.startswith("grid, distilled, dropout=0.0: ")
    assert "'colour'" in result.error
    student = [str(yaml.safe_load(job().read_text())["student"]), "./nowhere"]
    file = job(grid=[{"name": "here", "student": student[0]}, {"student": student[1]}])
    keys = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({k: v for k, v in keys.items() if k != "student"}))
    result = armada("ablate", file, "--quiet")
    assert result.code == 2
    assert result.error == "grid, nowhere: source ./nowhere: no such folder"
    assert not (tmp_path / "out").exists(), "the mended job may have the folder"


def test_no_password_is_written_down(job, tmp_path: Path):
    url = "https://me:secret@example.org/cache"
    keys = yaml.safe_load(job(cache=url, grid=[{"cache": [url]}]).read_text())
    written = shown(keys)
    assert "secret" not in yaml.safe_dump(written)
    assert written["train"] == keys["train"]
    assert written["grid"] == [{"cache": ["https://example.org/cache"]}]


def test_a_kill_while_a_file_is_written_does_not_take_the_folder(
    armada: CommandLine, job, tmp_path: Path
):
    out = tmp_path / "out"
    for file in ("ablation.yaml.partial", "distilled/seed-0/job.yaml.partial"):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("cut")
    (out / "distilled").rename(tmp_path / "begun")
    grid = {"control": ["none", "undistilled"]}
    armada.done("ablate", job(seed=0, grid=grid), "--dry-run")
    assert is_free(out)
    assert is_free(tmp_path / "begun" / "seed-0")
    (tmp_path / "begun" / "seed-0").rename(tmp_path / "cut")
    file = job(seed=0, grid=grid, workers=1)
    out.joinpath("distilled").mkdir()
    (tmp_path / "cut").rename(out / "distilled" / "seed-0")
    (out / "ablation.yaml").write_text("{}")
    armada.done("ablate", file, "--quiet", "--resume")
    assert made(out) == ["distilled/seed-0", "undistilled/seed-0"]


def test_one_failed_run_does_not_take_the_others(armada: CommandLine, job, tmp_path: Path):
    grid = {"control": "none", "learning_rate": [1e-3, 1e30]}
    file = job(grid=grid, workers=1, seed=0)
    keys = yaml.safe_load(file.read_text())
    del keys["learning_rate"]
    file.write_text(yaml.safe_dump(keys))
    result = armada("ablate", file, "--quiet")
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith(
        "error: 1 of 2 runs failed, first distilled, learning_rate=1e+30, seed 0:"
    )
    assert "the others are finished" in last
    assert made(tmp_path / "out") == ["distilled-learning_rate=0.001/seed-0"]
    (log,) = (tmp_path / "out" / "logs").glob("*.txt")
    assert log.read_text().splitlines()[-1].startswith("error: ")
    assert json.loads((tmp_path / "out" / "ablation.json").read_text())["studies"]


def test_as_many_as_memory_and_processors_allow():
    assert room(peak_bytes=4, memory_bytes=100, processors=8) == 8
    assert room(peak_bytes=20, memory_bytes=100, processors=8) == 4, "with a quarter to spare"
    assert room(peak_bytes=200, memory_bytes=100, processors=8) == 1


def test_auto_makes_all_runs(armada: CommandLine, job, tmp_path: Path):
    file = job(workers="auto", seed=0, grid={"control": ["none", "undistilled", "shuffled"]})
    armada.done("ablate", file, "--quiet")
    assert len(made(tmp_path / "out")) == 3


def test_runs_end_with_their_parent_and_go_on(armada: CommandLine, start, job, tmp_path: Path):
    file = job(epochs=12, save_steps=4, seed=0, grid={"control": ["none", "undistilled"]})
    process = start("ablate", file, "--quiet")
    out = tmp_path / "out"
    wait_until(lambda: len(list(out.glob("*/seed-0/checkpoints/checkpoint-*"))) == 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not held_open(out))
    assert made(out) == []
    begun = {file: first_line(file) for file in out.glob("*/seed-0/log.jsonl")}
    assert begun
    armada.done("ablate", file, "--quiet", "--resume")
    assert made(out) == ["distilled/seed-0", "undistilled/seed-0"]
    # The rows from before the kill are still the first ones.
    assert {file: first_line(file) for file in begun} == begun


def test_one_at_a_time_in_a_folder(armada: CommandLine, job, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    with open_lock(out, LOCK) as lock:
        assert try_lock(lock.fileno(), out)
        result = armada("ablate", job(), "--quiet")
    assert result.code == 2
    assert result.error == f"output {out}: another `ablate` is running in it; wait until it ends"
    assert sorted(file.name for file in out.iterdir()) == [LOCK]


def test_a_folder_that_cannot_be_made(armada: CommandLine, job, tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = armada("ablate", job(output=str(tmp_path / "file" / "out")), "--quiet")
    assert result.code == 2
    assert "cannot be made: Not a directory; choose another" in result.error


def first_line(file: Path) -> str:
    return file.read_text().partition("\n")[0]


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + HANG_S
    while not done():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def held_open(folder: Path) -> list[str]:
    """Files below a folder to which living processes write what they say."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(entry))
    return [target for target in found if str(folder) in target]


def test_keys_are_listed(armada: CommandLine):
    out = armada.done("ablate", "--keys")
    assert "grid " in out
    assert "learning_rate " in out


def test_a_folder_with_something_in_it_is_refused(armada: CommandLine, job, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    result = armada("ablate", job(), "--quiet")
    assert result.code == 2
    assert result.error.endswith("is not empty; choose another folder")
