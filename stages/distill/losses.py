"""The losses, as pure functions of tensors: no model, no settings object, no state.

In: what the heads return (after ReLU for regression), the labels and the weights. Out: scalars.
Shapes: B rows, K classes (1 for regression), H numbers of a feature; B >= 1.
    output, aux_output [B, K]   projection, feature [B, H]   labels [B]
A missing label is -100, or NaN for regression. Such a row counts wherever the teacher teaches, but
not for the task; with no label at all the task is 0, with a graph, so that backward still runs.
Half-precision inputs are accumulated in float32; float64 stays float64. Nothing here reads a value
back from the device, so no loss makes a GPU wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cache_schemas.errors import JobError
from .objectives.options import Distance, Manifold

MISSING_LABEL = -100
"""The label of a row that has none, in classification; in regression it is NaN."""


@dataclass(frozen=True, slots=True)
class ArmadaTerms:
    """`total` to backpropagate; the other terms before their weights alpha, 1 - alpha and beta."""

    total: Tensor
    task: Tensor
    output: Tensor
    manifold: Tensor


@dataclass(frozen=True, slots=True)
class KDTerms:
    """`total` to backpropagate; `task` and `distillation` (T² included) before their weights."""

    total: Tensor
    task: Tensor
    distillation: Tensor


@dataclass(frozen=True, slots=True)
class FeatureTerms:
    """`total` to backpropagate; `task` and `feature` before the weight beta."""

    total: Tensor
    task: Tensor
    feature: Tensor


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
    """The student's loss: alpha·output + (1 - alpha)·task + beta·manifold.

    task      l(s1, y) + γ·l(s2, y), with l cross entropy, or squared error for regression
    output    T²·[mse(softmax(t1/T), softmax(s1/T)) + γ·mse(softmax(t2/T), softmax(s2/T))]
              regression: mse(t1, s1) + γ·mse(t2, s2), no T
    manifold  cosine: 1 - cos(mean_b tp, mean_b sp); euclid: mse(mean_b tp, mean_b sp);
              pointwise: mse(tp, sp)
    t1, t2, tp are the aligner's output, aux_output and projection, detached here; s1, s2, sp the
    student's. mse is the mean over all elements.
    Edges: rows without a label count for output and manifold only; a weight of 0 keeps its term in
    the graph with zero gradients, so that every parameter takes part in every step.
    Source: ARMADA, arXiv 2603.10877.
    """
    distance = choose(MANIFOLDS, "manifold", manifold)
    s1, s2, sp = map(accumulated, (student_output, student_aux_output, student_projection))
    t1, t2, tp = (
        accumulated(tensor.detach())
        for tensor in (aligner_output, aligner_aux_output, aligner_projection)
    )
    task = _both_heads(s1, s2, labels, gamma, regression)
    if regression:
        output = _mse(t1, s1) + gamma * _mse(t2, s2)
    else:
        output = _softened_mse(t1, s1, temperature) + gamma * _softened_mse(t2, s2, temperature)
    aligned = distance(tp, sp)
    total = alpha * output + (1 - alpha) * task + beta * aligned
    return ArmadaTerms(total, task, output, aligned)


def aligner_loss(
    output: Tensor, aux_output: Tensor, labels: Tensor, gamma: float, regression: bool
) -> Tensor:
    """The aligner's own loss: l(t1, y) + γ·l(t2, y) over the labelled rows.

    Source: ARMADA, arXiv 2603.10877. The student does not occur in it.
    """
    return _both_heads(output, aux_output, labels, gamma, regression)


def task_loss(output: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """Cross entropy, or squared error for regression: the mean over the labelled rows.

    output [B, K], or [B, 1] for regression; labels [B]. No label at all: 0, with a graph.
    """
    output = accumulated(output)
    if regression:
        return _labelled_mse(output.squeeze(-1), labels)
    labels = labels.long()
    total = F.cross_entropy(output, labels, ignore_index=MISSING_LABEL, reduction="sum")
    return total / (labels != MISSING_LABEL).sum().clamp(min=1)


def kd_loss(
    *,
    student_output: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float | Tensor,
) -> KDTerms:
    """Distillation of logits: alpha·T²·KL(softmax(t/T) ‖ softmax(s/T)) + (1 - alpha)·CE(s, y).

    student_output, teacher_logits [B, K]; the teacher is detached; KL is a mean over all rows, CE
    over the labelled ones. `temperature` may be a 0-d tensor with a graph: T² and both softmaxes
    then pass gradients to it. T² keeps the gradients of both terms on one scale.
    Source: Hinton, Vinyals, Dean, arXiv 1503.02531.
    """
    student_BK = accumulated(student_output)
    teacher_BK = accumulated(teacher_logits.detach())
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    student_log_BK = F.log_softmax(student_BK / temperature, dim=-1)
    teacher_log_BK = F.log_softmax(teacher_BK / temperature, dim=-1)
    divergence = F.kl_div(student_log_BK, teacher_log_BK, reduction="batchmean", log_target=True)
    distillation = temperature**2 * divergence
    task = task_loss(student_BK, labels, regression=False)
    return KDTerms(alpha * distillation + (1 - alpha) * task, task, distillation)


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
    """Regression onto a feature: task + beta·d(projection, feature).

    d is mse or mae (mean over all elements), or cosine: the mean over rows of 1 - cos. The feature
    is detached. Without output or labels there is no task, and its term is 0.
    Source: the hint loss of FitNets (arXiv 1412.6550), on cached features.
    """
    measure = choose(DISTANCES, "distance", distance)
    aligned = measure(accumulated(feature.detach()), accumulated(projection))
    if output is None or labels is None:
        task = torch.zeros_like(aligned)
    else:
        task = task_loss(output, labels, regression)
    return FeatureTerms(task + beta * aligned, task, aligned)


def _both_heads(
    output: Tensor, aux_output: Tensor, labels: Tensor, gamma: float, regression: bool
) -> Tensor:
    main = task_loss(output, labels, regression)
    return main + gamma * task_loss(aux_output, labels, regression)


def _labelled_mse(output_B: Tensor, labels_B: Tensor) -> Tensor:
    labelled_B = ~torch.isnan(labels_B)
    # Replaced before the subtraction: NaN times the zero gradient of `where` would still be NaN.
    target_B = torch.where(labelled_B, labels_B, 0).to(output_B.dtype)
    squared_B = torch.where(labelled_B, (output_B - target_B).square(), 0)
    return squared_B.sum() / labelled_B.sum().clamp(min=1)


def accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the precision of sums: at least float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mse(teacher: Tensor, student: Tensor) -> Tensor:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (teacher - student).square().mean()


def _mae(teacher: Tensor, student: Tensor) -> Tensor:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (teacher - student).abs().mean()


def _softened_mse(teacher_BK: Tensor, student_BK: Tensor, temperature: float) -> Tensor:
    soft_teacher_BK = F.softmax(teacher_BK / temperature, dim=-1)
    return temperature**2 * _mse(soft_teacher_BK, F.softmax(student_BK / temperature, dim=-1))


def _cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (1 - F.cosine_similarity(teacher, student, dim=-1)).mean()


def _cosine_of_means(teacher_BH: Tensor, student_BH: Tensor) -> Tensor:
    return _cosine_distance(teacher_BH.mean(dim=0), student_BH.mean(dim=0))


def _mse_of_means(teacher_BH: Tensor, student_BH: Tensor) -> Tensor:
    return _mse(teacher_BH.mean(dim=0), student_BH.mean(dim=0))


T = TypeVar("T")

Measure = Callable[[Tensor, Tensor], Tensor]
MANIFOLDS: Mapping[Manifold, Measure] = {
    "cosine": _cosine_of_means,
    "euclid": _mse_of_means,
    "pointwise": _mse,
}
DISTANCES: Mapping[Distance, Measure] = {"mse": _mse, "mae": _mae, "cosine": _cosine_distance}


def choose(measures: Mapping[Any, T], kind: str, name: str) -> T:
    """The measure of that name; raises JobError for an unknown one."""
    if name not in measures:
        raise JobError(f"{kind} {name!r} is unknown; allowed are {', '.join(measures)}")
    return measures[name]
