"""Memory that does not suffice, of a device or of this machine: how to tell, and what to free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..cache_schemas.errors import ArmadaError

_NO_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "MPS backend out of memory",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    "UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "HIP out of memory",
    "CUDA out of memory",
    "XPU out of memory",
)
"""How libraries below torch say that an allocation failed, where it is no `OutOfMemoryError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of a device, or of this machine, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _NO_MEMORY)


@contextmanager
def out_of_memory_as(make_error: Callable[[], ArmadaError]) -> Iterator[None]:
    """Turns errors of memory that did not suffice into the one that `make_error` makes."""
    try:
        yield
    except (RuntimeError, MemoryError) as cause:
        if not is_out_of_memory(cause):
            raise
        raise make_error() from cause


def free_cached_memory() -> None:
    """Give back what torch keeps for later, on every kind of device there is."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.xpu.is_available():
        torch.xpu.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
