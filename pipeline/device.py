"""Where models run."""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..cache_schemas.errors import JobError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, local_rank: int = 0) -> "torch.device":
    """The torch device called `name`; 'auto' is an accelerator, else the processor. Of several
    accelerators, each process of a node has its own.

    Raises JobError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        reason = str(cause).splitlines()[0]
        raise JobError(f"job key 'device': {name!r} cannot be used here: {reason}") from cause
    return device


def visible_gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the devices that workers may share out; none if the job
    names one device for all. No device is touched."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def environments(workers: int, gpus: Sequence[str]) -> Iterator[dict[str, str]]:
    """Of each process, its part of the processor's threads, and its GPU if there are some: they
    take turns if those are fewer."""
    import torch

    threads = str(max(1, torch.get_num_threads() // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for number in range(workers):
        yield dict.fromkeys(names, threads) | (
            {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        )
