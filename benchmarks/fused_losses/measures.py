"""Seconds, bytes and errors of a way."""

import ctypes
import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from fused_losses.material import Material, Size
from fused_losses.peers import PEERS
from fused_losses.ways import OURS_AND_PLAIN, Way

WAYS = {way.name: way for way in (*OURS_AND_PLAIN, *PEERS)}


def seconds(way: Way, material: Material) -> float:
    """Of a loss and its gradients: by the clock on CUDA, of the processor elsewhere, so that others
    who use it are not counted."""
    clock = time.perf_counter if material.hidden_PH.is_cuda else time.process_time
    wait(material)
    before = clock()
    material.gradients(way.loss(material))
    wait(material)
    return clock() - before


def wait(material: Material) -> None:
    """For the device."""
    if material.hidden_PH.is_cuda:
        torch.cuda.synchronize()


def errors(way: Way, size: Size, dtype: torch.dtype, device: torch.device) -> list[float]:
    """Of the gradients of hidden states and lm_head, beside those of the plain way in float64 from
    the same numbers: norm of the difference over the norm."""
    material = Material(size, dtype, device, dense=True)
    found = material.gradients(way.loss(material))
    exact = Material(size, dtype, device, dense=True).cast(torch.float64)
    if material.log_probs_PV is not None:  # peers work them out themselves, from rounded numbers
        log_p = (exact.teacher_PH @ exact.teacher_VH.t()).log_softmax(dim=1)
        exact.log_probs_PV = log_p
    wanted = exact.gradients(WAYS[way.reference].loss(exact))
    return [
        ((one.double() - other).norm() / other.norm()).item()
        for one, other in zip(found, wanted, strict=True)
    ]


def extra_bytes(way: Way, size: Size, dtype: torch.dtype, device: torch.device) -> int:
    """The most memory that a step takes beside its inputs, gradients included: of the device's
    tensors on CUDA, else of the resident memory of a process of its own."""
    job = {"way": way.name, "size": asdict(size), "dtype": str(dtype), "device": str(device)}
    command = [sys.executable, "-m", "fused_losses.measures", json.dumps(job)]
    folder = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def _measure(job: dict[str, str]) -> int:
    device, way = torch.device(job["device"]), WAYS[job["way"]]
    dtype = getattr(torch, job["dtype"].removeprefix("torch."))
    small = Size(32, 32, 256, 8)  # loads libraries and makes threads
    warm = Material(small, dtype, device, dense=True)
    warm.gradients(way.loss(warm))
    material = Material(Size(**job["size"]), dtype, device, way.dense_answers)  # type: ignore[arg-type]
    gc.collect()
    before = _begin(device)
    kept = material.gradients(way.loss(material))
    assert len(kept) == 2
    return _peak(device) - before


def _begin(device: torch.device) -> int:
    """What is held now; from here on, the peak counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # else a step would reuse what making the inputs left behind
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
