"""The task alone: the control that every gain by distillation is measured against."""

from torch import Tensor

from ..losses import task_loss
from .base import (
    Objective,
    Reads,
    Sources,
    StudentSide,
    TeacherSide,
    named_terms,
    task_terms,
)


class UndistilledObjective(Objective):
    """The task's loss alone: the control that every gain by distillation is measured against.

    Formula: task
    Source: none needed.

    Owns nothing and reads no feature.
    """

    reads = Reads(features=0, student=frozenset({"output", "tokens"}), headless=True)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, and task or, of a language model, language: the same number."""
        return task_terms(side, labels_B, self.sizes.regression)

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task: the same number."""
        task = task_loss(output_BK, labels_B, self.sizes.regression)
        return named_terms(task, task=task)

    def task_weight(self, sources: Sources) -> float:
        """1: there is nothing else."""
        return 1.0
