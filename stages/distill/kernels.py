"""`closed_forms.armada_loss` on a GPU as two kernels, and one for the backward pass.

    _means, or _errors   what the manifold term compares, a block of numbers each
    _heads               both heads, then all terms and gradients

Imported only where it runs: it needs Triton. Under TRITON_INTERPRET=1 it runs on a CPU as well, far
too slowly for anything but tests. Sums are in float32, whatever the inputs are.

Shapes: B rows, K classes, H numbers of a projection; BLOCK_x numbers are worked on at a time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .losses import MISSING_LABEL
from .objectives.options import Manifold

_BLOCK_B, _BLOCK_H = 16, 64
_PARTS = 4
"""Sums over a block of H: t·s, s·s, t·t and (s - t)·(s - t)."""


@triton.jit
def _means(
    student, teacher, means, sums, rows, width, student_stride, teacher_stride,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Means over rows of a block of columns [2, H], and their sums [_PARTS, blocks]."""
    block = tl.program_id(0)
    columns = block * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < width
    student_sum = tl.zeros([BLOCK_H], tl.float32)
    teacher_sum = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, rows, BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * student_stride + columns[None, :]
        student_sum += tl.sum(tl.load(student + at, mask, 0.0).to(tl.float32), 0)
        at = row[:, None] * teacher_stride + columns[None, :]
        teacher_sum += tl.sum(tl.load(teacher + at, mask, 0.0).to(tl.float32), 0)
    s, t = student_sum / rows, teacher_sum / rows
    tl.store(means + columns, s, inside)
    tl.store(means + width + columns, t, inside)
    blocks = tl.num_programs(0)
    tl.store(sums + block, tl.sum(s * t, 0))
    tl.store(sums + blocks + block, tl.sum(s * s, 0))
    tl.store(sums + 2 * blocks + block, tl.sum(t * t, 0))
    tl.store(sums + 3 * blocks + block, tl.sum((s - t) * (s - t), 0))


