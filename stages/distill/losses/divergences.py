"""Losses that compare the class distributions of student and teacher, row by row.

With T the temperature, p = softmax(t/T) the teacher and q = softmax(s/T) the student, each is T²
times a mean over the B rows: T² keeps the gradients on one scale, as in `kd_loss`. Shapes: student
and teacher logits [B, K], in the precision of sums, the teacher's without a graph. A constant added
to a row of either changes nothing. All are 0 where p = q, and only there. `../token_loss` has the
same divergences of tokens, with their gradients worked out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_DIVISOR = -80.0
"""The least logarithm of a probability of the teacher that a divergence divides by: a class that is
less probable counts as if it had e^-80, so that one confident row cannot outweigh a batch."""


def forward_kl_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·KL(p ‖ q) = T²·mean over rows of Σ p·(log p - log q): what `kd_loss` adds to the task.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    return temperature**2 * kl(log_p_BK, log_q_BK).mean()


def reverse_kl_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·KL(q ‖ p) = T²·mean over rows of Σ q·(log q - log p): seeks modes of the teacher.

    Edges: probabilities of p below e^-80 count as e^-80.
    Source: Gu et al., MiniLLM, arXiv 2306.08543, equation 1, of classes and the teacher's texts."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    return temperature**2 * _reverse_kl(log_q_BK, log_p_BK).mean()


def jsd_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float, jsd_beta: float) -> Tensor:
    """T²·[β·KL(p ‖ m) + (1-β)·KL(q ‖ m)], m = β·p + (1-β)·q, 0 < β < 1.

    Source: generalised Jensen-Shannon divergence, as in Agarwal et al., GKD, arXiv 2306.13649."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    log_m_BK = _log_mixture(log_p_BK, log_q_BK, jsd_beta)
    each_B = jsd_beta * kl(log_p_BK, log_m_BK) + (1 - jsd_beta) * kl(log_q_BK, log_m_BK)
    return temperature**2 * each_B.mean()


def skew_kl_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float, skew: float) -> Tensor:
    """T²·KL(p ‖ m), m = λ·p + (1-λ)·q, 0 <= λ < 1; λ = 0 is `kd_loss`.

    Source: Ko et al., DistiLLM, arXiv 2402.03898."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    return temperature**2 * kl(log_p_BK, _log_mixture(log_p_BK, log_q_BK, skew)).mean()


def skew_reverse_kl_loss(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, skew: float
) -> Tensor:
    """T²·KL(q ‖ m), m = (1-λ)·p + λ·q, 0 <= λ < 1; λ = 0 is `reverse_kl_loss`.

    Source: Ko et al., DistiLLM, arXiv 2402.03898."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    if skew == 0:
        return temperature**2 * _reverse_kl(log_q_BK, log_p_BK).mean()
    return temperature**2 * kl(log_q_BK, _log_mixture(log_q_BK, log_p_BK, skew)).mean()


def tvd_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·½·Σ |p - q|, total variation; its slope is 0 where the two are equal.

    Source: Wen et al., f-divergence minimization for sequence-level knowledge distillation, arXiv
    2307.15190."""
    q_BK, p_BK = (F.softmax(each / temperature, dim=-1) for each in (student_BK, teacher_BK))
    return temperature**2 * 0.5 * (q_BK - p_BK).abs().sum(dim=-1).mean()


def balanced_kl_loss(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, balance: float
) -> Tensor:
    """T²·mean over rows of w_f·KL(p ‖ q) + w_r·KL(q ‖ p), whose weights depend on which of the two
    is less certain: w_f = balance and w_r = 1 in rows where q has less entropy than p, for forward
    KL widens a student that is too certain; w_f = 1 and w_r = balance in the others.

    Weights pass no gradient. Source: Amara et al., BD-KD, arXiv 2212.12965; its second loss, of a
    teacher that learns too, is left out."""
    log_q_BK, log_p_BK = _log_softmax(student_BK, teacher_BK, temperature)
    too_certain_B = entropy(log_q_BK.detach()) < entropy(log_p_BK)
    forward_B = kl(log_p_BK, log_q_BK) * torch.where(too_certain_B, balance, 1.0)
    reverse_B = _reverse_kl(log_q_BK, log_p_BK) * torch.where(too_certain_B, 1.0, balance)
    return temperature**2 * (forward_B + reverse_B).mean()


def _log_softmax(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> tuple[Tensor, ...]:
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    return tuple(F.log_softmax(each / temperature, dim=-1) for each in (student_BK, teacher_BK))


def kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """KL(p ‖ q) of each row, of logarithms of probabilities."""
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(dim=-1)


def _reverse_kl(log_q_BK: Tensor, log_p_BK: Tensor) -> Tensor:
    return kl(log_q_BK, log_p_BK.clamp(min=LEAST_DIVISOR))


def entropy(log_p_BK: Tensor) -> Tensor:
    """The entropy of each row in nats, of logarithms of probabilities."""
    return -(log_p_BK.exp() * log_p_BK).sum(dim=-1)


def _log_mixture(log_p_BK: Tensor, log_q_BK: Tensor, share_of_p: float) -> Tensor:
    if share_of_p == 0:
        return log_q_BK
    return torch.logaddexp(log_p_BK + math.log(share_of_p), log_q_BK + math.log1p(-share_of_p))
