"""Bases of objectives that are one loss of a teacher, beside the task's.

    AlphaObjective         total = alpha · distillation + (1 - alpha) · task
    LogitsObjective        the same, of class logits
    BetaObjective          total = task + beta · loss
    FeatureLossObjective   the same, of a pooled text
    LayersObjective        the same, of hidden layers

All give their loss numbers in the precision of sums, and the teacher's without a graph. Shapes: B
rows, D pooled student text, K classes, H numbers of a feature.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ....cache_schemas.errors import JobError, MissingFeatureError
from ..losses import accumulated, likeliest_classes, task_loss
from .base import (
    Objective,
    Reads,
    Sizes,
    Sources,
    StudentSide,
    TeacherSide,
    named_terms,
)
from .options import AlphaOptions, BetaOptions


def require_standardisable(name: str, sizes: Sizes, remedy: str) -> None:
    """Raises JobError for two classes: logits of mean 0 and deviation 1 are then ±1, or ±1/√2, and
    have no slope."""
    if sizes.num_labels == 2:
        raise JobError(
            f"objective {name}: standardised logits of two classes are nothing but their order; "
            f"{remedy}"
        )


class AlphaObjective(Objective):
    """An objective that weighs a loss of the teacher against that of the labels."""

    options: AlphaOptions

    def beside_task(
        self, distillation: Tensor, output_BK: Tensor, labels_B: Tensor, **reported: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation, and what is reported."""
        task = task_loss(output_BK, labels_B, regression=False)
        total = self.options.alpha * distillation + (1 - self.options.alpha) * task
        return named_terms(total, task=task, distillation=distillation, **reported)

    def task_weight(self, sources: Sources) -> float:
        """1 - alpha."""
        return 1 - self.options.alpha


class LogitsObjective(AlphaObjective):
    """An objective that compares the student's class logits with the teacher's."""

    reads: ClassVar[Reads] = Reads(default_feature="logits", classes=True, regression=False)

    @abstractmethod
    def distillation(
        self, student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and more terms to report; `labels_B` are classes, the likeliest ones
        where the labels are probabilities."""

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task, distillation; and what `distillation` reports."""
        student_BK = accumulated(output_BK)
        teacher_BK = accumulated(self._feature(feature_BH).detach())
        distillation, reported = self.distillation(
            student_BK, teacher_BK, likeliest_classes(labels_B)
        )
        return self.beside_task(distillation, student_BK, labels_B, **reported)


class BetaObjective(Objective):
    """An objective that adds a loss of the teacher to the task's."""

    options: BetaOptions

    def beside_task(
        self,
        loss: Tensor,
        output_BK: Tensor | None,
        labels_B: Tensor | None,
        **reported: Tensor,
    ) -> dict[str, Tensor]:
        """total, task, and what is reported. Without output or labels, the task's is 0."""
        if output_BK is None or labels_B is None:
            task = torch.zeros_like(loss)
        else:
            task = task_loss(output_BK, labels_B, self.sizes.regression)
        return named_terms(task + self.options.beta * loss, task=task, **reported)

    def task_weight(self, sources: Sources) -> float:
        """1."""
        return 1.0


class FeatureLossObjective(BetaObjective):
    """An objective that compares the student's pooled texts with a feature of the teacher."""

    reads: ClassVar[Reads] = Reads(labels=False, headless=True, task=False)

    def __init__(self, options: BetaOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.feature_dim = sizes.feature_dim
        """H, how many numbers a feature has."""

    @abstractmethod
    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and the terms to report: it is one of them, or their sum."""

    def forward(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        feature_BH: TeacherSide,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total, task and what `loss` reports. Without output or labels, the task's is 0."""
        pooled_BD = accumulated(pooled_BD)
        feature = self._feature(feature_BH).detach().to(pooled_BD.dtype)
        loss, reported = self.loss(pooled_BD, feature)
        return self.beside_task(loss, output_BK, labels_B, **reported)


class LayersObjective(BetaObjective):
    """An objective that compares hidden layers of the student with features of the teacher."""

    @abstractmethod
    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch, and the terms to report: it is one of them, or their sum."""

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, task and what `loss` reports. Without output or labels, the task's is 0."""
        found = [sources.get(name) for name in self.sources]
        features = tuple(accumulated(f.detach()) for f in found if isinstance(f, Tensor))
        if not features or len(features) < len(found):
            raise MissingFeatureError(
                f"{type(self).__name__} needs {len(found)} teacher features and the batch carries "
                f"{len(features)}"
            )
        loss, reported = self.loss(side, features)
        return self.beside_task(loss, side.output_BK, labels_B, **reported)
