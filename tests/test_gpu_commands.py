"""What is run on a machine with GPUs, as it answers on one without; imports ask for none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]

IMPORTS = """
import importlib, pkgutil, sys, torch
from functools import partial
asked = []
def noting(name, usual):
    def ask(*args, **more):
        asked.append(name)
        return usual(*args, **more)
    return ask
public = ["is_available", "device_count", "current_device", "get_device_properties"]
inner = ["_cuda_getDeviceCount", "_cuda_init"]
for module, names in ((torch.cuda, public), (torch._C, inner)):
    for name in filter(partial(hasattr, module), names):
        setattr(module, name, noting(name, getattr(module, name)))
import armada
for found in pkgutil.walk_packages(armada.__path__, "armada."):
    if found.name.split(".")[1] in sys.argv[1:]:
        importlib.import_module(found.name)
        if asked:
            sys.exit(f"{found.name}: {asked}")
"""


def test_no_import_asks_the_driver() -> None:
    """A process that has asked can start no other that uses a GPU by forking."""
    parts = ["cache_schemas", "stages", "pipeline", "cli"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *parts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_script_for_a_gpu_says_where_there_is_none(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", tmp_path / "out"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        "benchmarks/gpu.sh: PyTorch sees no GPU on this machine; run it on one, with PyTorch for "
        "CUDA installed"
    )
    assert not (tmp_path / "out").exists()


STUB = """#!/bin/bash
case "$*" in
    -) echo "a machine" ;;
    *pytest*) echo "2 failed"; exit 1 ;;
    *) echo "| a | table |" ;;
esac
"""


def test_the_script_goes_on_after_a_part_that_fails_and_says_so(tmp_path: Path) -> None:
    stub, out = tmp_path / "python", tmp_path / "out"
    stub.write_text(STUB)
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh", out],
        env={**os.environ, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    first, _, _, _, *parts = (out / "table.md").read_text().splitlines()
    assert first.endswith(", a machine")
    ends = {part.split("|")[1].strip(): part.split("|")[2].strip() for part in parts}
    assert ends == {
        "[tests](tests.txt)": "1",
        "[distill](distill.txt)": "0",
        "[fused_loss](fused_loss.txt)": "0",
        "[precompute](precompute.txt)": "0",
        "[engine](engine.txt)": "0",
    }
    assert (out / "tests.txt").read_text() == "2 failed\n"


def test_the_script_runs_every_benchmark_that_takes_a_device() -> None:
    script = (ROOT / "benchmarks/gpu.sh").read_text()
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        if '"--device"' in file.read_text():
            assert f"benchmarks/{file.name} --device cuda" in script, file.name
