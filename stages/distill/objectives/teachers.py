"""Objectives that fuse the predictions of several teachers.

Shapes: N teachers, B rows, D pooled student text, K classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....cache_schemas.errors import JobError
from ..losses import MISSING_LABEL, accumulated, likeliest_classes
from ..losses import teachers as fusing
from .base import Reads, Sizes, TeacherSide
from .one_loss import AlphaObjective, require_standardisable
from .options import MultiKDOptions


class MultiKDObjective(AlphaObjective):
    """Class probabilities of several teachers, weighted for each example and fused into one.

    Formula: alpha · T²·KL(p ‖ softmax(s/T)) + (1 - alpha) · task, p = Σ_n w_n·softmax(t_n/T)
    Source: CA-MKD, arXiv 2201.00007 (confidence); logit standardization, arXiv 2403.01427.

    Against p, the loss has the gradient of Σ_n w_n·T²·KL(softmax(t_n/T) ‖ softmax(s/T)). With
    `fusion=gate`, a small network on the student's pooled text gives the weights. It learns by the
    cross entropy of the fused prediction (T = 1) with the labels, which is added to the loss and
    whose gradient reaches nothing else: a differentiable form of the selection that Reinforced
    Multi-Teacher Selection (arXiv 2012.06048) learns from rewards.
    """

    Options = MultiKDOptions
    options: MultiKDOptions
    reads = Reads(
        features=None,
        several_teachers=True,
        default_feature="logits",
        classes=True,
        regression=False,
        student=frozenset({"pooled", "output"}),
    )
    fixed_N: Tensor

    def __init__(self, options: MultiKDOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        count = 1 + len(sizes.more_shapes)
        self.require_teachers(type(self).__name__, options, count)
        fixed = torch.tensor(options.weights or (1.0,) * count)
        self.register_buffer("fixed_N", fixed / fixed.sum(), persistent=False)
        self.gate = None
        if options.fusion == "gate":
            hidden = options.gate_hidden_size
            self.gate = nn.Sequential(
                nn.Linear(sizes.pooled_dim, hidden), nn.Tanh(), nn.Linear(hidden, count)
            )

    @classmethod
    def require_options(cls, name: str, options: MultiKDOptions, sizes: Sizes) -> None:
        """Raises JobError for standardised logits of two classes, which have no slope."""
        if options.standardize:
            require_standardisable(name, sizes, "leave standardize out")

    @classmethod
    def require_teachers(cls, name: str, options: Any, count: int) -> None:
        """Raises JobError for weights of another number of teachers, or for one alone."""
        if options.weights and len(options.weights) != count:
            raise JobError(
                f"objective {name}: weights: {len(options.weights)} are given for {count} "
                "teachers; name one for each, in the order of teachers"
            )
        if count < 2:
            raise JobError(f"objective {name}: needs several teachers; name more in `teachers`")

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation, the mean weight of each teacher, and the gate's loss."""
        features = feature_BH if isinstance(feature_BH, tuple) else (feature_BH,)
        teachers = [accumulated(self._feature(each).detach()) for each in features]
        student_BK = accumulated(output_BK)
        teacher_NBK = torch.stack(teachers).to(student_BK.dtype)
        if self.options.standardize:
            student_BK = fusing.standardized(student_BK)
            teacher_NBK = fusing.standardized(teacher_NBK)
        classes_B = likeliest_classes(labels_B)
        weights_NB = self._weights(pooled_BD, teacher_NBK, classes_B)
        distillation = self._distillation(student_BK, teacher_NBK, weights_NB.detach())
        means = weights_NB.detach().mean(dim=1)
        reported = {f"weight_of_{n}": each for n, each in zip(self.sources, means, strict=True)}
        if self.gate is not None:
            gate = self._gate_loss(teacher_NBK, weights_NB, classes_B)
            reported["gate"] = gate
        terms = self.beside_task(distillation, output_BK, labels_B, **reported)
        if self.gate is not None:
            terms["total"] = terms["total"] + reported["gate"]
        return terms

    def _distillation(self, student_BK: Tensor, teacher_NBK: Tensor, weights_NB: Tensor) -> Tensor:
        temperature = self.options.temperature
        of_logits = self.options.fused == "logits"
        log_p = fusing.fused_log_probabilities(teacher_NBK, weights_NB, temperature, of_logits)
        log_q = F.log_softmax(student_BK / temperature, dim=-1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return temperature**2 * divergence

    def _weights(self, pooled_BD: Tensor, teacher_NBK: Tensor, classes_B: Tensor) -> Tensor:
        match self.options.fusion:
            case "confidence":
                losses = fusing.confidence_losses(teacher_NBK, classes_B)
                return fusing.weights_of_losses(losses)
            case "entropy":
                return fusing.weights_of_losses(fusing.entropies(teacher_NBK))
            case "agreement":
                return fusing.agreement_weights(teacher_NBK)
            case "gate":
                assert self.gate is not None
                odds_BN = accumulated(self.gate(accumulated(pooled_BD.detach())))
                return F.softmax(odds_BN, dim=-1).T
        return self.fixed_N.to(teacher_NBK.dtype).unsqueeze(1).expand(-1, teacher_NBK.shape[1])

    def _gate_loss(self, teacher_NBK: Tensor, weights_NB: Tensor, classes_B: Tensor) -> Tensor:
        of_logits = self.options.fused == "logits"
        log_p = fusing.fused_log_probabilities(teacher_NBK, weights_NB, 1.0, of_logits)
        loss = F.nll_loss(log_p, classes_B, ignore_index=MISSING_LABEL, reduction="sum")
        return loss / (classes_B != MISSING_LABEL).sum().clamp(min=1)
