"""What finished students make of some texts: where they put them, and what they answer.

A sample of training texts, because the cache holds the teacher's features of those. The aligner of
the first distilled run says what the teacher's features mean: all students are compared with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.keys import KeyArray
from ...stages.corpus.labels import MISSING, LabelSpace
from ...stages.distill.evaluation import Calibration, calibration, represent
from ...stages.distill.export import load_saved_objective, load_saved_student
from ...stages.distill.objectives.armada import ArmadaObjective
from ...stages.distill.objectives.base import Objective, Sizes
from ...stages.store.format.index import Rows
from ..device import choose_device
from ..distill import objective_class
from ..distill_job import DistillJob
from ..findings.conditions import Condition
from ..findings.findings import Row, Study
from ..findings.runs import FinishedRun
from ..student_data import LabelledCorpus, StudentData, read_student_data

if TYPE_CHECKING:
    import torch

MAX_STUDENTS = 12
_BATCH = 64

Points = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StudentLook:
    """One student: its points [N, D] for the sample (projected, of the first one), the share of the
    sample (or, of numbers, the correlation) in which it answers as the teacher's features are read,
    and its calibration on the validation set."""

    condition: Condition
    seed: int
    points: Points
    agreement: float | None
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class Looks:
    """The teacher's points [N, H], the students', and the classes or numbers [N] to colour by."""

    reference: FinishedRun
    teacher: Points
    students: tuple[StudentLook, ...]
    colours: npt.NDArray[Any]
    colours_title: str


def look(
    study: Study,
    colour_by: str | None,
    texts: int,
    device: str,
) -> Looks | None:
    """Load one student of each leading condition; None if none was distilled.

    Raises ArmadaError if corpus, cache or students are not where they were."""
    if study.distilled is None:
        return None
    reference = study.distilled.condition.first
    data = read_student_data(reference.job, objective_class(reference.job))
    assert data.feature is not None
    sample = _sample(data.train, texts)
    validation = _sample(data.validation, texts) if data.validation else None
    features = data.feature.gather(_rows(sample))
    objective = _objective(reference, data.space, data.feature.spec.shape, device)
    teacher, answers = _teacher(objective, features)
    students = [
        _student(each, data.space, sample, validation, answers, device)
        for each in _chosen(study, study.distilled)
    ]
    students[0] = replace(students[0], points=_projected(objective, students[0].points))
    title = colour_by or reference.job.label_column or ""
    colours = _colours(reference.job, sample, data, colour_by)
    return Looks(reference, teacher, tuple(students), colours, title)


def _chosen(study: Study, first: Row) -> list[Condition]:
    base = [first.base] if first.base else []
    others = [each for each in study.conditions if each not in (first.condition, *base)]
    return [first.condition, *base, *others][:MAX_STUDENTS]


def _sample(labelled: LabelledCorpus, most: int) -> LabelledCorpus:
    """At most so many examples, drawn with a fixed seed."""
    count = len(labelled.labels)
    if count <= most:
        return labelled
    rows = np.sort(np.random.default_rng(0).choice(count, most, replace=False))
    return labelled.take(rows)


def _rows(sample: LabelledCorpus) -> Any:
    assert sample.cache_rows is not None
    return sample.cache_rows


def _objective(
    run: FinishedRun, space: LabelSpace, shape: tuple[int, ...], device: str
) -> Objective:
    student, _, _ = load_saved_student(run.folder)
    sizes = Sizes(student.dim, space.num_labels, space.regression, shape)
    built = objective_class(run.job)(run.job, sizes)
    return load_saved_objective(run.folder, built).to(choose_device(device))


def _teacher(objective: Objective, features: Points) -> tuple[Points, Points | None]:
    """Points of the teacher, and the answers that are read out of them, if any are."""
    if not isinstance(objective, ArmadaObjective):
        flat = features.reshape(len(features), -1).astype(np.float32)
        return flat, flat if objective.reads_logits else None
    answers = objective.read(_tensor(objective, features))
    return answers.projection.float().cpu().numpy(), answers.output.float().cpu().numpy()


def _projected(objective: Objective, pooled: Points) -> Points:
    """Where the objective compares a student's texts with the teacher's."""
    import torch

    projection = getattr(objective, "projection", None)
    if projection is None:
        return pooled
    with torch.inference_mode():
        projected: Points = projection(_tensor(objective, pooled)).float().cpu().numpy()
    return projected


def _tensor(objective: Objective, values: Points) -> "torch.Tensor":
    import torch

    return torch.from_numpy(values).to(next(objective.parameters()).device)


def _student(
    condition: Condition,
    space: LabelSpace,
    sample: LabelledCorpus,
    validation: LabelledCorpus | None,
    teacher: Points | None,
    device: str,
) -> StudentLook:
    run = condition.runs[0]
    student, tokenizer, card = load_saved_student(run.folder)
    student.to(choose_device(device))
    texts = sample.dataset(tokenizer, card.max_length, None)
    points, outputs = represent(student, texts, _BATCH)
    measured = None
    if validation is not None and space.task == "classification":
        held_out = validation.dataset(tokenizer, card.max_length, None)
        given = validation.labels != MISSING
        answers = represent(student, held_out, _BATCH)[1]
        measured = calibration(answers[given], validation.labels[given])
    agreement = None if teacher is None else _agreement(outputs, teacher, space)
    return StudentLook(condition, run.seed, points, agreement, measured)


def _agreement(outputs: Points, teacher: Points, space: LabelSpace) -> float | None:
    if space.task == "none":
        return None
    if not space.regression:
        return float((outputs.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    numbers = np.stack([outputs[:, 0], teacher[:, 0]])
    return float(np.corrcoef(numbers)[0, 1]) if np.ptp(numbers, axis=1).all() else 0.0


def _places(keys: KeyArray, wanted: KeyArray) -> Rows:
    place = {key.tobytes(): i for i, key in enumerate(keys)}
    return np.array([place[key.tobytes()] for key in wanted], dtype=np.int64)


def _colours(
    job: DistillJob, sample: LabelledCorpus, data: StudentData, colour_by: str | None
) -> npt.NDArray[Any]:
    """The labels of the sample, or what another column of the same corpus says."""
    space = data.space
    if colour_by is not None:
        changes = {"label_column": colour_by, "task": None, "num_labels": None, "metric": None}
        other = job.model_copy(update=changes | {"validation": ()})
        read = read_student_data(other, objective_class(other))
        space = read.space
        sample = read.train.take(_places(read.train.corpus.keys(), sample.corpus.keys()))
    if space.regression:
        return sample.labels
    names: Sequence[str] = space.names or [str(i) for i in range(space.num_labels)]
    named = [names[label] if label != MISSING else "no label" for label in sample.labels]
    return np.array(named)
