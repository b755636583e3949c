"""Projections and predictions of finished students for some texts.

A sample of training texts, because the cache holds the teacher's features of those. All students
are compared with the aligner of the first distilled run. Those that embed: `embedding_looks.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import ArmadaError, CorpusError, JobError
from ...cache_schemas.keys import KeyArray
from ...stages.corpus.label_kinds import MISSING, LabelSpace, is_missing, one_a_row
from ...stages.distill.calibration import Calibration
from ...stages.distill.evaluation import calibration, represent
from ...stages.distill.export import StudentCard, load_saved_objective, load_saved_student
from ...stages.distill.label_metrics import correlations
from ...stages.distill.measures import TEACHER_FACTS
from ...stages.distill.objectives.base import AlignedObjective, Objective
from ...stages.distill.student import Student
from ...stages.store.format.rows import Rows
from ..distill_job import DistillJob
from ..environment import choose_device
from ..findings.conditions import Condition
from ..findings.findings import Row, Study
from ..findings.runs import FinishedRun
from ..labelled_corpus import LabelledCorpus
from ..run_data import read_data
from ..student_data import StudentData
from ..terms import build_objective, sizes_of, terms_of

if TYPE_CHECKING:
    import torch

MAX_STUDENTS = 12
_BATCH = 64

Points = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StudentLook:
    """One student: its points [N, D] for the sample (projected, of the first one), the agreement
    with the teacher (`Agreement`), and its calibration on the validation set."""

    condition: Condition
    seed: int
    points: Points
    agreement: float | None
    calibration: Calibration | None


Agreement = Literal["share", "correlation", "neighbours"]
"""The share of the sample with the aligner's class, the correlation with its numbers, or the share
of a text's ten nearest neighbours that the teacher has too."""


@dataclass(frozen=True, slots=True)
class Looks:
    """The texts [N] of the sample, the teacher's points [N, H], if it has a feature of texts, the
    students', and the classes or numbers [N] to colour by."""

    reference: FinishedRun
    texts: tuple[tuple[str, ...], ...]
    teacher: Points | None
    students: tuple[StudentLook, ...]
    colours: npt.NDArray[Any]
    colours_title: str
    agreement: Agreement
    missing: tuple[str, ...]
    """Messages about students that cannot be loaded."""
    teacher_value: float | None = None
    """The teacher's own metric on the validation set, where it is known."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts for plots of students, with their labels and features."""

    sample: LabelledCorpus
    validation: LabelledCorpus | None
    space: LabelSpace
    device: "torch.device"


@dataclass(frozen=True, slots=True)
class _Answers:
    """Pooled texts [N, D] and outputs [N, K] of a student for the sample, and its calibration."""

    pooled: Points
    outputs: Points
    calibration: Calibration | None


class UnknownColumn(JobError):
    """The column to colour by is not there."""


def look(
    study: Study, colour_by: str | None, texts: int, device: str, cache: Path | None
) -> Looks | None:
    """Load one student of each kind, up to MAX_STUDENTS; None if none was distilled.

    Raises UnknownColumn, or another ArmadaError if corpus, cache or the distilled student are not
    where they were."""
    if study.distilled is None:
        return None
    reference = study.distilled.condition.first
    job = reference.readable_job(cache)
    if job.of_tokens:
        raise JobError("plots need classification students")
    data = read_data(job, terms_of(job))
    seen_with = _texts(data, texts, device)
    colours = _colours(job, seen_with.sample, data, colour_by)
    first, *others = chosen_students(study, study.distilled)
    student = load_saved_student(first.first.folder)
    own = _answers(student, seen_with)
    answered, missing = _all_answers(others, seen_with)
    objective = _objective(reference, data, student[0], seen_with.device)
    teacher, read = _teacher(objective, _features(data, seen_with.sample, objective))
    projected = replace(own, pooled=_projected(objective, own.pooled))
    return Looks(
        reference=reference,
        texts=tuple(segments for batch in seen_with.sample.corpus.batches() for segments in batch),
        teacher=teacher,
        students=tuple(
            _student(condition, answers, read, data.space)
            for condition, answers in [(first, projected), *answered]
        ),
        colours=colours,
        colours_title=colour_by or ", ".join(job.label_columns),
        agreement="correlation" if data.space.regression else "share",
        missing=missing,
        teacher_value=_teacher_value(study),
    )


def _teacher_value(study: Study) -> float | None:
    """What runs say of the teacher, if they say anything and all the same, as one teacher has."""
    name = f"teacher_{study.metric}"
    if name not in TEACHER_FACTS:
        return None
    own = [each.figures_by_seed(name).values() for each in study.conditions]
    values = {round(value, 9) for each in own for value in each}
    return values.pop() if len(values) == 1 else None


def _all_answers(
    conditions: Sequence[Condition], texts: _Texts
) -> tuple[list[tuple[Condition, _Answers]], tuple[str, ...]]:
    answered, missing = [], []
    for condition in conditions:
        try:
            student = load_saved_student(condition.first.folder)
            answered.append((condition, _answers(student, texts)))
        except (ArmadaError, OSError) as error:
            missing.append(f"{condition.name}: {error}")
    return answered, tuple(missing)


