"""A device whose memory does not suffice for large batches: what torch says then, and when."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB"


class _Scarce:
    """Refuses linear layers over tokens more than so many rows, once so many were let through."""

    def __init__(self, rows: int, begins: int) -> None:
        self._rows, self._begins, self.refused = rows, begins, list[int]()

    def forward(self, layer: nn.Module, inputs: Any) -> None:
        if not isinstance(layer, nn.Linear) or inputs[0].ndim < 3 or len(inputs[0]) <= self._rows:
            return
        self._begins -= 1
        if self._begins < 0:
            self.refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError(MESSAGE)

    def backward(self, layer: nn.Module, _: Any, gradients: Any) -> None:
        self.forward(layer, gradients)


@contextmanager
def room_for(rows: int, begins: int = 0) -> Iterator[list[int]]:
    """Memory for so many rows of tokens in any linear layer, though `begins` larger inputs still
    fit. Yields the rows of each that did not."""
    scarce = _Scarce(rows, begins)
    hook = register_module_forward_pre_hook(scarce.forward)
    try:
        yield scarce.refused
    finally:
        hook.remove()


@contextmanager
def room_within(
    model: nn.Module, rows: int, begins: int = 0, backward: bool = False
) -> Iterator[list[int]]:
    """The same within a model, in its forward or its backward pass."""
    scarce = _Scarce(rows, begins)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if backward:
        hooks = [layer.register_full_backward_hook(scarce.backward) for layer in layers]
    else:
        hooks = [layer.register_forward_pre_hook(scarce.forward) for layer in layers]
    try:
        yield scarce.refused
    finally:
        for hook in hooks:
            hook.remove()
