"""Two processes train the student that one trains: the same losses in every step."""

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes_worker
import pytest
import torch
from armada.stages.store.reading.reader import open_cache
from hangs import HANG_S
from safetensors.torch import load_file
from tiny_runs import Bench, freeze_dropout, make_cache, make_token_cache

pytestmark = pytest.mark.long

TESTS = Path(processes_worker.__file__).parent
PLUG_INS = TESTS / "hint_objective"
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
    "negatives": {"batch_size": 8, "objective": "infonce", "weights": {"negatives": 9}},
    "texts that come again": {"batch_size": 8, "objective": "crd", "repeated": True},
    "critic": {
        **{"batch_size": 8, "objective": "wcord", "placement": "resident"},
        "weights": {"negatives": 9, "mask_same_label": True},
    },
    "undistilled": {"batch_size": 8, "control": "undistilled"},
    "adapters": {"batch_size": 8, "lora_rank": 2},
    "layers": {"batch_size": 8, "objective": "hint", "weights": {"layers": [0, 1, -1]}},
    "layers, a batch of one": {"batch_size": 4, "objective": "hint"},
    "hidden layers": {
        **{"batch_size": 4, "objective": "hidden_layers", "features": ["embedding", "logits"]},
        "weights": {"map": "learned", "normalize": True},
    },
    "token states": {"batch_size": 8, "objective": "token_states"},
    "token relations": {"batch_size": 4, "objective": "token_relations"},
    "averaged": {"batch_size": 8, "average": "ema", "average_decay": 0.8},
    "static": {"batch_size": 8, "objective": "feature", "static": True},
    "two momenta": {
        **{"batch_size": 4, "gradient_accumulation": 2, "objective": "kd"},
        **{"optimizer": "dot", "learning_rate": 0.02, "max_grad_norm": 0.1},
    },
    "summed": {"batch_size": 8, "summed": True},
    "learned weights": {"batch_size": 8, "summed": True, "weight": "learned"},
    "summed, joint": {"batch_size": 4, "summed": True, "schedule": "joint"},
}
# In processes of their own: whoever has sharded once does so ever after.
SHARDED: dict[str, dict[str, Any]] = {
    "sharded": {"batch_size": 8, "shard_student": True},
    "sharded, joint": {"batch_size": 8, "shard_student": True, "schedule": "joint"},
    "sharded, adapters": {"batch_size": 8, "shard_student": True, "lora_rank": 2},
    "sharded, summed": {"batch_size": 8, "shard_student": True, "summed": True},
    "sharded, undistilled": {"batch_size": 4, "shard_student": True, "control": "undistilled"},
}
CUT = {"batch_size": 8, "save_steps": 5}


def in_two_processes(torchrun: Sequence[str], plan: Path) -> dict[str, list[float]]:
    """The losses of a plan's runs."""
    paths = os.pathsep.join([str(TESTS), str(PLUG_INS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*torchrun, str(TESTS / "processes_worker.py"), str(plan)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses: dict[str, list[float]] = json.loads(plan.with_name("losses.json").read_bytes())
    return losses


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUG_INS)


@pytest.fixture(scope="module")
def root(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT without dropout and a cache."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(checkpoint("bert"), folder / "student")
    freeze_dropout(folder / "student")
    make_cache(folder / "cache")
    make_token_cache(folder / "cache-tokens", folder / "student")
    return folder


def carried_out(
    torchrun: Sequence[str], root: Path, runs: dict[str, dict[str, Any]], **more: Any
) -> dict[str, list[float]]:
    """The losses of runs, each in a folder of its name, in two processes."""
    plan = {"student": str(root / "student"), "cache": str(root / "cache")}
    named = {name: {**how, "folder": str(root / name)} for name, how in (runs | more).items()}
    file = root / "plan.json"
    file.write_text(json.dumps({**plan, "runs": named}))
    return in_two_processes(torchrun, file)


@pytest.fixture(scope="module")
def found(torchrun: Sequence[str], root: Path) -> dict[str, list[float]]:
    return carried_out(torchrun, root, RUNS, cut={**CUT, "stop_after": 12})


@pytest.fixture(scope="module")
def found_sharded(torchrun: Sequence[str], root: Path) -> dict[str, list[float]]:
    cut = {**CUT, "shard_student": True}
    first = carried_out(torchrun, root, SHARDED, part={**cut, "stop_after": 12})
    return first | {"rest": carried_out(torchrun, root, {}, part=cut)["part"]}


def alone(root: Path, folder: Path, **how: Any) -> list[float]:
    """The same run in this process."""
    tokens = open_cache(root / "cache-tokens")
    bench = Bench(root / "student", open_cache(root / "cache"), tokens=tokens)
    return processes_worker.losses(bench, {**copy.deepcopy(how), "folder": str(folder)})


def assert_same(root: Path, alone_in: Path, name: str) -> None:
    """All weights of a run, and what its evaluations brought."""
    expected, got = (load_file(f / processes_worker.WEIGHTS) for f in (alone_in, root / name))
    assert expected.keys() == got.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(got[key], weight, rtol=1e-7, atol=1e-9, msg=key)
    here, there = (
        json.loads((folder / processes_worker.EPOCHS).read_bytes())
        for folder in (alone_in, root / name)
    )
    for row, other in zip(here, there, strict=True):
        assert other == pytest.approx(row, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_the_losses_are_those_of_one_process(root, found, tmp_path, name):
    expected = alone(root, tmp_path, **RUNS[name])
    assert len(expected) > 12
    assert found[name] == pytest.approx(expected, rel=1e-9)
    assert_same(root, tmp_path, name)


def test_one_process_goes_on_with_the_run_of_two(root, found, tmp_path):
    """After step 12 of 21, of which 10 are saved."""
    expected = alone(root, tmp_path / "whole", **CUT)
    cut = Path(shutil.copytree(root / "cut", tmp_path / "cut"))
    assert found["cut"] == pytest.approx(expected[: len(found["cut"])], rel=1e-9)
    assert alone(root, cut, **CUT) == pytest.approx(expected[10:], rel=1e-9)


@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_student_is_that_of_one_process(root, found_sharded, tmp_path, name):
    """Whole again at the end, too."""
    expected = alone(root, tmp_path, **SHARDED[name])
    assert found_sharded[name] == pytest.approx(expected, rel=1e-9)
    assert_same(root, tmp_path, name)


def test_a_sharded_run_goes_on(root, found_sharded, tmp_path):
    expected = alone(root, tmp_path, **CUT)
    assert found_sharded["rest"] == pytest.approx(expected[10:], rel=1e-9)
