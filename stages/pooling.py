"""Pooling of token states to one vector, in the ways that embedding models are trained.

Shapes: B texts, T tokens, H hidden numbers, M modes.
"""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

StatePooling = Literal["mean", "cls", "last", "max", "mean_sqrt_len_tokens", "weightedmean"]
"""mean: of all tokens; cls: the first; last: the last, which in a decoder has seen all others; max:
the largest of each number; mean_sqrt_len_tokens: the sum over the root of how many they are;
weightedmean: the mean, where the n-th token counts n times."""

STATE_POOLINGS: tuple[StatePooling, ...] = get_args(StatePooling)


def pool(
    states_BTH: "Tensor", mask_BT: "Tensor", modes: Sequence[StatePooling], skipped: int = 0
) -> "Tensor":
    """One vector [B, M * H] a text, of its real tokens alone (mask 1): each has at least one.
    Several modes are laid side by side. Half precision is pooled in float32.

    `skipped`: how many of a text's first tokens, those of a prompt, were read and do not count."""
    import torch

    if states_BTH.dtype in (torch.float16, torch.bfloat16):
        states_BTH = states_BTH.float()
    position_BT = mask_BT.cumsum(dim=1) * mask_BT  # 1 for the first token, on whichever side it is
    kept_BT = (position_BT > skipped).long()
    return torch.cat([_pool(states_BTH, position_BT, kept_BT, mode) for mode in modes], dim=-1)


def _pool(
    states_BTH: "Tensor", position_BT: "Tensor", kept_BT: "Tensor", mode: StatePooling
) -> "Tensor":
    if mode == "cls":
        return states_BTH[_rows(kept_BT), kept_BT.argmax(dim=1)]
    if mode == "last":
        return states_BTH[_rows(kept_BT), (position_BT * kept_BT).argmax(dim=1)]
    # Not a product with the mask: in half precision padding may hold infinities.
    padding_BT1 = kept_BT.unsqueeze(-1) == 0
    if mode == "max":
        return states_BTH.masked_fill(padding_BT1, -inf).amax(dim=1)
    kept_BTH, tokens_B1 = states_BTH.masked_fill(padding_BT1, 0.0), kept_BT.sum(1).unsqueeze(-1)
    if mode == "weightedmean":
        weights_BT = position_BT * kept_BT
        total_BH = (kept_BTH * weights_BT.unsqueeze(-1)).sum(dim=1)
        return total_BH / weights_BT.sum(dim=1).unsqueeze(-1)
    return kept_BTH.sum(dim=1) / (tokens_B1 if mode == "mean" else tokens_B1.sqrt())


def _rows(mask_BT: "Tensor") -> "Tensor":
    import torch

    # Not by its len, a number that an exporter to ONNX would keep.
    return torch.arange(mask_BT.shape[0], device=mask_BT.device)
