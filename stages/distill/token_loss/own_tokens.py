"""Log-probabilities of given tokens, without all logits in memory.

One node of the autograd graph: chunks of tokens go through lm_head, and again in the backward pass,
where the gradient of each token's log-probability is known. What the student's own loss does in one
pass (`chunked.py`) takes two here: which gradient a token has depends on all others of its response
and on those of the other one. Nothing here reads a value back from the device.

    log p = z_target - log Σ exp z          d log p / dz = onehot - softmax(z)

Shapes: P tokens, H width of the student, V rows of its vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...language.logits import LogitTransform
from ..losses import MISSING_LABEL
from .chunked import Buffers, Head, chunk_tokens
from .divergences import softmax
from .loss import Tokens


def token_log_probs(tokens: Tokens, chunk: int | None = None) -> Tensor:
    """The log-probability of each target [P] in nats; 0, without a gradient, where it is missing.

    In float32, or float64 for float64 inputs. `chunk` as in `token_loss`."""
    step = _Step(
        tokens.labels_P,
        tokens.transform,
        chunk or chunk_tokens(len(tokens.weight_VH), tokens.weight_VH.device),
    )
    found: Tensor = _TokenLogProbs.apply(step, tokens.hidden_PH, tokens.weight_VH, tokens.bias_V)
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    labels_P: Tensor
    transform: LogitTransform
    chunk: int

    def targets(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Ids [C, 1], 0 where there is none, and whether there is one."""
        labels_C1 = self.labels_P[rows][:, None]
        given_C1 = labels_C1 != MISSING_LABEL
        return labels_C1.where(given_C1, 0).long(), given_C1

    def buffers(self, weight_VH: Tensor, head: Head) -> Buffers:
        """Memory of a pass."""
        tokens = min(self.chunk, len(self.labels_P))
        return Buffers(tokens, len(weight_VH), weight_VH, head.sums)


class _TokenLogProbs(torch.autograd.Function):
    """(step, hidden_PH, weight_VH, bias_V) -> log-probabilities [P]."""

    @staticmethod
    def forward(
        ctx: Any, step: _Step, hidden_PH: Tensor, weight_VH: Tensor, bias_V: Tensor | None
    ) -> Tensor:
        head = Head(weight_VH, bias_V, hidden_PH.dtype)
        log_probs_P = hidden_PH.new_zeros(len(hidden_PH), dtype=head.sums)
        with torch.autocast(hidden_PH.device.type, enabled=False):
            for rows, logits_CV in _logits(step, head, hidden_PH, step.buffers(weight_VH, head)):
                ids_C1, given_C1 = step.targets(rows)
                chosen_C1 = logits_CV.gather(1, ids_C1)
                found_C1 = chosen_C1 - logits_CV.logsumexp(dim=1, keepdim=True)
                log_probs_P[rows] = found_C1.where(given_C1, 0).squeeze(1)
        ctx.step, ctx.head = step, head  # under autocast it has its own narrowed weight
        ctx.save_for_backward(hidden_PH, weight_VH, bias_V)
        return log_probs_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor | None, ...]:
        step, head = ctx.step, ctx.head
        inputs = ctx.saved_tensors
        gradients = [
            torch.zeros_like(tensor, dtype=head.sums) if needed and tensor is not None else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        hidden_grad_PH, weight_grad_VH, bias_grad_V = gradients
        hidden_PH = inputs[0]
        # In units of the largest: bfloat16 would round small ones the same way everywhere.
        tiny = torch.finfo(head.sums).tiny
        unit = gradient_P.abs().amax().clamp(min=tiny) if len(gradient_P) else gradient_P.sum()
        with torch.autocast(hidden_PH.device.type, enabled=False):
            buffers = step.buffers(inputs[1], head)
            for rows, logits_CV in _logits(step, head, hidden_PH, buffers):
                ids_C1, given_C1 = step.targets(rows)
                due_C1 = (gradient_P[rows] / unit)[:, None].to(head.sums).where(given_C1, 0)
                slope_CV = buffers.take("shares", len(logits_CV))
                softmax(logits_CV, slope_CV)
                slope_CV.mul_(-due_C1).scatter_add_(1, ids_C1, due_C1)
                step.transform.cap_slope_(slope_CV, logits_CV)
                if bias_grad_V is not None:
                    bias_grad_V += slope_CV.sum(dim=0)
                slope_CV = head.narrowed(slope_CV)
                if hidden_grad_PH is not None:
                    head.hidden_gradient(slope_CV, hidden_grad_PH[rows])
                if weight_grad_VH is not None:
                    hidden_CH = head.widened(hidden_PH[rows].masked_fill(~given_C1, 0))
                    head.add_weight_gradient(slope_CV, hidden_CH, weight_grad_VH)
        scale = unit * step.transform.scale
        return None, *(
            None if each is None else each.mul_(scale).to(tensor.dtype)
            for each, tensor in zip(gradients, inputs, strict=True)
        )


def _logits(
    step: _Step, head: Head, hidden_PH: Tensor, buffers: Buffers
) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each chunk and its logits [C, V], in memory that the next one reuses."""
    for start in range(0, len(hidden_PH), step.chunk):
        rows = slice(start, start + step.chunk)
        _, given_C1 = step.targets(rows)
        # Whatever a masked state holds must not reach a sum, not even as 0 times infinity.
        hidden_CH = head.widened(hidden_PH[rows].masked_fill(~given_C1, 0))
        logits_CV = buffers.take("logits", len(hidden_CH))
        head.logits(hidden_CH, logits_CV)
        yield rows, step.transform.apply_(logits_CV)
