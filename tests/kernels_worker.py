"""Triton's kernels against the closed forms in float64; prints the worst errors as JSON.

A process of its own: TRITON_INTERPRET must be set before Triton is imported."""

import itertools
import json
import sys
from collections import defaultdict
from unittest.mock import patch

import torch
from armada.stages.distill import closed_forms, fused
from armada.stages.distill.losses import ArmadaTerms
from torch import Tensor

SIZES = [(1, 2, 6), (5, 3, 64), (16, 2, 130), (37, 7, 1100), (20, 1, 70)]
"""Rows, classes, numbers of a projection: within a block, just a block, more than one."""
ODD_SIZES = [(1, 1, 1), (1, 3, 1), (1, 1, 1000), (33, 64, 129), (2, 2, 16384)]
"""One row, one class, one number; the most classes; the widest projection."""


TERMS = ("total", "task", "output", "manifold")


def drawn(rows: int, classes: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    widths = {"output": classes, "aux_output": classes, "projection": width}
    return {
        f"{side}_{name}": torch.randn(rows, numbers).to(dtype)
        for side in ("student", "aligner")
        for name, numbers in widths.items()
    }


def labels_of(rows: int, classes: int) -> Tensor:
    """Every third is missing."""
    if classes == 1:
        labels = torch.randn(rows)
        labels[::3] = torch.nan
    else:
        labels = torch.randint(0, classes, (rows,))
        labels[::3] = -100
    return labels


def loss(
    inputs: dict[str, Tensor], kernels: bool, **how: object
) -> tuple[ArmadaTerms, list[Tensor]]:
    """Terms, and gradients of three times the total."""
    student = [inputs[name].requires_grad_() for name in inputs if name.startswith("student")]

    def by_kernels(*parts: Tensor, **others: object) -> tuple[Tensor, ...] | None:
        return fused._tried(parts, others) if kernels else None

    with patch.object(fused, "by_kernels", by_kernels):
        terms = closed_forms.armada_loss(**inputs, alpha=0.4, beta=0.7, gamma=0.6, **how)
    return terms, list(torch.autograd.grad(3 * terms.total, student))


def main(device: str) -> None:
    torch.manual_seed(0)
    worst: dict[str, float] = defaultdict(float)
    manifolds = ("cosine", "euclid", "pointwise")
    cases = [
        *itertools.product(SIZES, manifolds, (torch.float32, torch.bfloat16)),
        *itertools.product(ODD_SIZES, ("cosine", "pointwise"), (torch.float16,)),
    ]
    for (rows, classes, width), manifold, dtype in cases:
        inputs = {n: t.to(device) for n, t in drawn(rows, classes, width, dtype).items()}
        how = {
            "labels": labels_of(rows, classes).to(device),
            "temperature": 3.0,
            "manifold": manifold,
            "regression": classes == 1,
        }
        exact = {name: tensor.detach().double() for name, tensor in inputs.items()}
        terms, gradients = loss(inputs, True, **how)
        expected, wanted = loss(exact, False, **how)
        assert [g.dtype for g in gradients] == [dtype] * 3
        assert [g.shape for g in gradients] == [g.shape for g in wanted]
        for name in TERMS:
            error = abs(getattr(terms, name).item() - getattr(expected, name).item())
            worst[f"term {dtype}"] = max(worst[f"term {dtype}"], error)
        for found, true in zip(gradients, wanted, strict=True):
            # Of the largest, so that it can be said in units of the dtype's own rounding.
            error = ((found.double() - true).abs().max() / true.abs().max().clamp(1e-12)).item()
            worst[f"gradient {dtype}"] = max(worst[f"gradient {dtype}"], error)
    assert not fused._broken, fused._broken
    print(json.dumps(worst))


if __name__ == "__main__":
    main(sys.argv[1])
