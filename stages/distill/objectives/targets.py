"""Objectives whose targets are made from the teacher's logits: on the way to them, recalibrated,
adapted, or fused with the labels."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import MISSING_LABEL, accumulated, likeliest_classes, task_loss
from ..losses.divergences import forward_kl_loss
from ..losses.targets import first_loss, fused_labels_losses, smoothed_labels_loss, taid_loss
from .base import Objective, Sizes, TeacherSide, named_terms
from .one_loss import LogitsObjective
from .options import (
    FirstOptions,
    FusedLabelsOptions,
    PESFOptions,
    SmoothedLabelsOptions,
    TAIDOptions,
)

Loss = tuple[Tensor, Mapping[str, Tensor]]

GATE_SIZE = 16
"""Width of the hidden layer that weighs a row."""

LEAST_SHARE = 1e-3
"""The nearest to 0 and 1 that alpha can be where it stands for odds."""


class TAIDObjective(LogitsObjective):
    """A target that moves from the student's own distribution to the teacher's.

    Formula: alpha · T²·KL(softmax(((1-t)·s + t·teacher)/T) ‖ softmax(s/T)) + (1 - alpha) · task; t
    from taid_start to taid_end, at least in a straight line, faster while the loss falls
    Source: Shing et al., TAID, arXiv 2501.16937.

    An evaluation has t = taid_end, or epochs would not compare.
    """

    Options = TAIDOptions
    options: TAIDOptions

    def __init__(self, options: TAIDOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.share = AdaptiveShare(options)

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports share: t."""
        if not self.training:
            loss = taid_loss(
                student_BK, teacher_BK, self.options.temperature, self.options.taid_end
            )
            return loss, {"share": torch.full_like(loss, self.options.taid_end)}
        share = self.share.at(self.progress)
        loss = taid_loss(student_BK, teacher_BK, self.options.temperature, share)
        self.share.observe(loss.detach())
        return loss, {"share": share}


class AdaptiveShare(nn.Module):
    """t of TAID: moved once a step, by the mean loss of the step before.

    With J the loss, b the momentum and a the step, beginning at m = 0 and t = taid_start:

        m = b·m + (1-b)·(J_before - J)/J_before
        t = min(taid_end, max(straight line, t + a·sigmoid(m)·(1-t)))

    All of it is in buffers, which a checkpoint keeps, and on the device of the loss. Whoever loads
    them, for a step that is computed once more, has them moved again.
    Source: arXiv 2501.16937.
    """

    now: Tensor
    momentum: Tensor
    before: Tensor
    summed: Tensor
    count: Tensor

    def __init__(self, options: TAIDOptions) -> None:
        super().__init__()
        self._options = options
        self._progress: float | None = None
        self.register_buffer("now", torch.tensor(options.taid_start))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("before", torch.tensor(0.0))
        self.register_buffer("summed", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0.0))

    def at(self, progress: float) -> Tensor:
        """t when a share of the steps, 0 to 1, is made: the same for all batches of a step."""
        if progress != self._progress:
            self._progress = progress
            self._move(progress)
        return self.now.clone()

    def observe(self, loss: Tensor) -> None:
        """Adds a batch's loss to those of the step."""
        self.summed += loss
        self.count += 1

    def _load_from_state_dict(self, *args: Any, **more: Any) -> None:
        self._progress = None
        super()._load_from_state_dict(*args, **more)

    def _move(self, progress: float) -> None:
        options = self._options
        loss = self.summed / self.count.clamp(min=1)
        known = (self.count > 0) & (self.before > 0)
        change = (self.before - loss) / self.before.clamp(min=1e-8)
        momentum = options.taid_momentum * self.momentum + (1 - options.taid_momentum) * change
        ahead = self.now + options.taid_step * momentum.sigmoid() * (1 - self.now)
        line = options.taid_start + progress * (options.taid_end - options.taid_start)
        self.momentum.copy_(torch.where(known, momentum, self.momentum))
        self.now.copy_(torch.where(known, ahead, self.now).clamp(line, options.taid_end))
        self.before.copy_(torch.where(self.count > 0, loss, self.before))
        self.summed.zero_()
        self.count.zero_()


class FirstObjective(LogitsObjective):
    """The teacher's few most probable classes, recalibrated.

    Formula: alpha · KL(p ‖ softmax(s)) + (1 - alpha) · task; p = softmax(t/calibration_temperature)
    over kept_classes, of whose first `smoothing` goes to the others
    Source: Shum et al., FIRST, arXiv 2408.12168, of classes.
    """

    Options = FirstOptions
    options: FirstOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        options = self.options
        return first_loss(
            student_BK,
            teacher_BK,
            options.kept_classes,
            options.calibration_temperature,
            options.smoothing,
        ), {}


