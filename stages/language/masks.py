"""What attention masks are needed for, said where a batch is made rather than read from a device.

    needs_mask(batch)                     on the CPU, when the batch is made
    with attending(masked): model(...)    on the device

transformers leaves the mask of attention out where nothing is padded and no texts share a row,
which allows faster kernels. It learns that from the numbers themselves, so every forward pass waits
for the device once or more. Here a context says it, and the masks are those of transformers, bit
for bit. Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Attention:
    masked: bool
    positions_BT: Tensor | None


_DECLARED: ContextVar[_Attention | None] = ContextVar("_DECLARED", default=None)


def needs_mask(batch: Mapping[str, Any]) -> bool:
    """Whether a batch on the CPU has padding, or rows of several texts that are kept apart."""
    if (mask_BT := batch.get("attention_mask")) is not None:
        return not bool(mask_BT.all())
    return bool((batch["position_ids"].diff(dim=1) != 1).any())


@contextmanager
def attending(masked: bool | None, positions_BT: Tensor | None = None) -> Iterator[None]:
    """Forward passes with what `needs_mask` said of their batch; None: transformers finds out.

    With `positions_BT`, texts in a row are kept apart where positions begin again; the model then
    gets an attention mask of ones, without which transformers would read the positions."""
    if masked is None:
        yield
        return
    _register()
    token = _DECLARED.set(_Attention(masked, positions_BT))
    try:
        yield
    finally:
        _DECLARED.reset(token)


@cache
def _register() -> None:
    """Wrap the ways in which transformers makes masks for attention in PyTorch."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    for name in ("sdpa", "eager"):
        usual = ALL_MASK_ATTENTION_FUNCTIONS[name]
        AttentionMaskInterface.register(name, partial(_make, usual))


def _make(usual: Callable[..., Tensor | None], **given: Any) -> Tensor | None:
    # A compiled model reads nothing, and always has a mask.
    declared = None if torch.compiler.is_compiling() else _DECLARED.get()
    if declared is None:
        return usual(**given)
    if not declared.masked:
        return usual(**given | {"attention_mask": None})
    given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    if declared.positions_BT is not None:
        apart = _apart(given["mask_function"], declared.positions_BT)
        given |= {"attention_mask": None, "mask_function": apart}
    return usual(**given)


def _apart(mask_function: Callable[..., Any], positions_BT: Tensor) -> Callable[..., Any]:
    """A family's own mask, counted from the start of each text and limited to it."""
    from transformers.masking_utils import and_masks, packed_sequence_mask_function

    def own(row: Any, head: Any, query: Any, key: Any) -> Any:
        return mask_function(row, head, positions_BT[row, query], positions_BT[row, key])

    begins_BT = torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=1) != 1
    return and_masks(own, packed_sequence_mask_function(begins_BT.cumsum(1)))  # type: ignore[no-any-return]
