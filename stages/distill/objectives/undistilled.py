"""The task alone: the control that every gain by distillation is measured against."""

from torch import Tensor

from ..losses import task_loss
from .base import Objective, Reads, TeacherSide, named_terms


class UndistilledObjective(Objective):
    """Owns nothing and reads no feature."""

    reads = Reads(features=0)

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """total, task: the same number."""
        task = task_loss(output_BK, labels_B, self.sizes.regression)
        return named_terms(task, task=task)
