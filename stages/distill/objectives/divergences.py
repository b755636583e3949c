"""Objectives that compare the class distributions of student and teacher, row by row."""

from collections.abc import Mapping

from torch import Tensor

from ..losses import divergences
from .one_loss import LogitsObjective
from .options import (
    BalancedKLOptions,
    JSDOptions,
    ReverseKLOptions,
    SkewKLOptions,
    SkewReverseKLOptions,
    TVDOptions,
)

Loss = tuple[Tensor, Mapping[str, Tensor]]


class ReverseKLObjective(LogitsObjective):
    """Reverse KL: the student commits to classes that the teacher finds probable.

    Formula: alpha · T²·KL(softmax(s/T) ‖ softmax(t/T)) + (1 - alpha) · task
    Source: Gu et al., MiniLLM, arXiv 2306.08543, of classes.
    """

    Options = ReverseKLOptions
    options: ReverseKLOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        return divergences.reverse_kl_loss(student_BK, teacher_BK, self.options.temperature), {}


class JSDObjective(LogitsObjective):
    """Generalised Jensen-Shannon divergence, between forward and reverse KL.

    Formula: alpha · T²·[β·KL(p ‖ m) + (1-β)·KL(q ‖ m)] + (1 - alpha) · task, p = softmax(t/T), q =
    softmax(s/T), m = β·p + (1-β)·q
    Source: Agarwal et al., GKD, arXiv 2306.13649.
    """

    Options = JSDOptions
    options: JSDOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        options = self.options
        loss = divergences.jsd_loss(student_BK, teacher_BK, options.temperature, options.jsd_beta)
        return loss, {}


class SkewKLObjective(LogitsObjective):
    """KL to a mixture of teacher and student, which bounds the gradients of forward KL.

    Formula: alpha · T²·KL(p ‖ λ·p + (1-λ)·q) + (1 - alpha) · task, p = softmax(t/T), q =
    softmax(s/T)
    Source: Ko et al., DistiLLM, arXiv 2402.03898.
    """

    Options = SkewKLOptions
    options: SkewKLOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        options = self.options
        loss = divergences.skew_kl_loss(student_BK, teacher_BK, options.temperature, options.skew)
        return loss, {}


class SkewReverseKLObjective(LogitsObjective):
    """KL from the student to a mixture of both, which bounds the gradients of reverse KL.

    Formula: alpha · T²·KL(q ‖ (1-λ)·p + λ·q) + (1 - alpha) · task, p = softmax(t/T), q =
    softmax(s/T)
    Source: Ko et al., DistiLLM, arXiv 2402.03898.
    """

    Options = SkewReverseKLOptions
    options: SkewReverseKLOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        temperature, skew = self.options.temperature, self.options.skew
        return divergences.skew_reverse_kl_loss(student_BK, teacher_BK, temperature, skew), {}


class TVDObjective(LogitsObjective):
    """Total variation distance: half the absolute differences of probabilities.

    Formula: alpha · T²·½·Σ|softmax(t/T) - softmax(s/T)| + (1 - alpha) · task
    Source: Wen et al., f-divergence minimization for sequence-level KD, arXiv 2307.15190.
    """

    Options = TVDOptions
    options: TVDOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        return divergences.tvd_loss(student_BK, teacher_BK, self.options.temperature), {}


class BalancedKLObjective(LogitsObjective):
    """Forward and reverse KL, the first stronger where the student is too certain, the second
    elsewhere.

    Formula: alpha · T²·[w_f·KL(p ‖ q) + w_r·KL(q ‖ p)] + (1 - alpha) · task; w_f = balance, w_r = 1
    in rows where q has less entropy than p, else w_f = 1, w_r = balance
    Source: Amara et al., BD-KD, arXiv 2212.12965, with a teacher that does not learn.
    """

    Options = BalancedKLOptions
    options: BalancedKLOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        temperature, balance = self.options.temperature, self.options.balance
        return divergences.balanced_kl_loss(student_BK, teacher_BK, temperature, balance), {}
