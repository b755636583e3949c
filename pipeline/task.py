"""Tasks of students: a task owns labels, head, metrics, and the output folder.

LabelTask      classes, numbers, or a teacher's feature alone: `label_task.py`
LanguageTask   the next token: `language/task.py`; MaskedLanguageTask, masked ones: there, too
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..cache_schemas.errors import JobError, StudentSourceError
from ..stages.adapters import named_base
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.labels import LabelSpace
from ..stages.distill.batches import DistillDataset
from ..stages.distill.model import TrainedModel
from ..stages.distill.objectives.base import Objective, StudentTensor
from ..stages.distill.trainer import DistillTrainer
from .distill_job import DistillJob
from .labelled_corpus import LabelledCorpus
from .student_data import StudentData
from .terms import Term

Metrics = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """Models and data of one seed."""

    model: TrainedModel
    tokenizer: Any
    max_length: int
    train: DistillDataset
    validation: DistillDataset | None
    data: StudentData
    """Without rows that turned out to be of no use once they were tokens."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Inputs of one seed of a job; `warns`: whether it logs warnings that are the same in all seeds
    and processes."""

    job: DistillJob
    terms: Sequence[Term]
    data: StudentData
    seed: int
    warns: bool

    def adapter_base(self) -> dict[str, str | None]:
        """Base model of the student's adapters, if it has any."""
        job = self.job
        if job.lora_rank is None:
            return {}
        return named_base(job.student, job.student_revision, StudentSourceError)


def refuse_without_labels(job: DistillJob, *keys: str) -> None:
    """Raise JobError for keys about labels in a job without any."""
    for key in keys:
        if (value := getattr(job, key)) is not None:
            raise JobError(
                f"job key {key!r}: {value!r} is about labels, and job key 'label_column' is "
                f"missing; name it, or leave {key} out"
            )


MakeObjective = Callable[[Any], Objective]
"""Makes a new objective for a student."""


class Task(ABC):
    """One kind of student."""

    scores: ClassVar[StudentTensor]
    """Student outputs that the task's own loss scores."""
    trainer: ClassVar[type[DistillTrainer]] = DistillTrainer

    @abstractmethod
    def label_space(self, job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
        """The labels of a training corpus. Raises an InputError where they are lacking."""

    @abstractmethod
    def check_labels(
        self,
        job: DistillJob,
        space: LabelSpace,
        train: LabelledCorpus,
        validation: LabelledCorpus | None,
    ) -> None:
        """Raise an InputError for labels that nothing can be learned from, or validated by."""

    @abstractmethod
    def metrics(self, space: LabelSpace, soft: bool) -> Sequence[str]:
        """Metrics that an epoch can be chosen by, the default first; `soft`: whether the labels to
        validate by are probabilities."""

    def learns_features_alone(self, space: LabelSpace) -> bool:
        """Whether features are all there is to learn, and so to validate by."""
        return False

    @abstractmethod
    def build(self, plan: Plan, objective: MakeObjective) -> Built:
        """The student of one seed and its data sets."""

    @abstractmethod
    def save(self, plan: Plan, folder: Path, model: TrainedModel, built: Built) -> None:
        """Write the student's folder."""
