"""The engine's process: messages, what it says when it cannot start, and that it never stays."""

import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError, RunError
from armada.stages.precompute.engine.process import WORKER, EngineProcess, version_of
from armada.stages.precompute.engine.worker import receive, send
from hangs import HANG_S


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A Python without any packages but NumPy, which the worker needs before the engine."""
    python = tmp_path / "python"
    packages = Path(np.__file__).parents[1]
    (tmp_path / "numpy").symlink_to(packages / "numpy")
    (tmp_path / "numpy.libs").symlink_to(packages / "numpy.libs")
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def ends() -> Any:
    one, other = socket.socketpair()
    pair = Connection(one.detach()), Connection(other.detach())
    yield pair
    for each in pair:
        each.close()


def test_messages_arrive_as_they_were_sent(ends: Any) -> None:
    arrays = {
        "ids": np.arange(6, dtype=np.int32).reshape(2, 3),
        "log_probs": np.array([[-0.5], [-np.inf]], np.float32),
        "none": np.empty((0, 4), np.float32),
    }
    send(ends[0], {"id": 3, "finish": ["stop", None]}, **arrays)
    send(ends[0], {"ready": True})
    document, found = receive(ends[1])
    assert document == {"id": 3, "finish": ["stop", None]}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert receive(ends[1]) == ({"ready": True}, {})


def test_a_closed_end_is_seen(ends: Any) -> None:
    ends[0].close()
    with pytest.raises((EOFError, OSError)):
        receive(ends[1])


def test_a_python_without_the_engine_is_refused(bare: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"has no vllm; name a Python that has it, or: pip install"):
        version_of(bare)
    with pytest.raises(JobError, match=r"engine_python: .*there does not run .*; name a Python"):
        version_of(str(tmp_path / "there"))


def test_an_engine_that_does_not_start_says_why(bare: str) -> None:
    with pytest.raises(RunError, match=r"^vllm: ModuleNotFoundError: No module named 'vllm'$") as e:
        EngineProcess(bare, {"model": "none"})
    assert "Traceback" in str(e.value.__cause__)


def test_a_process_that_dies_is_seen(tmp_path: Path) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\necho out of memory >&2\nkill -9 $$\n")
    killed.chmod(0o755)
    with pytest.raises(RunError, match=r"^vllm: its process has ended with code -9$") as caught:
        EngineProcess(str(killed), {})
    assert "out of memory" in str(caught.value.__cause__)


PARENT = """
import os, socket, subprocess, sys, time
ours, its = socket.socketpair()
worker = subprocess.Popen([sys.executable, sys.argv[1], str(its.fileno())],
                          pass_fds=[its.fileno()], start_new_session=True)
its.close()
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_the_process_that_started_it() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(WORKER)], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    ends = time.monotonic() + HANG_S
    while Path(f"/proc/{worker}").exists() and _state(worker) != "Z":
        assert time.monotonic() < ends
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
