"""Losses that compare class logits, or the numbers of a regression.

Shapes: B rows, K classes or outputs; logits of student and teacher [B, K], labels as in `task.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import mse
from .task import MISSING_LABEL, accumulated, are_multilabel, task_loss

NOTHING = -1e30
"""The logit of a class that is left out: its probability is 0, and no difference is NaN."""


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


def logit_mse_loss(student_BK: Tensor, teacher_BK: Tensor, centred: bool) -> Tensor:
    """Mean over all elements of (s - t)²; `centred`: after the mean of each row is taken off, so
    that a constant added to a row, which changes no probability, changes nothing here either.

    Sources: Ba and Caruana, arXiv 1312.6184; Kim et al., Comparing KL divergence and mean squared
    error loss in knowledge distillation, arXiv 2105.08919, which sums over classes."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    error_BK = student_BK - teacher_BK
    if centred:
        error_BK = error_BK - error_BK.mean(dim=-1, keepdim=True)
    return error_BK.square().mean()


def target_classes(teacher_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The class of each row [B]: its label or, without one, the teacher's most probable class."""
    labelled_B = labels_B != MISSING_LABEL
    return torch.where(labelled_B, labels_B, teacher_BK.argmax(dim=-1)).long()


def dkd_losses(
    student_BK: Tensor, teacher_BK: Tensor, targets_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The two halves of decoupled distillation, each T² times a mean over rows:

    target      KL of (p_y, 1 - p_y) to (q_y, 1 - q_y), y the target class
    nontarget   KL of p to q, both renormalised over the other classes

    p = softmax(t/T), q = softmax(s/T); KL(p ‖ q) = target + (1 - p_y)·nontarget. Edges: 1 - p_y is
    a sum over the other classes, exact where it is small; with two classes nontarget is 0.
    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    (log_p_B2, log_others_p_BK), (log_q_B2, log_others_q_BK) = (
        _decoupled(logits_BK / temperature, targets_B) for logits_BK in (teacher_BK, student_BK)
    )
    target = (log_p_B2.exp() * (log_p_B2 - log_q_B2)).sum(dim=-1).mean()
    each_BK = log_others_p_BK.exp() * (log_others_p_BK - log_others_q_BK)
    return temperature**2 * target, temperature**2 * each_BK.sum(dim=-1).mean()


def _decoupled(logits_BK: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (target, all others), [B, 2], and of the others among themselves, [B, K]."""
    target_B1 = targets_B.unsqueeze(-1)
    own_B1 = logits_BK.gather(-1, target_B1)
    others_BK = logits_BK.scatter(-1, target_B1, NOTHING)
    rest_B1 = others_BK.logsumexp(dim=-1, keepdim=True)
    binary_B2 = F.log_softmax(torch.cat((own_B1, rest_B1), dim=-1), dim=-1)
    return binary_B2, others_BK - rest_B1


def binary_kl_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·mean over rows of Σ over classes of KL between (σ(t/T), 1 - σ(t/T)) and the student's,
    after each row of logits is standardised: less its mean, over its standard deviation.

    Edges: a row of equal logits is a row of zeros; deviations are of K - 1 degrees of freedom, and
    0 counts as 1e-8.
    Source: Yang et al., Dual-head knowledge distillation, arXiv 2411.08937: BinaryKL-Norm."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    student_BK, teacher_BK = (
        _standardised(each) / temperature for each in (student_BK, teacher_BK)
    )
    classes = student_BK.shape[-1]
    return temperature**2 * classes * _binary_kl(teacher_BK, student_BK)


def _standardised(logits_BK: Tensor) -> Tensor:
    centred_BK = logits_BK - logits_BK.mean(dim=-1, keepdim=True)
    variance_B1 = centred_BK.square().sum(dim=-1, keepdim=True) / max(1, logits_BK.shape[-1] - 1)
    # Under the root, for the slope of a root is infinite at 0.
    return centred_BK * torch.rsqrt(variance_B1 + 1e-16)
