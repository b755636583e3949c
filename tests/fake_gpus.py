"""GPUs that are none: tensors say that they are there, and have no numbers. An operation on tensors
of several devices, or on one of this machine's beside one of theirs, fails as it would there."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


class _Arrived:
    """A copy from a device that has no numbers is there at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def fake_gpus() -> Iterator[None]:
    """Tensors made in here, or moved to a GPU, are fake; memory is pinned without a driver."""
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
        empty = torch.empty
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch, "empty", lambda *a, pin_memory=False, **more: empty(*a, **more))
        patch.setattr(torch.cuda, "Event", _Arrived)
        yield


def placed(model: nn.Module, parts: Mapping[str, torch.device]) -> Any:
    """A model whose parts (all of them, by '') are on fake GPUs; if on several, as accelerate
    spreads it."""
    for name, device in parts.items():
        for module in model.get_submodule(name).modules():
            _move(module._parameters, device, as_weight=True)
            _move(module._buffers, device, as_weight=False)
    if len(set(parts.values())) == 1:
        return model
    with pytest.MonkeyPatch.context() as patch:
        # It would move the weights, which are there.
        patch.setattr(AlignDevicesHook, "init_hook", lambda hook, module: module)
        indices = {name: device.index for name, device in parts.items()}
        dispatch_model(model, indices)
    model.hf_device_map = indices
    return model


def _move(tensors: dict[str, Any], device: torch.device, as_weight: bool) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            tensors[name] = nn.Parameter(moved, requires_grad=False) if as_weight else moved
