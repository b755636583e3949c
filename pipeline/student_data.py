"""Corpora and cache of a distill job become tokens, labels and features, all checked first."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..cache_schemas.errors import CorpusError, JobError, MissingFeatureError
from ..cache_schemas.features import FeatureSpec
from ..cache_schemas.keys import example_key
from ..stages.corpus.corpus import Corpus, read_corpus
from ..stages.corpus.labels import (
    NO_LABELS,
    LabelSpace,
    LabelValues,
    count_missing,
    label_space,
    label_values,
    require_variety,
)
from ..stages.distill.batches import DistillDataset
from ..stages.distill.controls import Control, Gather, controlled
from ..stages.distill.evaluation import metric_names
from ..stages.distill.objectives.base import Objective
from ..stages.distill.tokens import encode
from ..stages.store.format.index import Rows
from ..stages.store.reading.feature_array import FeatureArray
from ..stages.store.reading.reader import Cache
from ..stages.store.transfer.mirror import ToCome
from ..stages.tokenizing.unknown import SAMPLE, mostly_unknown
from .answers import Answers, open_answers, rows_by_first_use
from .distill_job import CorpusKeys, DistillJob
from .logs import LOGGER
from .missing import missing_keys


@dataclass(frozen=True, slots=True)
class LabelledCorpus:
    """Examples with their labels; `cache_rows` are where their features lie, if any are read."""

    corpus: Corpus
    labels: LabelValues
    cache_rows: Rows | None = None

    def joined(self, cache: Cache, feature: str, skip_missing: bool) -> "LabelledCorpus":
        """The same with the cache row of every example; those that have none, or not with the
        feature, are left out and listed, or raise MissingKeysError."""
        rows = cache.find(self.corpus.keys(), feature)
        missing = np.flatnonzero(rows < 0)
        if len(missing) and (len(missing) == len(rows) or not skip_missing):
            raise missing_keys(cache, self.corpus, missing, [feature])
        corpus = self.corpus.without(missing, "not in the cache") if len(missing) else self.corpus
        return LabelledCorpus(corpus, self.labels[rows >= 0], rows[rows >= 0])

    def take(self, rows: Rows) -> "LabelledCorpus":
        """Only the given examples, in the order given."""
        cache_rows = None if self.cache_rows is None else self.cache_rows[rows]
        return LabelledCorpus(self.corpus.take(rows), self.labels[rows], cache_rows)

    def texts(self) -> Iterator[str]:
        """All segments, for a vocabulary."""
        return self.corpus.texts()

    def warn_of_unknown(self, tokenizer: Any) -> None:
        """Say so where most of what is read is unknown to a student's tokenizer."""
        sample = np.unique(np.linspace(0, len(self.corpus) - 1, SAMPLE).astype(np.int64))
        unknown = mostly_unknown(tokenizer, list(self.corpus.take(sample).texts()))
        if unknown is not None:
            LOGGER.warning(unknown.of("student"))

    def dataset(self, tokenizer: Any, max_length: int, gather: Gather | None) -> DistillDataset:
        """Token ids and labels of all examples, with `gather` for their features."""
        examples = [segments for batch in self.corpus.batches() for segments in batch]
        tokens = encode(tokenizer, examples, max_length)
        return DistillDataset(tokens, self.labels, gather, self.names)

    def digest(self) -> str:
        """Tells these examples with these labels, in this order, from any others."""
        digest = hashlib.blake2b(self.corpus.keys().tobytes(), digest_size=16)
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def names(self, rows: Rows) -> list[str]:
        """Where examples stand, and their keys."""
        segments = self.corpus.examples(rows)
        keys = (example_key(each).hex() for each in segments)
        places = map(self.corpus.where, rows.tolist())
        return [f"{place} (key {key})" for place, key in zip(places, keys, strict=True)]


@dataclass(frozen=True)
class StudentData:
    """What a student learns from: training and validation examples, label space, the feature, and
    where that comes from."""

    train: LabelledCorpus
    validation: LabelledCorpus | None
    space: LabelSpace
    metric: str
    cache: Cache | None
    feature: FeatureArray | None
    answers: Answers | None = None

    @property
    def from_afar(self) -> bool:
        """Whether shards come from a URL while the run goes on."""
        return self.answers is not None and self.answers.mirror is not None

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Those of the examples, worked out once for all seeds."""
        return {
            "train_digest": self.train.digest(),
            "validation_digest": self.validation.digest() if self.validation else None,
        }

    def sources(self) -> dict[str, Any]:
        """Where the teacher's answers come from; for the record of a run."""
        cache = self.cache
        return {
            "cache_digest": self.answers and self.answers.digest,
            "teacher_fingerprint": cache and cache.teacher.fingerprint,
            "teacher": cache and cache.teacher.spec.model_dump(mode="json"),
            "feature": self.feature.spec.name if self.feature is not None else None,
        }

    def gather(self, control: Control, seed: int) -> Gather | None:
        """How to read the training features under a control; None if none are read."""
        if self.feature is None or self.train.cache_rows is None:
            return None
        return controlled(self.feature, self.train.cache_rows, control, seed)

    def validation_gather(self) -> Gather | None:
        """How to read the validation features, as cached; None unless features are all there is."""
        if self.feature is None or self.validation is None or self.validation.cache_rows is None:
            return None
        return controlled(self.feature, self.validation.cache_rows, Control("none"), 0)

    def fetch_ahead(self, job: DistillJob, aligner_first: bool) -> ToCome | None:
        """Of a cache at a URL, begin to bring what the run needs; None of a local one.

        Raises CacheError if that is more than the mirror may keep."""
        if self.answers is None or self.feature is None or self.train.cache_rows is None:
            return None
        rows = [rows_by_first_use(job, self.feature, self.train.cache_rows, aligner_first)]
        if self.validation is not None and self.validation.cache_rows is not None:
            rows.append(self.validation.cache_rows)
        return self.answers.fetch_ahead(self.feature.spec.name, np.concatenate(rows))


