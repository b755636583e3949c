"""Two processes train the student that one trains: the same losses in every step."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes_worker
import pytest
from armada.stages.store.reading.reader import open_cache
from tiny_runs import Bench, freeze_dropout, make_cache

TESTS = Path(processes_worker.__file__).parent
# 53 examples: in batches of 8 the last has five, in batches of 4 one, a single process's.
RUNS: dict[str, dict[str, Any]] = {
    "alternate": {"batch_size": 8},
    "a batch of one": {"batch_size": 4},
    "joint": {"batch_size": 8, "schedule": "joint"},
    "pointwise": {"batch_size": 8, "weights": {"manifold": "pointwise"}},
    "accumulated": {"batch_size": 4, "gradient_accumulation": 2},
    "by length": {"batch_size": 8, "group_by_length": True},
    "resident": {"batch_size": 8, "placement": "resident"},
    "feature": {"batch_size": 8, "objective": "feature"},
    "kd": {"batch_size": 8, "objective": "kd", "weights": {"temperature": "learned"}},
    "undistilled": {"batch_size": 8, "control": "undistilled"},
}
CUT = {"batch_size": 8, "save_steps": 5}


def in_two_processes(plan: Path) -> dict[str, list[float]]:
    """The losses of a plan's runs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(TESTS / "processes_worker.py"), str(plan)],
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses: dict[str, list[float]] = json.loads(plan.with_name("losses.json").read_bytes())
    return losses


@pytest.fixture(scope="module")
def plan(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A BERT without dropout, a cache, and runs in folders of their own."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(checkpoint("bert"), folder / "student")
    freeze_dropout(folder / "student")
    make_cache(folder / "cache")
    runs = {name: {**how, "folder": str(folder / name)} for name, how in RUNS.items()}
    runs["cut"] = {**CUT, "folder": str(folder / "cut"), "stop_after": 12}
    return {
        "student": str(folder / "student"),
        "cache": str(folder / "cache"),
        "runs": runs,
    }


@pytest.fixture(scope="module")
def found(plan: dict[str, Any]) -> dict[str, list[float]]:
    file = Path(plan["student"]).with_name("plan.json")
    file.write_text(json.dumps(plan))
    return in_two_processes(file)


def alone(plan: dict[str, Any], folder: Path, **how: Any) -> list[float]:
    """The same run in this process."""
    bench = Bench(Path(plan["student"]), open_cache(plan["cache"]))
    return processes_worker.losses(bench, {**copy.deepcopy(how), "folder": str(folder)})


@pytest.mark.parametrize("name", RUNS)
def test_the_losses_are_those_of_one_process(plan, found, tmp_path, name):
    expected = alone(plan, tmp_path, **RUNS[name])
    assert len(expected) > 12
    assert found[name] == pytest.approx(expected, rel=1e-9)


def test_one_process_goes_on_with_the_run_of_two(plan, found, tmp_path):
    """After step 12 of 21, of which 10 are saved."""
    expected = alone(plan, tmp_path / "whole", **CUT)
    cut = Path(shutil.copytree(plan["runs"]["cut"]["folder"], tmp_path / "cut"))
    assert found["cut"] == pytest.approx(expected[: len(found["cut"])], rel=1e-9)
    assert alone(plan, cut, **CUT) == pytest.approx(expected[10:], rel=1e-9)