@triton.jit
def _errors(
    student, teacher, gradient, sums, rows, width, student_stride, teacher_stride, scale,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Gradients of a row of differences, and the sum of their squares."""
    row = tl.program_id(0)
    total = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, width, BLOCK_H):
        columns = start + tl.arange(0, BLOCK_H)
        inside = columns < width
        s = tl.load(student + row * student_stride + columns, inside, 0.0).to(tl.float32)
        t = tl.load(teacher + row * teacher_stride + columns, inside, 0.0).to(tl.float32)
        total += (s - t) * (s - t)
        tl.store(gradient + row * width + columns, scale * (s - t), inside)
    tl.store(sums + 3 * rows + row, tl.sum(total, 0))


@triton.jit
def _log_softmax(numbers, inside):
    numbers = tl.where(inside, numbers, -1e30)
    shifted = numbers - tl.max(numbers, 1)[:, None]
    return shifted - tl.log(tl.sum(tl.exp(shifted), 1))[:, None]


@triton.jit
def _known(labels, row, rows, REGRESSION: tl.constexpr, MISSING: tl.constexpr):
    """Labels of rows, and whether they have one."""
    if REGRESSION:
        label = tl.load(labels + row, row < rows, 0.0).to(tl.float32)
        known = (row < rows) & (label == label)
    else:
        label = tl.load(labels + row, row < rows, MISSING)
        known = (row < rows) & (label != MISSING)
    return label, known


@triton.jit
def _head(
    student, teacher, labels, gradients, rows, classes, count, weight, alpha, temperature,
    REGRESSION: tl.constexpr, MISSING: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Task loss and output alignment of one head; writes its gradients [B, K]."""
    numbers = rows * classes
    column = tl.arange(0, BLOCK_K)
    task = tl.zeros([BLOCK_B], tl.float32)
    squares = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, rows, BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        inside = (row < rows)[:, None] & (column < classes)[None, :]
        at = row[:, None] * classes + column[None, :]
        s = tl.load(student + at, inside, 0.0).to(tl.float32)
        t = tl.load(teacher + at, inside, 0.0).to(tl.float32)
        label, known = _known(labels, row, rows, REGRESSION, MISSING)
        share = known.to(tl.float32) / count
        if REGRESSION:
            target = tl.where(known, label, 0.0)
            error = tl.where(inside, s - target[:, None], 0.0)
            task += tl.sum(error * error, 1) * share
            d_task = 2 * error * share[:, None]
            error = tl.where(inside, s - t, 0.0)
            d_match = 2 * error / numbers
        else:
            log_p = _log_softmax(s, inside)
            hit = (column[None, :] == label[:, None]) & known[:, None]
            task += tl.sum(tl.where(hit, -log_p, 0.0), 1) * share
            d_task = (tl.exp(log_p) - hit.to(tl.float32)) * share[:, None]
            soft = tl.exp(_log_softmax(s / temperature, inside))
            error = soft - tl.exp(_log_softmax(t / temperature, inside))
            error = tl.where(inside, error, 0.0)
            along = soft * error
            d_match = along - soft * tl.sum(along, 1)[:, None]
            d_match = 2 * temperature / numbers * d_match
        squares += tl.sum(error * error, 1)
        d = weight * (alpha * d_match + (1 - alpha) * d_task)
        tl.store(gradients + at, d, inside)
    matched = tl.sum(squares, 0) / numbers
    if not REGRESSION:
        matched = temperature * temperature * matched
    return weight * tl.sum(task, 0), weight * matched


@triton.jit
def _heads(
    output, aux_output, teacher_output, teacher_aux, labels, means, sums, terms, gradients,
    rows, classes, width, blocks, alpha, beta, gamma, temperature,
    REGRESSION: tl.constexpr, MANIFOLD: tl.constexpr, MISSING: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Terms [4] and gradients [2BK + H], from both heads and the sums over blocks."""
    labelled = tl.zeros([BLOCK_B], tl.float32)
    for start in range(0, rows, BLOCK_B):
        _, known = _known(labels, start + tl.arange(0, BLOCK_B), rows, REGRESSION, MISSING)
        labelled += known.to(tl.float32)
    count = tl.maximum(tl.sum(labelled, 0), 1.0)
    numbers = rows * classes
    task, matched = _head(
        output, teacher_output, labels, gradients, rows, classes, count, 1.0, alpha, temperature,
        REGRESSION, MISSING, BLOCK_B, BLOCK_K,
    )  # fmt: skip
    aux_task, aux_matched = _head(
        aux_output, teacher_aux, labels, gradients + numbers, rows, classes, count, gamma, alpha,
        temperature, REGRESSION, MISSING, BLOCK_B, BLOCK_K,
    )  # fmt: skip
    task += aux_task
    matched += aux_matched

    part = tl.arange(0, BLOCK_P)
    counted = part < blocks
    if MANIFOLD == "cosine":
        dot = tl.sum(tl.load(sums + part, counted, 0.0))
        s_norm = tl.maximum(tl.sqrt(tl.sum(tl.load(sums + blocks + part, counted, 0.0))), 1e-8)
        t_norm = tl.maximum(tl.sqrt(tl.sum(tl.load(sums + 2 * blocks + part, counted, 0.0))), 1e-8)
        cosine = dot / s_norm / t_norm
        manifold = 1 - cosine
    else:
        squares = tl.sum(tl.load(sums + 3 * blocks + part, counted, 0.0))
        manifold = squares / width
        if MANIFOLD == "pointwise":
            manifold = manifold / rows
    if MANIFOLD != "pointwise":
        for start in range(0, width, BLOCK_H):
            at = start + tl.arange(0, BLOCK_H)
            s = tl.load(means + at, at < width, 0.0)
            t = tl.load(means + width + at, at < width, 0.0)
            if MANIFOLD == "cosine":
                d = (cosine * s / s_norm - t / t_norm) / s_norm
            else:
                d = 2 * (s - t) / width
            tl.store(gradients + 2 * numbers + at, beta * d / rows, at < width)
    tl.store(terms, alpha * matched + (1 - alpha) * task + beta * manifold)
    tl.store(terms + 1, task)
    tl.store(terms + 2, matched)
    tl.store(terms + 3, manifold)


def armada(
    output: Tensor,
    aux_output: Tensor,
    projection: Tensor,
    *,
    aligner: tuple[Tensor, Tensor, Tensor],
    labels: Tensor,
    weights: tuple[float, float, float],
    temperature: float | None,
    manifold: Manifold,
) -> tuple[Tensor, Tensor]:
    """Terms [4] and gradients: those of output, aux_output [B, K] and of projection, [H] for all
    rows or [B, H], one after the other. No temperature means regression."""
    rows, classes = output.shape
    width = projection.shape[1]
    pointwise = manifold == "pointwise"
    blocks = rows if pointwise else triton.cdiv(width, _BLOCK_H)
    room: dict[str, Any] = {"dtype": torch.float32, "device": output.device}
    gradients = torch.empty(2 * rows * classes + width * (rows if pointwise else 1), **room)
    sums, means = torch.empty(_PARTS * blocks, **room), torch.empty(2 * width, **room)
    terms = torch.empty(4, **room)
    teacher_output, teacher_aux, teacher = (part.contiguous() for part in aligner)
    projection = projection.contiguous()
    shapes = (rows, width, projection.stride(0), teacher.stride(0))
    alpha, beta, gamma = weights
    if pointwise:
        own = gradients[2 * rows * classes :]
        scale = 2 * beta / (rows * width)
        _errors[(rows,)](projection, teacher, own, sums, *shapes, scale, BLOCK_H=1024)
    else:
        _means[(blocks,)](
            projection, teacher, means, sums, *shapes, BLOCK_B=_BLOCK_B, BLOCK_H=_BLOCK_H
        )
    _heads[(1,)](
        output.contiguous(), aux_output.contiguous(), teacher_output, teacher_aux, labels,
        means, sums, terms, gradients,
        rows, classes, width, blocks, alpha, beta, gamma, temperature or 1.0,
        REGRESSION=temperature is None, MANIFOLD=manifold, MISSING=MISSING_LABEL,
        BLOCK_B=_BLOCK_B, BLOCK_K=triton.next_power_of_2(classes), BLOCK_H=1024,
        BLOCK_P=triton.next_power_of_2(blocks),
    )  # fmt: skip
    return terms, gradients