class SmoothedLabelsObjective(LogitsObjective):
    """Labels smoothed towards the teacher's softened distribution instead of the uniform one.

    Formula: alpha · KL(softmax(t/T) ‖ softmax(s)) + (1 - alpha) · task: up to a constant, the cross
    entropy of softmax(s) with alpha · softmax(t/T) + (1 - alpha) · label
    Source: Yuan et al., Revisiting KD via label smoothing regularization, arXiv 1909.11723.
    """

    Options = SmoothedLabelsOptions
    options: SmoothedLabelsOptions

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports nothing more."""
        return smoothed_labels_loss(student_BK, teacher_BK, self.options.temperature), {}


class PESFObjective(LogitsObjective):
    """Logits that a small adapter makes of the teacher's, trained along with the student.

    Formula: alpha · [T²·KL(softmax(t'/T) ‖ softmax(s/T)) + CE(t', label)] + (1 - alpha) · task,
    t' = t + W2·gelu(W1·t)
    Source: Rao et al., Parameter-efficient and student-friendly KD, arXiv 2205.15308, with the
    adapter on cached logits.

    KL moves the adapter towards what the student can follow, its cross entropy holds it to the
    labels. It begins at t' = t. Owns `adapter`.
    """

    Options = PESFOptions
    options: PESFOptions

    def __init__(self, options: PESFOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        classes, hidden = sizes.num_labels, options.adapter_hidden_size
        last = nn.Linear(hidden, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.adapter = nn.Sequential(nn.Linear(classes, hidden), nn.GELU(), last)

    def distillation(self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor) -> Loss:
        """Reports kl and adapter: its cross entropy."""
        adapted_BK = accumulated(teacher_BK + self.adapter(teacher_BK))
        kl = forward_kl_loss(student_BK, adapted_BK, self.options.temperature)
        adapter = task_loss(adapted_BK, labels_B, regression=False)
        return kl + adapter, {"kl": kl, "adapter": adapter}


class FusedLabelsObjective(Objective):
    """Each row's own weight of teacher against label, learned from how the three lie to each other.

    Formula: mean of g·T²·KL(softmax(t/T) ‖ softmax(s/T)) + (1-g)·CE(s, label) + strictness ·
    KL(g ‖ alpha); g = sigmoid(log odds of alpha + net(geometry of the row))
    Source: after Hu et al., TGeo-KD, arXiv 2312.15112.

    Simplified: the paper trains g by the student's loss on a validation set, one more level of
    optimisation. Here it lowers the same loss, held to alpha by the KL of two coins: the best log
    odds of g are those of alpha + (CE - T²·KL) / strictness, so that rows whose label is farther
    off than the teacher follow the teacher. The geometry is the row's CE of student and of teacher,
    and the KL between them, without a gradient. A row without a label has g = 1. Owns `gate`.
    """

    Options = FusedLabelsOptions
    options: FusedLabelsOptions
    reads = LogitsObjective.reads

    def __init__(self, options: FusedLabelsOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        last = nn.Linear(GATE_SIZE, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(3, GATE_SIZE), nn.Tanh(), last)

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation, and gate: the mean g. Probabilities as labels count as their
        likeliest class."""
        task = task_loss(accumulated(output_BK), labels_B, regression=False)
        labels_B = likeliest_classes(labels_B)
        student_BK = accumulated(output_BK)
        teacher_BK = accumulated(self._feature(feature_BH).detach())
        temperature, has_label_B = self.options.temperature, labels_B != MISSING_LABEL
        distilled_B, labelled_B = fused_labels_losses(student_BK, teacher_BK, labels_B, temperature)
        _, teachers_B = fused_labels_losses(teacher_BK, teacher_BK, labels_B, temperature)
        alpha = min(max(self.options.alpha, LEAST_SHARE), 1 - LEAST_SHARE)
        odds = math.log(alpha / (1 - alpha))
        # Rounding leaves a little below 0 of a divergence, times T².
        geometry_B3 = torch.stack((labelled_B, teachers_B, distilled_B), dim=-1).detach().clamp(0)
        odds_B = odds + accumulated(self.gate(geometry_B3.log1p())).squeeze(-1)
        log_g_B = F.logsigmoid(odds_B).where(has_label_B, 0)
        log_not_g_B = F.logsigmoid(-odds_B)
        g_B = log_g_B.exp()
        strayed_B = g_B * (log_g_B - _log_sigmoid(odds)) + (1 - g_B) * (
            log_not_g_B - _log_sigmoid(-odds)
        )
        each_B = g_B * distilled_B + (1 - g_B) * labelled_B
        total = (each_B + self.options.strictness * strayed_B.where(has_label_B, 0)).mean()
        return named_terms(total, task=task, distillation=distilled_B.mean(), gate=g_B.mean())


def _log_sigmoid(odds: float) -> float:
    return -math.log1p(math.exp(-odds))
