"""A device whose memory does not suffice for large batches: what torch says then, and when."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as modules

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB"


@contextmanager
def room_for(rows: int, backward: bool = False, begins: int = 0) -> Iterator[list[int]]:
    """Linear layers that get more than so many rows raise an error, in the forward or in the
    backward pass; `begins`: after so many that were let through. Yields the rows of each."""
    refused: list[int] = []
    seen = 0

    def refuse(layer: nn.Module, got: Any, *_: Any) -> None:
        nonlocal seen
        if not isinstance(layer, nn.Linear) or len(got[0]) <= rows:
            return
        seen += 1
        if seen > begins:
            refused.append(len(got[0]))
            raise torch.OutOfMemoryError(MESSAGE)

    def refuse_backward(layer: nn.Module, _: Any, gradients: Any) -> None:
        refuse(layer, gradients)

    if backward:
        hook = modules.register_module_full_backward_hook(refuse_backward)
    else:
        hook = modules.register_module_forward_pre_hook(refuse)
    try:
        yield refused
    finally:
        hook.remove()
