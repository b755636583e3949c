"""What the trainer trains: a student and the objective's parts beside it, in one module."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .aligner import AlignerAnswers
from .losses import task_loss
from .objectives.base import Feature, Objective, Sources, StudentSide
from .processes import ALONE, Processes
from .student import Student


class TrainedModel(nn.Module):
    """A student of any kind and the objective's parts beside it.

    Of several processes, each sees the student's and the teachers' numbers for the whole batch;
    but a language model's tokens for its own share."""

    student: Any
    objective: Objective
    processes: Processes

    def __init__(self, student: Any, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.processes = ALONE

    def _joined(self, part: Feature | None, rows: int) -> Any:
        """A part of this process's share, for a whole batch of so many rows."""
        if part is None or self.processes.count == 1:
            return part
        if isinstance(part, AlignerAnswers):
            return AlignerAnswers(*(self.processes.joined(each, rows) for each in part))
        return self.processes.joined(part, rows)


class DistillModel(TrainedModel):
    """Training mode: the objective's terms. Evaluation mode: outputs and the task loss alone, so
    that no feature of an evaluation text is ever asked for; unless features are all there is."""

    student: Student

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
        rows: int = 0,
    ) -> dict[str, Any]:
        """`logits` [B, K], and `loss` where there are labels; in training also `terms`. `features`
        are what teachers say, `rows` those of the batch in all processes."""
        pooled_BD, output_BK = self.student(input_ids, attention_mask, token_type_ids)
        if labels is None:
            return {"logits": output_BK}
        if not self.training and self.student.space.task != "none":
            loss = task_loss(output_BK, labels, self.student.space.regression)
            return {"loss": loss, "logits": output_BK}
        sources: Sources = features or {}
        side = StudentSide(pooled_BD, output_BK)
        if self.training:
            sources = {name: self._joined(each, rows) for name, each in (features or {}).items()}
            side = StudentSide(self._joined(pooled_BD, rows), self._joined(output_BK, rows))
            labels = self._joined(labels, rows)
        terms = self.objective.of_sources(side, sources, labels)
        return {"loss": terms["total"], "logits": output_BK, "terms": terms}
