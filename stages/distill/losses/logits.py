"""Losses that compare class logits.

Shapes: B rows, K classes; logits of student and teacher [B, K], labels [B].
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .task import accumulated, task_loss


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
