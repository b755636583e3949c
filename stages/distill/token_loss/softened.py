"""A chunk's divergence with its gradient, in the form that all kinds of answers share.

The gradient over the vocabulary is a softmax times one number a token, plus a few numbers at listed
ids (or, for dense answers, one more matrix): sparse answers and draws take one pass of exponentials
and no matrix [C, V] beside the logits and the softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .answers import Answers


@dataclass(frozen=True, slots=True)
class Softened:
    """With z the logits over the temperature [C, V] and q = softmax(z):

    divergence_C  of each row
    log_sum_C1    log Σ exp z
    shares_CV     q of all ids that are not set apart, over their sum; 0 at the others
    rest_C1       that sum: q = rest · shares, plus mass_Ck at the ids that are set apart
    slope_C1      ∂divergence/∂z = slope · shares, plus push at ids_Ck, or everywhere: [C, V]
    """

    divergence_C: Tensor
    log_sum_C1: Tensor
    shares_CV: Tensor
    rest_C1: Tensor
    slope_C1: Tensor
    push: Tensor
    ids_Ck: Tensor | None = None
    mass_Ck: Tensor | None = None


Soften = Callable[[Tensor, Tensor, Answers, Tensor], Softened]
"""From logits over the temperature [C, V], which are used up, a buffer of that shape for shares,
the answers, and whether each row is answered [C]. Every number is finite in unanswered rows too,
and none lies in the memory of the logits."""


def softmax(logits_CV: Tensor, out: Tensor) -> Tensor:
    """exp z / Σ exp z goes to `out`; returns log Σ exp z, [C, 1].

    The greatest share is 1 / Σ exp(z - max z): no second pass of exponentials."""
    torch.softmax(logits_CV, dim=-1, out=out)
    peak_C1 = logits_CV.amax(dim=-1, keepdim=True)
    return peak_C1 - out.amax(dim=-1, keepdim=True).log_()
