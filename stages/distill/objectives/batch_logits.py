"""Objectives that compare class logits of all rows of a batch at once."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..losses.batch_logits import lumi_loss, sinkhorn_loss
from ..losses.divergences import forward_kl_loss
from .one_loss import LogitsObjective
from .options import LumiOptions, SinkhornOptions


class SinkhornObjective(LogitsObjective):
    """Forward KL, and the cost of moving a batch's distributions onto the teacher's.

    Formula: alpha · [kl_weight · T²·KL(softmax(t/T) ‖ softmax(s/T)) + sinkhorn_weight · 1/B·Σ
    W_ij·|q_i - p_j|] + (1 - alpha) · task, W by Sinkhorn's iterations from exp(-|q_i - p_j|/ε)
    Source: Cui et al., SinKD, arXiv 2402.17110.

    Compares all pairs of rows.
    """

    Options = SinkhornOptions
    options: SinkhornOptions
    reads = replace(LogitsObjective.reads, least_rows=2)

    def distillation(
        self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports kl and sinkhorn."""
        options = self.options
        kl = forward_kl_loss(student_BK, teacher_BK, options.temperature)
        moved = sinkhorn_loss(
            student_BK,
            teacher_BK,
            options.temperature,
            options.sinkhorn_epsilon,
            options.sinkhorn_iterations,
        )
        total = options.kl_weight * kl + options.sinkhorn_weight * moved
        return total, {"kl": kl, "sinkhorn": moved}


class LumiObjective(LogitsObjective):
    """Logits standardised class by class over the batch: how a text differs from the others.

    Formula: alpha · T²·KL(softmax(h(t)/T) ‖ softmax(h(s)/T)) + (1 - alpha) · task, h(z) = (z -
    mean)/√variance of each class over the batch
    Source: Hossain et al., LumiNet, arXiv 2310.03669.
    """

    Options = LumiOptions
    options: LumiOptions
    reads = replace(LogitsObjective.reads, least_rows=2)

    def distillation(
        self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports nothing more."""
        return lumi_loss(student_BK, teacher_BK, self.options.temperature), {}
