"""Placement of the cached features of a training set during training.

resident  A copy on the training device: a batch is an index-select there, and nothing is read.
mapped    In the store's files, mapped into memory: a batch is one gather. On a CPU the mapped pages
          are the memory, and a copy would only double them.
streamed  In the store's files, for features that do not fit into memory or are remote: epochs
          follow the shards, in blocks of contiguous examples, and the next ones are read
          while the current ones are used.
auto      resident on an accelerator that has room for them, else mapped: the same order of
          examples, so the same student.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch

from ...cache_schemas.errors import JobError
from ..store.reading.memory import available_memory
from .settings import Placement

Where = Literal["resident", "mapped", "streamed"]
RESIDENT_SHARE, MOST_OF_IT = 0.25, 0.9
"""Share of a device's free memory for features with `auto`, and with `resident`: the rest is for
the student."""


def choose_placement(
    requested: Placement, feature_bytes: int, device: torch.device, from_afar: bool
) -> Where:
    """The placement for features of some size.

    Raises JobError if they should be resident and the device has no room for them."""
    if requested in ("mapped", "streamed"):
        return requested
    if requested == "auto" and (device.type == "cpu" or from_afar):
        return "mapped"
    free = free_memory(device)
    if requested == "auto":
        return "resident" if feature_bytes <= RESIDENT_SHARE * free else "mapped"
    if feature_bytes > MOST_OF_IT * free:
        raise JobError(
            f"placement resident: the features of the training set take {_gib(feature_bytes)} and "
            f"{device} has {_gib(free)} free; use mapped, or streamed if they do not fit into "
            "memory either"
        )
    return "resident"


def choose_placements(
    requested: Mapping[str, Placement],
    feature_bytes: Mapping[str, int],
    device: torch.device,
    from_afar: Collection[str],
) -> dict[str, Where]:
    """The same for the features of several sources. All resident ones need room at once, and an
    epoch can follow the shards of one source only: those of the largest that is streamed; others
    are mapped.

    Raises JobError as `choose_placement` does."""
    chosen: dict[str, Where] = {}
    taken = 0
    largest_first = sorted(requested, key=lambda source: -feature_bytes[source])
    for source in largest_first:
        needed = taken + feature_bytes[source]
        chosen[source] = choose_placement(requested[source], needed, device, source in from_afar)
        if chosen[source] == "streamed" and "streamed" in list(chosen.values())[:-1]:
            chosen[source] = "mapped"
        if chosen[source] == "resident":
            taken = needed
    return {source: chosen[source] for source in requested}


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; from pinned memory, so that the host need not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Bytes that could still be taken on a device."""
    if device.type == "cpu":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch holds and does not use: a run before this one may have left it.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _gib(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB"
