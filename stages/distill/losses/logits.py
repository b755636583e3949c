"""Losses that compare class logits, or the numbers of a regression.

Shapes: B rows, K classes or outputs; logits of student and teacher [B, K], labels as in `task.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import mse
from .task import accumulated, are_multilabel, task_loss


@dataclass(frozen=True, slots=True)
class KDTerms:
    """`total` to backpropagate; `task` and `distillation` (T² included) before their weights."""

    total: Tensor
    task: Tensor
    distillation: Tensor


def kd_loss(
    *,
    student_output: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float | Tensor,
    regression: bool = False,
) -> KDTerms:
    """Distillation of logits: alpha·distillation + (1 - alpha)·task, of which distillation is

    one class     T²·KL(softmax(t/T) ‖ softmax(s/T)), the mean over all rows
    multilabel    T²·KL of the two probabilities sigmoid(±t/T) and sigmoid(±s/T) of each class by
                  itself (one versus all), the mean over all rows and classes
    regression    (t - s)², the mean over all rows and outputs; no T

    student_output, teacher_logits [B, K]; the teacher is detached; the task is `task_loss`.
    `temperature` may be a 0-d tensor with a graph: T² and both softmaxes then pass gradients to
    it. T² keeps the gradients of both terms on one scale.
    Source: Hinton, Vinyals, Dean, arXiv 1503.02531. Multilabel: Yang et al., Multi-Label Knowledge
    Distillation, arXiv 2308.06453, where classes are summed; here it is their mean, as that of the
    task. Regression: Borup, Andersen, arXiv 2102.13088.
    """
    student_BK = accumulated(student_output)
    teacher_BK = accumulated(teacher_logits.detach())
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    if regression:
        distillation = mse(teacher_BK, student_BK)
    elif are_multilabel(labels):
        binary = _binary_kl(teacher_BK / temperature, student_BK / temperature)
        distillation = temperature**2 * binary
    else:
        student_log_BK = F.log_softmax(student_BK / temperature, dim=-1)
        teacher_log_BK = F.log_softmax(teacher_BK / temperature, dim=-1)
        divergence = F.kl_div(
            student_log_BK, teacher_log_BK, reduction="batchmean", log_target=True
        )
        distillation = temperature**2 * divergence
    task = task_loss(student_BK, labels, regression)
    return KDTerms(alpha * distillation + (1 - alpha) * task, task, distillation)


def _binary_kl(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """The mean of p·log(p/q) + (1 - p)·log((1 - p)/(1 - q)), p and q sigmoids of the logits."""
    parts = (
        sign_teacher.sigmoid() * (F.logsigmoid(sign_teacher) - F.logsigmoid(sign_student))
        for sign_teacher, sign_student in ((teacher_BK, student_BK), (-teacher_BK, -student_BK))
    )
    return sum(parts, torch.zeros_like(student_BK)).mean()
