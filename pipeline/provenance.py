"""What ran, on what, when: for manifests and run folders. No host names, users or paths."""

import platform
import resource
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


@cache
def library_versions() -> dict[str, str]:
    """Installed version of each library an answer or a student can depend on."""
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
