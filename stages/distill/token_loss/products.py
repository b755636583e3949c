"""The three matrix products of a chunk with the lm_head, summed in float32 whatever comes in.

logits        hidden · weightᵀ + bias     [C, V]
hidden's      slope · weight              [C, H]
weight's      slopeᵀ · hidden             [V, H], added up over chunks in one float32 matrix

bfloat16 multiplies as it is where the product can be left in float32 (CUDA). Elsewhere, and for
float16, whose range slopes leave, a block of the weight at a time is widened: logits rounded to
bfloat16 are off by 0.03 at z = 10, and probabilities by 3 %.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 16 * 2**20
"""What a block of the weight takes in float32, about."""

HALF = (torch.float16, torch.bfloat16)


class Head:
    """A student's lm_head in the precision of its products; sums are in `sums`."""

    def __init__(self, weight_VH: Tensor, bias_V: Tensor | None, hidden_dtype: torch.dtype) -> None:
        self._rounded = factors_dtype(weight_VH, hidden_dtype)
        self.sums = torch.float32 if self._rounded in HALF else self._rounded
        self._narrow = self._rounded == torch.bfloat16 and can_leave_float32(weight_VH)
        self._factors = self._rounded if self._narrow else self.sums
        # Under autocast the weight is narrowed once, as a linear layer would do.
        self._weight_VH = weight_VH.to(self._rounded)
        self._bias_V = None if bias_V is None else bias_V.to(self.sums)
        rows, width = weight_VH.shape
        step = max(1, BLOCK_BYTES // (4 * width))
        self._blocks = [slice(start, start + step) for start in range(0, rows, step)]

    def widened(self, hidden_CH: Tensor) -> Tensor:
        """Hidden states as factors of the products, rounded as autocast would."""
        return hidden_CH.to(self._rounded).to(self._factors)

    def narrowed(self, slope_CV: Tensor) -> Tensor:
        """Slopes in the logits as factors of the products."""
        return slope_CV.to(self._factors)

    def logits(self, hidden_CH: Tensor, out: Tensor) -> None:
        """hidden · weightᵀ + bias."""
        for block, weight in self._weights():
            self._multiply(hidden_CH, weight.t(), out[:, block])
        if self._bias_V is not None:
            out.add_(self._bias_V)

    def hidden_gradient(self, slope_CV: Tensor, out: Tensor) -> None:
        """slope · weight, into zeros."""
        if self._whole:
            self._multiply(slope_CV, self._weight_VH, out)
            return
        for block, weight in self._weights():
            out.addmm_(slope_CV[:, block], weight)

    def add_weight_gradient(self, slope_CV: Tensor, hidden_CH: Tensor, total_VH: Tensor) -> None:
        """slopeᵀ · hidden, added to the total."""
        if not self._narrow:
            total_VH.addmm_(slope_CV.t(), hidden_CH)
            return
        for block in self._blocks:
            # In pieces that a GPU's cache holds until they are added.
            slope_VC = slope_CV[:, block].t()
            total_VH[block] += torch.mm(slope_VC, hidden_CH, out_dtype=self.sums)

    @property
    def _whole(self) -> bool:
        return self._weight_VH.dtype == self._factors

    def _weights(self) -> Iterator[tuple[slice, Tensor]]:
        if self._whole:
            yield slice(None), self._weight_VH
            return
        for block in self._blocks:
            yield block, self._weight_VH[block].to(self._factors)

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        if self._narrow:
            torch.mm(left, right, out_dtype=self.sums, out=out)
        else:
            torch.mm(left, right, out=out)


def can_leave_float32(weight_VH: Tensor) -> bool:
    """Whether a product of bfloat16 matrices can come out in float32 here."""
    return weight_VH.is_cuda


def factors_dtype(weight_VH: Tensor, hidden_dtype: torch.dtype) -> torch.dtype:
    """What a linear layer would multiply in: autocast's choice, or the wider of the two."""
    device = weight_VH.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (weight_VH.dtype, hidden_dtype):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(weight_VH.dtype, hidden_dtype)
