"""Losses with other targets than the teacher's own class distribution.

Shapes: student and teacher logits [B, K], labels [B]; in the precision of sums, the teacher's
without a graph unless something that learns has made them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import forward_kl_loss, kl
from .task import MISSING_LABEL


def taid_loss(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, share: float | Tensor
) -> Tensor:
    """T²·KL(softmax(z/T) ‖ softmax(s/T)), z = (1-t)·s + t·t_logits the logits in between, without a
    gradient: at a share t = 1 that is forward KL, at 0 nothing.

    Source: Shing et al., TAID, arXiv 2501.16937, at T = 1."""
    between_BK = torch.lerp(student_BK.detach(), teacher_BK.to(student_BK.dtype), share)
    return forward_kl_loss(student_BK, between_BK, temperature)


def first_loss(
    student_BK: Tensor, teacher_BK: Tensor, kept: int, calibration: float, smoothing: float
) -> Tensor:
    """Mean over rows of KL(p ‖ q) = Σ p·(log p - log q), p a recalibrated distribution over the
    teacher's `kept` most probable classes, q = softmax(s) over all.

    p is softmax(t/c) of the kept, c the calibration temperature; then `smoothing` of the first
    class's probability, or all that it has if that is less, is shared among the other kept ones.
    Edges: with no more than `kept` classes all are kept; where one is kept, p = 1.
    Source: Shum et al., FIRST, arXiv 2408.12168: top-5 and both of its recalibrations; c is to be
    fitted on held-out labels."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    kept = min(kept, teacher_BK.shape[-1])
    logits_Bk, classes_Bk = (teacher_BK / calibration).topk(kept, dim=-1)
    p_Bk = F.softmax(logits_Bk, dim=-1)
    if kept > 1:
        moved_B1 = p_Bk[:, :1].clamp(max=smoothing)
        p_Bk = torch.cat((p_Bk[:, :1] - moved_B1, p_Bk[:, 1:] + moved_B1 / (kept - 1)), dim=-1)
    log_q_Bk = F.log_softmax(student_BK, dim=-1).gather(-1, classes_Bk)
    return (torch.xlogy(p_Bk, p_Bk) - p_Bk * log_q_Bk).sum(dim=-1).mean()


def smoothed_labels_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Mean over rows of KL(softmax(t/T) ‖ softmax(s)): T softens the target alone.

    Source: Yuan et al., Revisiting knowledge distillation via label smoothing regularization, arXiv
    1909.11723."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    log_p_BK = F.log_softmax(teacher_BK / temperature, dim=-1)
    log_q_BK = F.log_softmax(student_BK, dim=-1)
    return kl(log_p_BK, log_q_BK).mean()


def ofa_loss(
    student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, enhancement: float
) -> Tensor:
    """Mean over rows of -(1 + p_y)^γ·log q_y - Σ_k≠y p_k·log q_k, p = softmax(t), q = softmax(s), y
    the label: its part grows where the teacher is certain of it.

    Edges: at γ = 1 it is cross entropy and KL, but for the teacher's entropy; a row without a label
    has -Σ_k p_k·log q_k.
    Source: Hao et al., One-for-All, arXiv 2310.19444, equation 8."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    p_BK, log_q_BK = F.softmax(teacher_BK, dim=-1), F.log_softmax(student_BK, dim=-1)
    plain_B = -(p_BK * log_q_BK).sum(dim=-1)
    known_B = labels_B != MISSING_LABEL
    label_B1 = torch.where(known_B, labels_B, 0).long()[:, None]
    p_B, log_q_B = (each.gather(-1, label_B1)[:, 0] for each in (p_BK, log_q_BK))
    enhanced_B = ((1 + p_B) ** enhancement - p_B) * -log_q_B
    return (plain_B + torch.where(known_B, enhanced_B, 0)).mean()


def fused_labels_losses(
    student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """What a row costs by the teacher, T²·KL(softmax(t/T) ‖ softmax(s/T)), and by its label, cross
    entropy: [B] each, the second 0 in rows without a label."""
    log_p_BK, log_q_BK = (F.log_softmax(z / temperature, dim=-1) for z in (teacher_BK, student_BK))
    distilled_B = temperature**2 * kl(log_p_BK, log_q_BK)
    labelled_B = F.cross_entropy(
        student_BK, labels_B.long(), ignore_index=MISSING_LABEL, reduction="none"
    )
    return distilled_B, labelled_B
