"""The machine: devices, versions, hardware and times, for manifests and run folders.

Records have no host names, users or paths.
"""

import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache_schemas.errors import JobError

if TYPE_CHECKING:
    import torch

LIBRARIES = (
    "armada-kd",
    "torch",
    "transformers",
    "diffusers",
    "open_clip_torch",
    "accelerate",
    "numpy",
    "pyarrow",
    "zarr",
)


DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Types of devices that teachers, and finished students, compute on."""


def choose_device(name: str, local_rank: int = 0) -> "torch.device":
    """The torch device called `name`; 'auto' is an accelerator, else the processor. Of several
    accelerators, each process of a node has its own; a launcher that shows each process one alone
    gives all of them the number 0.

    Raises JobError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise JobError(f"job key 'device': {name!r} is none of {', '.join(DEVICES)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        reason = str(cause).splitlines()[0]
        raise JobError(f"job key 'device': {name!r} cannot be used here: {reason}") from cause
    return device


def _visible_devices() -> str:
    """The variable that chooses GPUs: ROCm's own, where it is set, goes before CUDA's."""
    own = "HIP_VISIBLE_DEVICES"
    return own if own in os.environ else "CUDA_VISIBLE_DEVICES"


def visible_gpus(device: str) -> list[str]:
    """Names in CUDA_VISIBLE_DEVICES, or HIP_VISIBLE_DEVICES, of the GPUs for workers; none if the
    job names one device for all. No device is initialised."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get(_visible_devices())
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def environments(workers: int, gpus: Sequence[str]) -> Iterator[dict[str, str]]:
    """Environment of each process: its share of the CPU threads, and a GPU if there are any, shared
    round-robin if there are fewer."""
    import torch

    threads = str(max(1, torch.get_num_threads() // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for number in range(workers):
        yield dict.fromkeys(names, threads) | (
            {_visible_devices(): gpus[number % len(gpus)]} if gpus else {}
        )


@cache
def library_versions() -> dict[str, str]:
    """Installed version of each library that features or students can depend on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def hardware(device: str) -> dict[str, str]:
    """The device and the processor."""
    import torch

    found = {
        "device": device,
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # Not `ru_maxrss`, which Linux hands on: a small process started by a large one has the other's.
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def new_run_id() -> str:
    """A name that sorts by time and does not repeat."""
    import secrets

    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
