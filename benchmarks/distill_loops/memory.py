"""The most memory that a loop takes, each in a process of its own."""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from armada.pipeline.environment import peak_rss_bytes

STEPS = 6


def peak_bytes(
    loop: str, size: object, batch_size: int, device: torch.device, options: argparse.Namespace
) -> int:
    """Resident memory of the process at its most; on CUDA, that of the device's tensors."""
    job = {
        "loop": loop,
        "size": asdict(size),  # type: ignore[call-overload]
        "batch_size": batch_size,
        "device": str(device),
        "examples": options.examples,
        "dim": options.dim,
    }
    command = [sys.executable, "-m", "distill_loops.memory", json.dumps(job)]
    folder = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(run.stdout)


def _measure(job: dict[str, object]) -> int:
    from distill_loops.loops import LOOPS
    from distill_loops.material import Material, Size

    device = torch.device(str(job["device"]))
    with tempfile.TemporaryDirectory() as folder:
        material = Material(Path(folder), int(job["examples"]), int(job["dim"]))  # type: ignore[call-overload]
        (make,) = (loop for loop in LOOPS if loop.name == job["loop"])
        loop = make(material, Size(**job["size"]), int(job["batch_size"]), device)  # type: ignore
        for _ in range(STEPS):
            loop.step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_rss_bytes()


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
