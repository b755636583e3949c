"""The losses of `losses` in closed form: values and gradients in one pass, no graph inside.

Same functions, same arguments, same terms. What differs is the cost: about seventy small operations
for `armada_loss` instead of about a hundred (on a GPU, two kernels: `kernels.py`), and a backward
pass that only scales what the forward pass has worked out. Half-precision inputs are accumulated in
float32; gradients come back in the inputs' dtype. Nothing here reads a value back from the device.

With s and t the student's and the teacher's numbers, p = softmax(s), q(x) = softmax(x/T), N the
number of elements, n the number of labelled rows and y one-hot labels:

    cross entropy       d/ds = (p - y) / n, 0 in rows without a label; with p = sigmoid(s) and n
                        the number of known labels, of multilabel too
    T²·mse(q(t), q(s))  d/ds = 2T/N · q(s)·(δ - Σ_k q(s)·δ),  δ = q(s) - q(t)
                        multilabel, q(x) = sigmoid(x/T): 2T/N · q(s)·(1 - q(s))·δ
    T²·KL(q(t) ‖ q(s))  d/ds = T/B · (q(s) - q(t)); multilabel: T/N · (q(s) - q(t))
    1 - cos(t, s)       d/ds = (cos · s/|s| - t/|t|) / |s|
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused, losses
from .fused import Gradients, differentiable
from .losses import (
    MISSING_LABEL,
    ArmadaTerms,
    FeatureTerms,
    KDTerms,
    are_multilabel,
    are_probabilities,
)
from .objectives.options import Distance, Manifold

_LEAST_NORM = 1e-8
"""Epsilon of torch's cosine_similarity."""


def armada_loss(
    *,
    student_output: Tensor,
    student_aux_output: Tensor,
    student_projection: Tensor,
    aligner_output: Tensor,
    aligner_aux_output: Tensor,
    aligner_projection: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    temperature: float,
    manifold: Manifold,
    regression: bool,
) -> ArmadaTerms:
    """`losses.armada_loss`: both heads go through each operation together; on a GPU, by Triton."""
    student = (student_output, student_aux_output, student_projection)
    measure = losses.choose(_MANIFOLDS, "manifold", manifold)
    aligner = (aligner_output, aligner_aux_output, aligner_projection)
    for ours, theirs in zip(student, aligner, strict=True):
        assert ours.shape == theirs.shape, "broadcasting would hide a wrong size"
    terms = None
    if labels.dim() == 1:  # kernels have no other kind
        terms = fused.by_kernels(
            *student,
            aligner=aligner,
            labels=labels,
            weights=(alpha, beta, gamma),
            temperature=None if regression else temperature,
            manifold=manifold,
        )
    if terms is not None:
        return ArmadaTerms(*terms)
    heads = losses.accumulated(torch.stack((aligner_output, aligner_aux_output)).detach())
    formula = partial(
        _armada,
        teacher=heads,
        teacher_projection=losses.accumulated(aligner_projection.detach()),
        labels=labels,
        weights=(alpha, beta, gamma),
        temperature=None if regression else temperature,
        manifold=measure,
    )
    return ArmadaTerms(*differentiable(formula, *student))


def _armada(
    output: Tensor,
    aux_output: Tensor,
    projection: Tensor,
    *,
    teacher: Tensor,
    teacher_projection: Tensor,
    labels: Tensor,
    weights: tuple[float, float, float],
    temperature: float | None,
    manifold: "_Measure",
) -> tuple[tuple[Tensor, ...], Gradients]:
    alpha, beta, gamma = weights
    student_2BK = torch.stack((output, aux_output))
    tasks, d_task = _tasks(student_2BK, labels, regression=temperature is None)
    outputs, d_output = _outputs(teacher, student_2BK, temperature, are_multilabel(labels))
    aligned, d_projection = manifold(teacher_projection, projection)
    task, matched = (both[0] + gamma * both[1] for both in (tasks, outputs))
    total = alpha * matched + (1 - alpha) * task + beta * aligned
    d_heads = alpha * d_output + (1 - alpha) * d_task
    return (total, task, matched, aligned), (d_heads[0], gamma * d_heads[1], beta * d_projection)


def _tasks(output: Tensor, labels_B: Tensor, regression: bool) -> tuple[Tensor, Tensor]:
    """Task losses [heads] of outputs [heads, B, K], and their gradients."""
    if regression:
        return _squared_errors(output, labels_B)
    if are_multilabel(labels_B):
        return _binary_cross_entropies(output, labels_B)
    if are_probabilities(labels_B):
        return _soft_cross_entropies(output, labels_B)
    return _cross_entropies(output, labels_B)


