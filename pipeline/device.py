"""Where models run."""

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
