"""What the trainer trains: a student and the objective's parts beside it, in one module."""

from typing import Any

from torch import Tensor, nn

from .aligner import AlignerAnswers
from .losses import task_loss
from .objectives.base import Feature, Objective, Sources
from .processes import ALONE, Processes
from .student import Student


class TrainedModel(nn.Module):
    """A student of any kind and the objective's parts beside it."""

    student: Any
    objective: Objective
    processes: Processes


class DistillModel(TrainedModel):
    """Training mode: the objective's terms. Evaluation mode: outputs and the task loss alone, so
    that no feature of an evaluation text is ever asked for; unless features are all there is.

    Of several processes, each sees the student's and the teacher's numbers for the whole batch."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.processes: Processes = ALONE

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        features: Sources | None = None,
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
        sources, whole_BK, whole_B = features or {}, output_BK, labels
        if self.training and self.processes.count > 1:
            joined = self.processes.joined
            sources = {name: joined_feature(self.processes, f, rows) for name, f in sources.items()}
            pooled_BD, whole_B = joined(pooled_BD, rows), joined(labels, rows)
            whole_BK = None if output_BK is None else joined(output_BK, rows)
        terms = self.objective.of_sources(pooled_BD, whole_BK, sources, whole_B)
        return {"loss": terms["total"], "logits": output_BK, "terms": terms}


def joined_feature(processes: Processes, feature: Feature, rows: int) -> Feature:
    """What a teacher says of the whole batch, of which each process has its share."""
    if isinstance(feature, AlignerAnswers):
        return AlignerAnswers(*(processes.joined(each, rows) for each in feature))
    return processes.joined(feature, rows)
