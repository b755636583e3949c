"""The losses of ARMADA (arXiv 2603.10877): the aligner's and the student's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.options import Manifold
from .distances import Measure, choose, cosine_distance, mse
from .task import accumulated, are_multilabel, task_loss


@dataclass(frozen=True, slots=True)
class ArmadaTerms:
    """`total` to backpropagate; the other terms before their weights alpha, 1 - alpha and beta."""

    total: Tensor
    task: Tensor
    output: Tensor
    manifold: Tensor


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
              multilabel: sigmoid in place of softmax, for each class is decided by itself
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
        output = mse(t1, s1) + gamma * mse(t2, s2)
    else:
        soften = torch.sigmoid if are_multilabel(labels) else _softmax
        main = _softened_mse(soften, t1, s1, temperature)
        output = main + gamma * _softened_mse(soften, t2, s2, temperature)
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


def _both_heads(
    output: Tensor, aux_output: Tensor, labels: Tensor, gamma: float, regression: bool
) -> Tensor:
    main = task_loss(output, labels, regression)
    return main + gamma * task_loss(aux_output, labels, regression)


def _softmax(logits_BK: Tensor) -> Tensor:
    return F.softmax(logits_BK, dim=-1)


def _softened_mse(
    soften: Callable[[Tensor], Tensor], teacher_BK: Tensor, student_BK: Tensor, temperature: float
) -> Tensor:
    soft_teacher_BK = soften(teacher_BK / temperature)
    return temperature**2 * mse(soft_teacher_BK, soften(student_BK / temperature))


def _cosine_of_means(teacher_BH: Tensor, student_BH: Tensor) -> Tensor:
    return cosine_distance(teacher_BH.mean(dim=0), student_BH.mean(dim=0))


def _mse_of_means(teacher_BH: Tensor, student_BH: Tensor) -> Tensor:
    return mse(teacher_BH.mean(dim=0), student_BH.mean(dim=0))


MANIFOLDS: Mapping[Manifold, Measure] = {
    "cosine": _cosine_of_means,
    "euclid": _mse_of_means,
    "pointwise": mse,
}