def _cross_entropies(output: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    labelled_B = labels_B != MISSING_LABEL
    share_B = labelled_B / labelled_B.sum().clamp(min=1).to(output.dtype)
    index = labels_B.long().clamp(min=0).expand(output.shape[:-1]).unsqueeze(-1)
    log_probability = F.log_softmax(output, dim=-1)
    loss = -(log_probability.gather(-1, index).squeeze(-1) * share_B).sum(dim=-1)
    gradient = log_probability.exp()
    gradient.scatter_add_(-1, index, gradient.new_full((1,), -1.0).expand(index.shape))
    return loss, gradient * share_B.unsqueeze(-1)


def _soft_cross_entropies(output: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
    known_BK = ~torch.isnan(labels_BK)
    share_BK = known_BK / known_BK[:, :1].sum().clamp(min=1).to(output.dtype)
    target_BK = torch.where(known_BK, labels_BK, 0).to(output.dtype)
    log_probability = F.log_softmax(output, dim=-1)
    loss = -(log_probability * target_BK * share_BK).sum(dim=(1, 2))
    return loss, (log_probability.exp() - target_BK) * share_BK


def _binary_cross_entropies(output: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
    known_BK = labels_BK != MISSING_LABEL
    share_BK = known_BK / known_BK.sum().clamp(min=1).to(output.dtype)
    target = torch.where(known_BK, labels_BK, 0).to(output.dtype).expand(output.shape)
    each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    return (each * share_BK).sum(dim=(1, 2)), (output.sigmoid() - target) * share_BK


def _squared_errors(output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    labelled = ~torch.isnan(labels)
    share = labelled / labelled.sum().clamp(min=1).to(output.dtype)
    target = torch.where(labelled, labels, 0).to(output.dtype)
    error = output.squeeze(-1) - target if labels.dim() == 1 else output - target
    weighted = error * share
    return (error * weighted).flatten(1).sum(dim=-1), (2 * weighted).view(output.shape)


def _outputs(
    teacher: Tensor, student: Tensor, temperature: float | None, multilabel: bool
) -> tuple[Tensor, Tensor]:
    """Output alignment [heads] of [heads, B, K] each, and its gradients; no temperature means
    regression."""
    count = student[0].numel()
    if temperature is None:
        error = student - teacher
        return error.square().sum(dim=(1, 2)) / count, 2 / count * error
    if multilabel:
        soft = (student / temperature).sigmoid()
        error = soft - (teacher / temperature).sigmoid()
        loss = temperature**2 / count * error.square().sum(dim=(1, 2))
        return loss, 2 * temperature / count * soft * (1 - soft) * error
    soft = F.softmax(student / temperature, dim=-1)
    error = soft - F.softmax(teacher / temperature, dim=-1)
    along = soft * error
    gradient = along - soft * along.sum(dim=-1, keepdim=True)
    loss = temperature**2 / count * error.square().sum(dim=(1, 2))
    return loss, 2 * temperature / count * gradient


_Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Teacher [B, H] and student [B, H] -> distance and its gradient, [B, H] or [H] for every row."""


def _mse(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    error = student - teacher
    return error.square().mean(), 2 / error.numel() * error


def _mae(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    error = student - teacher
    return error.abs().mean(), error.sign() / error.numel()


def _smooth_l1(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    error = student - teacher
    clipped = error.clamp(-1, 1)
    # x²/2 within, |x| - 1/2 = ±x - 1/2 beyond, where ± is the clipped x.
    return (clipped * (error - clipped / 2)).mean(), clipped / error.numel()


def _cosine(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of 1 - cos over rows, or of one pair of vectors."""
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    directions, norms = [], []
    for vectors in (teacher, student):
        norms.append(torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(_LEAST_NORM))
        directions.append(vectors / norms[-1])
    cosine = (directions[0] * directions[1]).sum(dim=-1, keepdim=True)
    gradient = (cosine * directions[1] - directions[0]) / (norms[1] * cosine.numel())
    return (1 - cosine).mean(), gradient


def _of_means(measure: _Measure, teacher_BH: Tensor, student_BH: Tensor) -> tuple[Tensor, Tensor]:
    distance, gradient_H = measure(teacher_BH.mean(dim=0), student_BH.mean(dim=0))
    return distance, gradient_H / len(student_BH)


_MANIFOLDS: dict[Manifold, _Measure] = {
    "cosine": partial(_of_means, _cosine),
    "euclid": partial(_of_means, _mse),
    "pointwise": _mse,
}
_DISTANCES: dict[Distance, _Measure] = {
    "mse": _mse,
    "mae": _mae,
    "cosine": _cosine,
    "smooth_l1": _smooth_l1,
}


def kd_loss(
    *,
    student_output: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float | Tensor,
    regression: bool = False,
) -> KDTerms:
    """`losses.kd_loss`; a temperature with a graph gets its gradient as well."""
    teacher_BK = losses.accumulated(teacher_logits.detach())
    assert student_output.shape == teacher_BK.shape, "broadcasting would hide a wrong size"
    if regression:
        formula = partial(_kd_of_numbers, teacher_BK=teacher_BK, labels=labels, alpha=alpha)
        return KDTerms(*differentiable(formula, student_output))
    measure = _binary_kl if are_multilabel(labels) else _kl
    formula = partial(_kd, teacher_BK=teacher_BK, labels=labels, alpha=alpha, measure=measure)
    if isinstance(temperature, Tensor):
        return KDTerms(*differentiable(formula, student_output, temperature))
    return KDTerms(*differentiable(partial(formula, temperature=temperature), student_output))


def _kd_of_numbers(
    student_BK: Tensor, *, teacher_BK: Tensor, labels: Tensor, alpha: float
) -> tuple[tuple[Tensor, ...], Gradients]:
    (task,), d_task = _squared_errors(student_BK.unsqueeze(0), labels)
    distillation, gradient = _mse(teacher_BK, student_BK)
    total = alpha * distillation + (1 - alpha) * task
    return (total, task, distillation), (alpha * gradient + (1 - alpha) * d_task[0],)


def _kd(
    student_BK: Tensor,
    temperature: float | Tensor,
    *,
    teacher_BK: Tensor,
    labels: Tensor,
    alpha: float,
    measure: "_Divergence",
) -> tuple[tuple[Tensor, ...], Gradients]:
    (task,), d_task = _tasks(student_BK.unsqueeze(0), labels, regression=False)
    found = measure(teacher_BK, student_BK, temperature)
    distillation, count = found.loss, found.mean_of
    total = alpha * distillation + (1 - alpha) * task
    gradient = alpha * temperature / count * found.error_BK + (1 - alpha) * d_task[0]
    terms = (total, task, distillation)
    if not isinstance(temperature, Tensor):
        return terms, (gradient,)
    # By way of s/T and t/T, which both grow as T falls; T² is differentiated on its own.
    slope = found.error_BK * student_BK + found.slope_BK() * teacher_BK
    d_temperature = 2 * distillation / temperature - slope.sum() / count
    return terms, (gradient, alpha * d_temperature)


class _Softened(NamedTuple):
    """T²·KL, the number that its mean is over, its derivatives by s/T, and by t/T, times that."""

    loss: Tensor
    mean_of: int
    error_BK: Tensor
    slope_BK: Callable[[], Tensor]


_Divergence = Callable[[Tensor, Tensor, float | Tensor], _Softened]


def _kl(teacher_BK: Tensor, student_BK: Tensor, temperature: float | Tensor) -> _Softened:
    rows = len(student_BK)
    student_log_BK = F.log_softmax(student_BK / temperature, dim=-1)
    teacher_log_BK = F.log_softmax(teacher_BK / temperature, dim=-1)
    teacher_soft_BK, error_BK = teacher_log_BK.exp(), student_log_BK.exp()
    error_BK -= teacher_soft_BK
    surprise_BK = teacher_log_BK - student_log_BK
    each_B1 = (teacher_soft_BK * surprise_BK).sum(dim=-1, keepdim=True)
    distillation = temperature**2 / rows * each_B1.sum()
    return _Softened(
        distillation, rows, error_BK, lambda: teacher_soft_BK * (surprise_BK - each_B1)
    )


def _binary_kl(teacher_BK: Tensor, student_BK: Tensor, temperature: float | Tensor) -> _Softened:
    count = student_BK.numel()
    student, teacher = student_BK / temperature, teacher_BK / temperature
    yes_BK, no_BK = teacher.sigmoid(), (-teacher).sigmoid()
    surprise_BK = yes_BK * (F.logsigmoid(teacher) - F.logsigmoid(student))
    surprise_BK += no_BK * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    distillation = temperature**2 / count * surprise_BK.sum()
    error_BK = student.sigmoid() - yes_BK
    return _Softened(distillation, count, error_BK, lambda: yes_BK * no_BK * (teacher - student))


def feature_loss(
    *,
    projection: Tensor,
    feature: Tensor,
    output: Tensor | None,
    labels: Tensor | None,
    beta: float,
    distance: Distance,
    regression: bool,
) -> FeatureTerms:
    """`losses.feature_loss`."""
    measure = losses.choose(_DISTANCES, "distance", distance)
    formula = partial(
        _feature,
        feature=losses.accumulated(feature.detach()),
        labels=labels,
        beta=beta,
        measure=measure,
        regression=regression,
    )
    heads = () if output is None or labels is None else (output,)
    return FeatureTerms(*differentiable(formula, projection, *heads))


def _feature(
    projection: Tensor,
    output: Tensor | None = None,
    *,
    feature: Tensor,
    labels: Tensor | None,
    beta: float,
    measure: _Measure,
    regression: bool,
) -> tuple[tuple[Tensor, ...], Gradients]:
    aligned, d_projection = measure(feature, projection)
    if output is None or labels is None:
        return (beta * aligned, torch.zeros_like(aligned), aligned), (beta * d_projection,)
    (task,), d_task = _tasks(output.unsqueeze(0), labels, regression)
    return (task + beta * aligned, task, aligned), (beta * d_projection, d_task[0])