def read_student_data(job: DistillJob, objective: type[Objective]) -> StudentData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    corpus = read_corpus_of(job, job.train)
    corpus.require_format(None, "a student of labels and features")
    space = _label_space(job, corpus, objective)
    train = LabelledCorpus(corpus, label_values(corpus, space))
    validation = read_labelled(job, job.validation, space) if job.validation else None
    _require_labels(space, train, "learn")
    if job.num_labels is None:
        require_variety(corpus, space, train.labels)
    _require_labels(space, validation, "validate by")
    metric = _choose_metric(job, space)
    if not objective.needs_feature or job.cache is None:
        return StudentData(train, validation, space, metric, None, None)
    answers = open_answers(job)
    name = choose_feature(job, answers.cache, objective.default_feature)
    if objective.reads_logits and name not in answers.cache:
        raise MissingFeatureError(
            f"feature {name!r}: teacher {answers.cache.teacher.fingerprint[:12]} has "
            f"{', '.join(answers.cache.features)}; {job.objective} learns from the logits of "
            "a classifier (`armada precompute --teacher classifier:SOURCE`)"
        )
    if objective.reads_logits:
        _check_class_names(space, answers.cache.feature_spec(name))
    corpora = [train, *([validation] if validation is not None and space.task == "none" else [])]
    answers = answers.of(name, [labelled.corpus for labelled in corpora])
    cache = answers.cache
    train, *others = [each.joined(cache, name, job.skip_bad_rows) for each in corpora]
    validation = others[0] if others else validation
    return StudentData(train, validation, space, metric, cache, cache[name], answers)


def _label_space(job: DistillJob, corpus: Corpus, objective: type[Objective]) -> LabelSpace:
    if job.label_column is not None:
        assert job.task != "language"
        return label_space(corpus, job.task, job.num_labels)
    if objective.needs_labels:
        raise JobError("job key 'label_column' is missing; only objective=feature needs none")
    return NO_LABELS


def _require_labels(space: LabelSpace, labelled: LabelledCorpus | None, purpose: str) -> None:
    if labelled is None or space.task == "none":
        return
    if count_missing(labelled.labels) == len(labelled.labels):
        source = labelled.corpus.sources[0]
        raise CorpusError(f"corpus {source}: no row has a label; nothing to {purpose}")


def read_labelled(keys: CorpusKeys, sources: tuple[str, ...], space: LabelSpace) -> LabelledCorpus:
    """Files of examples whose labels are of a known space."""
    corpus = read_corpus_of(keys, sources)
    return LabelledCorpus(corpus, label_values(corpus, space))


def read_corpus_of(keys: CorpusKeys, sources: tuple[str, ...]) -> Corpus:
    """The examples of some of a job's files."""
    return read_corpus(
        sources,
        keys.text_column,
        label_column=keys.label_column,
        id_column=keys.id_column,
        skip_bad_rows=keys.skip_bad_rows,
        limit=keys.limit,
        form=keys.file_format,
    )


def _choose_metric(job: DistillJob, space: LabelSpace) -> str:
    names = metric_names(space)
    if job.metric is not None and job.metric not in names:
        raise JobError(f"job key 'metric': {job.metric!r} is not one of {', '.join(names)}")
    return job.metric or names[0]


def choose_feature(job: DistillJob, cache: Cache, default: str | None = None) -> str:
    """The feature to learn from. Raises MissingFeatureError where the job names none and there are
    several."""
    name = job.feature or default
    if name is None and len(cache.features) > 1:
        raise MissingFeatureError(
            f"job key 'feature' is missing; the teacher has {', '.join(cache.features)}"
        )
    return name or cache.features[0]


def _check_class_names(space: LabelSpace, feature: FeatureSpec) -> None:
    """Logits teach by position: the same names in another order would teach the wrong classes."""
    if space.names and feature.labels and space.names != feature.labels:
        raise JobError(
            f"feature {feature.name!r}: the teacher's classes are {', '.join(feature.labels)}, the "
            f"student's {', '.join(space.names)}; give labels as the teacher's class numbers"
        )
