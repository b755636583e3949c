"""A loss as one step of a graph: its gradients are known when its value is.

differentiable   by a formula of torch operations
by_kernels       by Triton, for `armada_loss` on a GPU; where that does not work, not at all
"""

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import losses

Gradients = tuple[Tensor, ...]
Formula = Callable[..., tuple[tuple[Tensor, ...], Gradients]]
"""Maps inputs to terms, the total first, and the gradients of the total, which may be smaller than
the inputs where they repeat along the rows."""

Kernels = Callable[..., tuple[Tensor, Tensor]]
"""Maps inputs to terms and gradients of the total, as one row of numbers each."""

MOST_CLASSES = 64
"""The most classes that kernels take: a row of logits is worked on at once, and with more a thread
needs all 255 registers or, from 128, the stack as well; at 1,000 a kernel compiles for 14 s."""

_LOGGER = logging.getLogger(__name__)

_broken: list[str] = []
"""Reason why kernels are not tried again in this process."""


class _ClosedForm(torch.autograd.Function):
    """A formula as one step of a graph; only the total can be differentiated."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *inputs: Tensor) -> tuple[Tensor, ...]:
        terms, gradients = formula(*map(losses.accumulated, inputs))
        ctx.save_for_backward(*gradients)
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in inputs]
        ctx.mark_non_differentiable(*terms[1:])
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.like, strict=True)
        return None, *((total * g).to(dtype).expand(shape) for g, (shape, dtype) in gradients)


def differentiable(formula: Formula, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Terms of the inputs; the first can be differentiated."""
    terms: tuple[Tensor, ...] = _ClosedForm.apply(formula, *inputs)
    return terms


def by_kernels(*inputs: Tensor, **others: Any) -> tuple[Tensor, ...] | None:
    """Terms of `kernels.armada`; None if kernels do not apply or do not work, with one warning:
    they sum in float32, take up to `MOST_CLASSES` and need Triton and a C compiler."""
    apply = inputs[0].is_cuda and inputs[0].shape[1] <= MOST_CLASSES
    if not apply or any(part.dtype == torch.float64 for part in inputs):
        return None
    return _tried(inputs, others)


def _tried(inputs: tuple[Tensor, ...], others: dict[str, Any]) -> tuple[Tensor, ...] | None:
    if _broken or importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import kernels

        terms: tuple[Tensor, ...] = _Kernels.apply(kernels.armada, others, *inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as cause:  # a compiler may raise anything
        _broken.append(f"{type(cause).__name__}: {cause}".splitlines()[0])
        _LOGGER.warning(
            f"Triton does not work here ({_broken[0]}); losses use plain PyTorch operations"
        )
        return None
    return terms


class _Kernels(torch.autograd.Function):
    """The same by kernels: they write all gradients into one row, which is scaled at once."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, others: dict[str, Any], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        terms, gradients = kernels(*inputs, **others)
        ctx.save_for_backward(gradients)
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in inputs]
        found = terms.unbind()
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        dtypes = {dtype for _, dtype in ctx.like}
        scaled = gradients.new_empty(len(gradients), dtype=max(dtypes, key=lambda d: d.itemsize))
        torch.mul(gradients, total, out=scaled)
        *heads, (shape, _) = ctx.like
        sizes = [shape.numel() for shape, _ in heads]
        parts = scaled.split([*sizes, len(scaled) - sum(sizes)])
        # One row of the projection's gradients represents all.
        rows = parts[-1].view(-1, shape[1]).expand(shape)
        shaped = [part.view(like) for part, (like, _) in zip(parts[:-1], heads, strict=True)]
        found = zip([*shaped, rows], ctx.like, strict=True)
        return None, None, *(gradient.to(dtype) for gradient, (_, dtype) in found)
