"""What is refused of a job whose student embeds, before anything is read."""

from ...cache_schemas.errors import JobError
from ...stages.distill.objectives.base import Reads
from ..distill_job import DistillJob
from .keys import EmbeddingKeys

_REFUSED = {
    "num_labels": "the scores of pairs are numbers",
    "label_separator": "the scores of pairs are numbers",
    "select": "choose the rows of its corpus before (`armada corpus`)",
    "optimizer": "its losses are not parted into task and distillation",
    "stages": "weights may be schedules",
}


def check_embedding(job: DistillJob) -> None:
    """Raises JobError for keys of embeddings in a job of another task, and for what a student that
    embeds does without."""
    if job.task != "embedding":
        for key, field in EmbeddingKeys.model_fields.items():
            if getattr(job, key) != field.default:
                raise JobError(f"job key {key!r}: is for students that embed; set task=embedding")
        return
    if job.parsed_control.name == "undistilled" or job.objective == "undistilled":
        raise JobError(
            "undistilled: a student that embeds learns from pairs without a teacher; use "
            "objective=contrastive or objective=cosent"
        )
    for key, reason in _REFUSED.items():
        if getattr(job, key) is not None:
            raise JobError(f"job key {key!r}: is not for task=embedding: {reason}; leave it out")
    prompts = (job.prompts.query_prompt, job.prompts.passage_prompt)
    if len(job.text_column) == 1 and all(prompts) and len(set(prompts)) > 1:
        raise JobError(
            f"query_prompt {prompts[0]!r}: and passage_prompt differ, and text_column names one "
            "column, whose texts are either; leave one out"
        )
    if len(job.label_columns) > 1:
        raise JobError("label_column: a pair of texts has one score; name one column")
    _check_teachers(job)


def _check_teachers(job: DistillJob) -> None:
    for name, teacher in job.all_teachers.items():
        if teacher.missing != "refuse":
            raise JobError(
                f"missing=without_teacher: teacher {name}: a text without its embedding teaches "
                "nothing; skip such rows with skip_bad_rows=true"
            )
        if teacher.text_column:
            raise JobError(
                f"teacher {name}: text_column: reads the texts that are embedded; leave it out"
            )


def check_embedding_objective(name: str, reads: Reads, has_aligner: bool, job: DistillJob) -> None:
    """Raises JobError for an objective that a student that embeds cannot have, or that the texts
    of a row do not suffice for."""
    alone = reads.headless and not reads.classes and not has_aligner
    if not alone or not reads.student <= {"pooled", "output", "candidates"}:
        raise JobError(
            f"objective {name}: reads what a student that embeds does not have (labels, layers or "
            "tokens); use feature, infonce, rkd or another objective of vectors, or contrastive, "
            "margin_mse or listwise_kl"
        )
    columns = len(job.text_column)
    if "candidates" in reads.student and columns < 2:
        raise JobError(
            f"objective {name}: compares the texts of a row, and text_column names one; name a "
            "query and a passage"
        )
    if name == "cosent" and (job.label_column is None or columns != 2):
        raise JobError(
            "objective cosent: learns the order of scores of pairs; name two text columns, and "
            "label_column, the column of the scores"
        )
    if name == "margin_mse" and columns < 3:
        raise JobError(
            "objective margin_mse: compares a positive with negatives; name a query, a positive "
            "and a negative or more in text_column (`armada mine` finds some)"
        )
