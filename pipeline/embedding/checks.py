"""What is refused of a job whose student embeds, before anything is read."""

from ...cache_schemas.errors import JobError
from ...stages.corpus.reading import PICTURES
from ...stages.distill.objectives.base import Reads
from ..distill_job import DistillJob
from .keys import EmbeddingKeys

_REFUSED = {
    "num_labels": "the scores of pairs are numbers",
    "label_separator": "the scores of pairs are numbers",
}

_WITHOUT_EFFECT = ("dropout", "schedule", "aligner_batch_size", "aligner_learning_rate")
_OF_SCORES = "cosent"


def check_embedding(job: DistillJob) -> None:
    """Raises JobError for keys of embeddings in a job of another task, and for what a student that
    embeds does without."""
    if job.task != "embedding":
        for key, field in EmbeddingKeys.model_fields.items():
            if getattr(job, key) != field.default:
                raise JobError(f"job key {key!r}: is for students that embed; set task=embedding")
        if job.pooling == "none":
            raise JobError(
                "pooling='none': a vector for each token is for students that embed; set "
                "task=embedding, or choose another pooling"
            )
        for name, teacher in job.all_teachers.items():
            if teacher.of_queries is not None:
                raise JobError(
                    f"teacher {name}: query_cache, query_teacher: are for students that embed; "
                    "set task=embedding"
                )
        return
    if job.parsed_control.name == "undistilled" or job.objective == "undistilled":
        raise JobError(
            "undistilled: a student that embeds learns from pairs without a teacher; use "
            "objective=contrastive or objective=cosent"
        )
    _check_keys(job)
    _check_texts(job)
    _check_towers(job)
    _check_teachers(job)
    if job.pooling == "none":
        _check_tokens(job)


def _check_keys(job: DistillJob) -> None:
    if job.optimizer == "dot":
        raise JobError(
            "optimizer=dot: treats the task and distillation apart, and a student that embeds has "
            "no task of its own; use another"
        )
    for key in _WITHOUT_EFFECT:
        if getattr(job, key) != type(job).model_fields[key].default:
            raise JobError(
                f"job key {key!r}: a student that embeds has neither a head nor an aligner; leave "
                "it out"
            )
    for key, reason in _REFUSED.items():
        if getattr(job, key) is not None:
            raise JobError(f"job key {key!r}: is not for task=embedding: {reason}; leave it out")
    for key in ("validation_text_column", "validation_label_column"):
        if getattr(job, key) is not None and not job.validation:
            raise JobError(f"job key {key!r}: is of validation texts; name them in `validation`")


def _check_texts(job: DistillJob) -> None:
    for column in (*job.text_column, *(job.validation_text_column or ())):
        if column.startswith(PICTURES):
            raise JobError(
                f"text_column {column!r}: a student that embeds reads texts; name the pictures in "
                "text_column of a teacher (`teachers`)"
            )
    prompts = (job.query_prompt, job.passage_prompt)
    if len(job.text_column) == 1 and all(prompts) and len(set(prompts)) > 1:
        raise JobError(
            f"query_prompt {prompts[0]!r}: and passage_prompt differ, and text_column names one "
            "column, whose texts are either; leave one out"
        )
    if len(job.label_columns) > 1:
        raise JobError("label_column: a pair of texts has one score; name one column")
    names = [keys.name for keys in job.all_objectives]
    if job.label_column is not None and _OF_SCORES not in names:
        raise JobError(
            f"label_column {job.label_column!r}: the scores of pairs are learned by objective "
            "cosent alone; to measure by them, name validation_label_column"
        )


def _check_towers(job: DistillJob) -> None:
    for key in ("passage_student", "passage_student_layers"):
        if getattr(job, key) is not None and job.tower != "own":
            raise JobError(f"job key {key!r}: is for passage_tower=own; set it, or leave {key} out")
    if job.tower != "shared" and len(job.text_column) < 2:
        raise JobError(
            f"passage_tower={job.tower}: text_column names one column, and passages are the second "
            "and further ones; name a query's and a passage's"
        )
    if job.tower == "own" and job.lora_rank is not None:
        raise JobError(
            "lora_rank: adapters of two towers are not kept apart; use passage_tower=shared or "
            "cached, or train whole weights"
        )
    if job.tower == "cached" and not job.all_teachers:
        raise JobError(
            "passage_tower=cached: there is no cache of the passages' embeddings; name one in "
            "`cache` or `teachers`"
        )


def _check_tokens(job: DistillJob) -> None:
    if job.tower != "shared":
        raise JobError(
            f"passage_tower={job.tower}: a student with a vector for each token (pooling=none) "
            "reads queries and passages by one tower; leave it out"
        )
    if job.normalize_embeddings is False:
        raise JobError(
            "normalize_embeddings=false: vectors of tokens (pooling=none) are compared by their "
            "cosines; leave it out"
        )


def _check_teachers(job: DistillJob) -> None:
    for name, teacher in job.all_teachers.items():
        if teacher.of_queries is not None and len(job.text_column) == 1:
            raise JobError(
                f"teacher {name}: query_cache, query_teacher: are of queries, the first of several "
                "text columns, and text_column names one; leave them out, or name the passages', "
                "too"
            )
        if teacher.missing != "refuse":
            raise JobError(
                f"missing=without_teacher: teacher {name}: a text without its embedding teaches "
                "nothing; skip such rows with skip_bad_rows=true"
            )
        if teacher.text_column and job.tower == "cached":
            raise JobError(
                f"teacher {name}: text_column: passage_tower=cached takes the embeddings of "
                "passages for theirs, and this teacher has one vector for a row; use another tower"
            )
        if teacher.text_column and teacher.of_queries is not None:
            raise JobError(
                f"teacher {name}: query_cache, query_teacher: are of queries among the texts that "
                "are embedded, and text_column names others; leave one out"
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
    if job.pooling == "none" and "candidates" not in reads.student:
        raise JobError(
            f"objective {name}: compares one vector of a text, and this student has one of each "
            "token (pooling=none); use contrastive, guided_contrastive, margin_mse, listwise_kl or "
            "cosent"
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
