"""Teachers' cached answers for validation texts: which of a job's sources a student is compared
with there, and why it is not compared with others.

Comparing costs no training and no second look at a text: a validation text without an answer in the
cache is left out of the measures, and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

from ..cache_schemas.codings import SamplesCoding
from ..cache_schemas.errors import JobError
from ..cache_schemas.features import GENERATED_IDS, FeatureSpec
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.labels import LabelSpace
from ..stages.distill.controls import Control, controlled
from ..stages.distill.language import token_measures
from ..stages.distill.measures import TEACHER_FACTS
from ..stages.distill.objectives.base import Objective
from ..stages.distill.teacher_answers import (
    AllAnswers,
    ClassAnswers,
    FeatureAnswers,
    NumberAnswers,
    TeacherAnswers,
    prefixes,
)
from ..stages.store.format.rows import Rows
from .answers import missing_keys
from .distill_job import DistillJob
from .sources import Source
from .terms import Term

Kind = Literal["classes", "numbers", "feature", "tokens"]

_NEEDS = {
    "agreement": "a teacher's logits of the student's classes (a classifier's `logits`), or its "
    "`top_k` or `dense` predictions of tokens",
    "teacher_kl": "a teacher's logits of the student's classes (a classifier's `logits`), or its "
    "`top_k` or `dense` predictions of tokens",
    "teacher_rmse": "a teacher's numbers for a task of regression",
    "teacher_pearson": "a teacher's numbers for a task of regression",
    "teacher_cosine": "a feature that objective feature learns",
    "teacher_mse": "a feature that objective feature learns",
    "teacher_cka": "a feature of whole texts",
}
"""What a measure is made of."""


@dataclass(frozen=True, slots=True)
class MeasuredSource:
    """A source whose answers for validation texts are compared with the student's; `rows` are the
    cache rows of these texts, -1 where there is none; `met`: whether the student is to meet the
    feature itself."""

    source: Source
    rows: Rows
    kind: Kind
    met: bool = False

    @property
    def answered(self) -> int:
        """Number of validation texts with an answer."""
        return int((self.rows >= 0).sum())

    @property
    def names(self) -> tuple[str, ...]:
        """The measures."""
        of_kind: dict[Kind, tuple[str, ...]] = {
            "classes": ClassAnswers.names,
            "numbers": NumberAnswers.names,
            "feature": FeatureAnswers.names if self.met else FeatureAnswers.names[:1],
            "tokens": token_measures.NAMES,
        }
        return of_kind[self.kind]

    def answers(self, name: str, objective: Objective) -> TeacherAnswers:
        """The answers themselves, of whole texts; `name` is that of the source."""
        gather = controlled(self.source.feature, self.rows, Control("none"), 0)
        if self.kind == "classes":
            return ClassAnswers(gather)
        if self.kind == "numbers":
            return NumberAnswers(gather)
        parts = [part for part in objective.parts if name in part.sources and _meets(type(part))]
        return FeatureAnswers(gather, parts[0].embedding if parts else None)


@dataclass(frozen=True, slots=True)
class Measured:
    """All sources that are compared, by name, and reasons why others are not."""

    sources: Mapping[str, MeasuredSource] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all measures, with that of the source where there are several."""
        first = prefixes(list(self.sources))
        own = [f"{first[name]}{each}" for name, s in self.sources.items() for each in s.names]
        return (*own, *(token_measures.STUDENT_NAMES if self.of_tokens else ()))

    @property
    def facts(self) -> tuple[str, ...]:
        """Names of the teachers' own figures, of those that predict one class of several."""
        first = prefixes(list(self.sources))
        predicting = [name for name, s in self.sources.items() if s.kind in ("classes", "tokens")]
        return tuple(f"{first[name]}{fact}" for name in predicting for fact in TEACHER_FACTS)

    @property
    def of_tokens(self) -> dict[str, MeasuredSource]:
        """The sources with predictions of tokens."""
        return {name: each for name, each in self.sources.items() if each.kind == "tokens"}

    @property
    def examples(self) -> dict[str, int]:
        """Number of validation texts that each source has an answer for."""
        return {name: each.answered for name, each in self.sources.items()}

    def without(self, name: str, reason: str) -> "Measured":
        """The same without a source."""
        rest = {other: each for other, each in self.sources.items() if other != name}
        return Measured(rest, {**self.reasons, name: reason})

    def answers(self, objective: Objective, space: LabelSpace) -> AllAnswers | None:
        """The answers of all sources of whole texts, for a student with this objective."""
        first = prefixes(list(self.sources))
        found = {first[name]: each.answers(name, objective) for name, each in self.sources.items()}
        return AllAnswers(found, space) if found else None

    def lines(self) -> Iterator[str]:
        """A line about each source: how many texts are compared, or why none."""
        for name, each in self.sources.items():
            yield (
                f"teacher {name}: compared on {each.answered:,} of {len(each.rows):,} validation "
                f"texts, which are cached: {', '.join(each.names)}"
            )
        for name, reason in self.reasons.items():
            yield f"teacher {name}: not compared on validation texts: {reason}"

    def provenance(self) -> dict[str, Any]:
        """What was compared with, and what was not and why, for the record of a run."""
        sources = {
            name: {
                "teacher_fingerprint": each.source.cache.teacher.fingerprint,
                "feature": each.source.spec.name,
                "examples": each.answered,
                "of": len(each.rows),
            }
            for name, each in self.sources.items()
        }
        known = {"measured": sources, "not_measured": dict(self.reasons)}
        return {key: value for key, value in known.items() if value}

    def refuse(self, metric: str) -> JobError:
        """The error for a measure that is not there."""
        wanted = metric.rpartition(".")[2]
        found = f"needs {_NEEDS[wanted]}, for validation texts"
        if self.names:
            found += f"; this job has {', '.join(self.names)}"
        else:
            reasons = (f"teacher {name}: {reason}" for name, reason in self.reasons.items())
            found += f"; {next(reasons, 'no teacher is compared with (cache, measure_teacher)')}"
        return JobError(f"job key 'metric': {metric!r} {found}")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Validation texts as sources read them, by their columns; and why some cannot be read."""

    texts: Mapping[tuple[int, ...], Corpus]
    reasons: Mapping[tuple[int, ...], str]


def compared(
    job: DistillJob,
    terms: Sequence[Term],
    sources: Mapping[str, Source],
    held_out: HeldOut,
    space: LabelSpace,
) -> Measured:
    """The sources that a student is compared with. Raises JobError or MissingKeysError where the
    job requires what is not there."""
    found: dict[str, MeasuredSource] = {}
    reasons: dict[str, str] = {}
    for name, source in sources.items():
        each = _compared(job, terms, name, source, held_out, space)
        if isinstance(each, MeasuredSource):
            found[name] = each
        elif job.measure_teacher == "require":
            raise JobError(f"measure_teacher=require: teacher {name}: {each.text}")
        else:
            reasons[name] = each.text
    return Measured(found, reasons)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a source is not compared with."""

    text: str


