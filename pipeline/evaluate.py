"""`evaluate`: a finished student on a corpus; keys that are left out are as in training."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cache_schemas.errors import JobError
from ..stages.corpus.labels import LabelSpace, count_missing
from ..stages.distill.controls import Control, controlled
from ..stages.distill.evaluation import detailed_metrics, predict, task_metrics
from ..stages.distill.export import StudentCard, load_saved_student, student_folder
from ..stages.distill.language.export import is_language_student, is_masked_student
from ..stages.distill.saved_student import is_embedder
from ..stages.distill.student import Student
from ..stages.distill.teacher_answers import ClassAnswers, NumberAnswers, TeacherAnswers
from ..stages.embeddings.router import is_router
from ..stages.memory import out_of_memory_as
from .answers import missing_keys, open_answers
from .distill_job import CorpusKeys
from .environment import choose_device
from .jobs import make
from .labelled_corpus import LabelledCorpus, read_labelled
from .language.evaluate import evaluate_language
from .language.masked_evaluate import evaluate_masked
from .measured import kind_of_texts
from .objective_keys import CacheKeys
from .retrieval.evaluate import evaluate_beir, evaluate_embeddings, evaluate_pairs
from .retrieval.mteb_tasks import evaluate_mteb
from .retrieval.pictures import evaluate_pictures
from .run_folder import spread
from .signals import telling_what_is_kept
from .student_jobs import EvaluateJob, batch_too_large


@telling_what_is_kept(lambda: "nothing was written; run the same command again")
def run_evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Metrics of a finished student on a corpus; of each seed's, where a run had several.

    Raises JobError."""
    if job.cache is None and (job.teacher or job.feature):
        raise JobError("teacher, feature: need a cache; name it, or leave them out")
    folders = sorted(job.student.glob("seed-*/student"), key=lambda folder: folder.parent.name)
    with out_of_memory_as(lambda: batch_too_large(job.batch_size)):
        if not folders:
            return _evaluate(job, job.student)
        runs = [_evaluate(job, folder) for folder in folders]
    spreads = {"metrics": _spreads([run["metrics"] for run in runs])}
    for detail in ("per_class", "per_output", "by_precision"):
        if detail in runs[0]:
            spreads[detail] = {
                name: _spreads([run[detail][name] for run in runs]) for name in runs[0][detail]
            }
    return runs[0] | spreads


