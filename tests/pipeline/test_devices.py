"""The device of a process, where launchers show it all GPUs of a node or its own alone."""

import os
import subprocess
import sys

import pytest
import torch
from armada.cache_schemas.errors import JobError
from armada.pipeline.environment import choose_device, environments, visible_gpus


@pytest.mark.parametrize(
    ("visible", "local_rank", "chosen"),
    [(4, 3, "cuda:3"), (1, 3, "cuda:0"), (0, 2, "cuda:0")],
    ids=["all are visible", "its own alone is", "none is"],
)
def test_a_process_chooses_its_own_gpu_among_the_visible(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch, "empty", _no_device)
    with pytest.raises(JobError, match=f"'{chosen}' cannot be used here"):
        choose_device("cuda", local_rank)


@pytest.mark.parametrize("name", ["meta", "hpu", "vulkan"])
def test_devices_that_nothing_is_computed_on_are_refused(name: str) -> None:
    with pytest.raises(JobError, match=f"'{name}' is none of cpu, cuda, mps, xpu"):
        choose_device(name)


def _no_device(*_: object, **__: object) -> None:
    raise RuntimeError("no NVIDIA driver")


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_workers_share_the_gpus_that_were_chosen(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "2,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus = visible_gpus("auto")
    assert gpus == ["2", "5"]
    assert [env[variable] for env in environments(3, gpus)] == ["2", "5", "2"]


GROUP = """
import torch, torch.distributed as dist
from armada.stages.distill.processes import Processes
Processes(0, 2).meet(torch.device("cpu"))
backend = dist.group.WORLD._get_backend(torch.device("cpu"))
print(backend.options._timeout.total_seconds())
"""


def test_processes_wait_while_one_reads_a_large_corpus() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", GROUP],
        env={**os.environ, **alone, **where},
        capture_output=True,
        text=True,
    )
    assert float(done.stdout) >= 3600, done.stderr
