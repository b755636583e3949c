"""What the trainer trains: a student and the objective's parts beside it, in one module."""

from typing import Any

from torch import Tensor, nn

from .losses import task_loss
from .objectives.base import Objective, TeacherSide
from .student import Student


class DistillModel(nn.Module):
    """Training mode: the objective's terms. Evaluation mode: outputs and the task loss alone, so
    that no feature of an evaluation text is ever asked for; unless features are all there is."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        feature: TeacherSide = None,
    ) -> dict[str, Any]:
        """`logits` [B, K], and `loss` where there are labels; in training also `terms`."""
        pooled_BD, output_BK = self.student(input_ids, attention_mask, token_type_ids)
        if labels is None:
            return {"logits": output_BK}
        if not self.training and self.student.space.task != "none":
            loss = task_loss(output_BK, labels, self.student.space.regression)
            return {"loss": loss, "logits": output_BK}
        terms = self.objective(pooled_BD, output_BK, feature, labels)
        return {"loss": terms["total"], "logits": output_BK, "terms": terms}