def _compared(
    job: DistillJob,
    terms: Sequence[Term],
    name: str,
    source: Source,
    held_out: HeldOut,
    space: LabelSpace,
) -> MeasuredSource | Reason:
    reading = [term for term in terms for each in term.readings if each.source == name]
    kind = _kind_of_tokens(source.spec, reading)
    if kind is None and job.of_tokens:
        return Reason(
            f"{source.spec.name} is of whole texts, and an evaluation of tokens pools none"
        )
    if kind is None:
        kind = kind_of_texts(source.spec, reading, space)
    if isinstance(kind, Reason):
        return kind
    if source.columns not in held_out.texts:
        return Reason(held_out.reasons[source.columns])
    corpus = held_out.texts[source.columns]
    rows = source.find(corpus.keys())
    lacking = np.flatnonzero(rows < 0)
    if len(lacking) and job.measure_teacher == "require":
        raise missing_keys(source.cache, corpus, lacking, [source.spec.name])
    if len(lacking) == len(rows):
        fingerprint = source.cache.teacher.fingerprint[:12]
        return Reason(f"none of {len(rows)} validation texts is in the cache of {fingerprint}")
    met = job.distilled and any(_meets(term.objective) for term in reading)
    return MeasuredSource(source, rows, kind, met)


def _kind_of_tokens(spec: FeatureSpec, reading: Sequence[Term]) -> Kind | Reason | None:
    """None for a feature of whole texts."""
    if spec.axis is None:
        return None
    if spec.axis != "predictions" or spec.name == GENERATED_IDS:
        return Reason(f"{spec.name} predicts no token of a text (`evaluate` compares responses)")
    if any(term.keys.options.get("cross_tokenizer") for term in reading):
        return Reason("its tokens are not the student's (cross_tokenizer)")
    if isinstance(spec.coding, SamplesCoding):
        return Reason(f"{spec.name} tells no distribution; cache top_k or dense")
    return "tokens"


def kind_of_texts(spec: FeatureSpec, reading: Sequence[Term], space: LabelSpace) -> Kind | Reason:
    """How a feature of whole texts is compared with a student of some labels, given the objectives
    that read it."""
    width = prod(spec.shape)
    of_classes = spec.name == "logits" or any(term.objective.reads.classes for term in reading)
    if space.task in ("classification", "multilabel") and of_classes and width == space.num_labels:
        if space.names and spec.labels and space.names != spec.labels:
            return Reason(f"its classes are {', '.join(spec.labels)}, not the student's in order")
        return "classes"
    if space.regression and width == space.num_labels:
        return "numbers"
    if np.dtype(spec.dtype).kind != "f":
        return Reason(f"{spec.name} holds whole numbers ({spec.dtype})")
    return "feature"


def _meets(objective: type[Objective]) -> bool:
    """Whether an objective has the student meet a feature itself."""
    return objective.embedding is not Objective.embedding