def _spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The spread of each metric over runs."""
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def _of_embeddings(job: EvaluateJob) -> Callable[[EvaluateJob, Path], dict[str, Any]] | None:
    """The evaluation that a job names, if it is one of embeddings alone."""
    if job.picture_column is not None:
        return evaluate_pictures
    if job.corpus:
        return None
    return evaluate_beir if job.mteb is None else evaluate_mteb


def _evaluate(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    of_embeddings = _of_embeddings(job)
    if is_language_student(folder) or is_masked_student(folder):
        if of_embeddings is not None:
            raise JobError(
                f"beir, mteb, picture_column: student {folder} is a language model, without "
                "embeddings"
            )
        of_tokens = evaluate_language if is_language_student(folder) else evaluate_masked
        return of_tokens(job, folder)
    if job.rejected_column is not None:
        raise JobError("rejected_column: is for language models; this student predicts labels")
    if job.max_new_tokens is not None:
        raise JobError("max_new_tokens: is for language models; this student predicts labels")
    if of_embeddings is not None:
        return of_embeddings(job, folder)
    if is_router(student_folder(folder)) and len(job.text_column) == 2:
        return evaluate_pairs(job, folder)
    student, tokenizer, card = load_saved_student(folder)
    embeds = card.space.task == "none" or is_embedder(folder)
    if embeds and len(job.text_column) == 2 and len(card.text_columns) == 1:
        return evaluate_pairs(job, folder)
    if job.precision or job.truncate_dim:
        raise JobError(
            f"precision, truncate_dim: student {folder} has no embeddings of single texts; leave "
            "them out"
        )
    if card.space.task == "none":
        return _evaluate_without_labels(job, card, folder)
    return _evaluate_labels(job, folder, student, tokenizer, card)


def _evaluate_without_labels(job: EvaluateJob, card: StudentCard, folder: Path) -> dict[str, Any]:
    if job.cache is None:
        raise JobError(
            f"student {folder}: was trained without labels; name a --cache to compare its "
            "embeddings with, two text columns and a label_column of their scores, or a --beir "
            "folder to search in"
        )
    return evaluate_embeddings(job, _corpus_keys(job, card), folder)


def _evaluate_labels(
    job: EvaluateJob, folder: Path, student: Student, tokenizer: Any, card: StudentCard
) -> dict[str, Any]:
    keys = _corpus_keys(job, card)
    labelled = read_labelled(keys, job.corpus, card.space)
    dataset = labelled.dataset(labelled.tokens(tokenizer, card.max_length), {})
    missing = count_missing(labelled.labels)
    if missing == len(dataset):
        raise JobError(f"corpus {job.corpus[0]}: no row has a label; nothing to evaluate")
    answers = _answers_of(job, folder, labelled, card.space)
    beside = {}
    if job.cache is not None and answers is None:
        found = evaluate_embeddings(job, keys, folder)["metrics"]
        beside = {f"embedding_{name}": value for name, value in found.items()}
    outputs = predict(student.to(choose_device(job.device)), dataset, job.batch_size)
    if answers is not None:
        beside = answers.figures(outputs, labelled.labels, card.space)
    compared = {} if answers is None else {"compared_examples": len(answers.answered)}
    return {
        "examples": len(dataset) - missing,
        "unlabelled_examples": missing,
        **compared,
        "truncated_examples": dataset.truncated,
        "skipped_rows": list(labelled.corpus.skipped),
        "metrics": task_metrics(outputs, labelled.labels, card.space) | beside,
        **detailed_metrics(outputs, labelled.labels, card.space),
    }


def _answers_of(
    job: EvaluateJob, folder: Path, labelled: LabelledCorpus, space: LabelSpace
) -> TeacherAnswers | None:
    """A teacher's answers to compare the student's outputs with; None without a cache, and for a
    feature that its embeddings are compared with. Raises JobError, and MissingKeysError where none
    of the texts is cached."""
    if job.cache is None:
        return None
    answers = open_answers(make(CacheKeys, job.cache_keys))
    usual = "score" if space.regression else "logits"
    names = answers.cache.features
    feature = job.feature or (usual if usual in names else names[0])
    cache = answers.of(feature, [labelled.corpus]).cache
    kind = kind_of_texts(cache[feature].spec, [], space)
    if kind not in ("classes", "numbers") or (job.feature is None and is_embedder(folder)):
        return None
    rows = cache.find(labelled.corpus.keys(), feature)
    if (rows < 0).all():
        raise missing_keys(cache, labelled.corpus, np.flatnonzero(rows < 0), [feature])
    gather = controlled(cache[feature], rows, Control("none"), 0)
    return ClassAnswers(gather) if kind == "classes" else NumberAnswers(gather)


def _corpus_keys(job: EvaluateJob, card: StudentCard) -> CorpusKeys:
    """Columns of texts and labels; raises JobError if neither job nor student names them."""
    columns = job.text_column or card.text_columns
    if len(columns) != len(card.text_columns):
        raise JobError(
            f"text_column {list(columns)}: the student was trained on {len(card.text_columns)} "
            f"segments ({', '.join(card.text_columns)})"
        )
    keys = {
        "train": job.corpus,
        "text_column": columns,
        "label_column": job.label_column or card.label_column,
        "label_separator": job.label_separator or card.label_separator,
        "limit": job.limit,
        "skip_bad_rows": job.skip_bad_rows,
        "encoding": job.encoding,
        "delimiter": job.delimiter,
    }
    return make(CorpusKeys, keys)