def _student(
    condition: Condition, answers: _Answers, teacher: Points | None, space: LabelSpace
) -> StudentLook:
    agreement = None if teacher is None else _agreement(answers.outputs, teacher, space)
    seed = condition.first.seed
    return StudentLook(condition, seed, answers.pooled, agreement, answers.calibration)


def _texts(data: StudentData, most: int, device: str) -> _Texts:
    validation = None if data.validation is None else _sample(data.validation, most)
    rows = next(iter(data.train.cache_rows.values()))
    train = data.train if (rows >= 0).all() else data.train.take(np.flatnonzero(rows >= 0))
    return _Texts(_sample(train, most), validation, data.space, choose_device(device))


def chosen_students(study: Study, first: Row) -> list[Condition]:
    """The conditions whose students are plotted: the first, the one it is measured by, others."""
    base = [first.base] if first.base else []
    others = [each for each in study.conditions if each not in (first.condition, *base)]
    return [first.condition, *base, *others][:MAX_STUDENTS]


def _sample(labelled: LabelledCorpus, most: int) -> LabelledCorpus:
    """At most so many examples, sampled with a fixed seed."""
    count = len(labelled.labels)
    if count <= most:
        return labelled
    rows = np.sort(np.random.default_rng(0).choice(count, most, replace=False))
    return labelled.take(rows)


def _answers(loaded: tuple[Student, Any, StudentCard], texts: _Texts) -> _Answers:
    student, tokenizer, card = loaded
    student.to(texts.device)
    dataset = texts.sample.dataset(texts.sample.tokens(tokenizer, card.max_length), {})
    pooled, outputs = represent(student, dataset, _BATCH)
    if texts.validation is None or texts.space.task != "classification":
        return _Answers(pooled, outputs, None)
    labels = texts.validation.labels
    held_out = texts.validation.dataset(texts.validation.tokens(tokenizer, card.max_length), {})
    predicted = represent(student, held_out, _BATCH)[1]
    given = ~is_missing(labels)
    if not given.any():
        return _Answers(pooled, outputs, None)
    classes = one_a_row(labels, texts.space)[given]
    return _Answers(pooled, outputs, calibration(predicted[given], classes))


def _features(data: StudentData, sample: LabelledCorpus, objective: Objective) -> Points:
    """Features that the first objective reads."""
    source = objective.sources[0]
    features: Points = data.sources[source].feature.gather(sample.cache_rows[source])
    return features


def _objective(
    run: FinishedRun, data: StudentData, student: Student, device: "torch.device"
) -> Objective:
    """The run's trained objective, for its student; of several, the first that reads a teacher,
    since plots are of one teacher's space."""
    terms = terms_of(run.job)
    sizes = sizes_of(student, data.space, run.job.dropout, terms)
    built = build_objective(terms, sizes, data.shapes)
    whole = load_saved_objective(run.folder, built).to(device)
    return next(part for part in whole.parts if part.sources)


def _teacher(objective: Objective, features: Points) -> tuple[Points, Points | None]:
    """Points of the teacher, and the aligner's predictions, if there are any."""
    if not isinstance(objective, AlignedObjective):
        flat = features.reshape(len(features), -1).astype(np.float32)
        return flat, flat if objective.reads.classes else None
    answers = objective.read(_tensor(objective, features))
    return answers.projection.float().cpu().numpy(), answers.output.float().cpu().numpy()


def _projected(objective: Objective, pooled: Points) -> Points:
    """Projections in which the objective compares student and teacher."""
    import torch

    projection = getattr(objective, "projection", None)
    if projection is None or "pooled" not in objective.reads.student:
        return pooled
    with torch.inference_mode():
        projected: Points = projection(_tensor(objective, pooled)).float().cpu().numpy()
    return projected


def _tensor(objective: Objective, values: Points) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values).to(next(objective.parameters()).device)


def _agreement(outputs: Points, teacher: Points, space: LabelSpace) -> float | None:
    if space.task == "none":
        return None
    if space.multilabel:
        return float(((outputs > 0) == (teacher > 0)).mean())
    if not space.regression:
        return float((outputs.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    pairs = zip(outputs.T, teacher.T, strict=True)
    return float(np.mean([correlations(*pair)["pearson"] for pair in pairs]))


def _colours(
    job: DistillJob, sample: LabelledCorpus, data: StudentData, colour_by: str | None
) -> npt.NDArray[Any]:
    """The labels of the sample, or the values of another column of the corpus."""
    space = data.space
    if colour_by is not None:
        changes = dict.fromkeys(("task", "num_labels", "metric", "label_separator"))
        changes["label_column"] = colour_by
        other = job.model_copy(update=changes | {"validation": ()})
        try:
            read = read_data(other, terms_of(other))
        except CorpusError as error:
            raise UnknownColumn(f"colour_by {colour_by!r}: {error}") from error
        space = read.space
        sample = read.train.take(_indices(read.train.corpus.keys(), sample.corpus.keys()))
    labels = one_a_row(sample.labels, space)
    if space.regression or space.multilabel:
        return labels
    names = space.shown_names
    return np.array([names[label] if label != MISSING else "no label" for label in labels])


def _indices(keys: KeyArray, wanted: KeyArray) -> Rows:
    index = {key.tobytes(): i for i, key in enumerate(keys)}
    return np.array([index[key.tobytes()] for key in wanted], dtype=np.int64)
