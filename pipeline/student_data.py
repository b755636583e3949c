"""Corpora and caches of a distill job become tokens, labels and features, all checked first."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import CorpusError, JobError
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
from ..stages.distill.objectives.base import Shape, Sizes, require_fit
from ..stages.distill.tokens import encode
from ..stages.store.format.rows import Rows
from ..stages.store.reading.reader import Cache
from ..stages.store.transfer.mirror import ToCome
from ..stages.tokenizing.unknown import SAMPLE, mostly_unknown
from .distill_job import CorpusKeys, DistillJob
from .messages import LOGGER
from .missing import missing_keys
from .sources import (
    Columns,
    Source,
    missing_of_sources,
    open_sources,
    rows_by_first_use,
    sum_to_come,
)
from .terms import Term, readings_of


@dataclass(frozen=True, slots=True)
class LabelledCorpus:
    """Examples with their labels; `cache_rows` are where their features lie, by the name of the
    source, if any are read."""

    corpus: Corpus
    labels: LabelValues
    cache_rows: Mapping[str, Rows] = field(default_factory=dict)

    def joined(self, sources: "Mapping[str, Source]", skip_missing: bool) -> "LabelledCorpus":
        """The same with the cache rows of every example; those that some source has no answer for
        are left out and listed, or raise MissingKeysError."""
        read = {source.columns for source in sources.values()}
        keys = {columns: self.corpus.of_columns(columns).keys() for columns in read}
        rows = {name: source.find(keys[source.columns]) for name, source in sources.items()}
        known = [found >= 0 for found in rows.values()]
        kept = np.logical_and.reduce(known)
        if not kept.all() and not (skip_missing and kept.any()):
            raise missing_of_sources(sources, self.corpus, rows)
        return self.take_known(rows, kept)

    def found_in(
        self, cache: Cache, feature: str, skip_missing: bool
    ) -> "tuple[LabelledCorpus, Rows]":
        """The same without examples that a cache has no answer for, and the cache rows of the
        others; raises MissingKeysError as `joined` does."""
        rows = cache.find(self.corpus.keys(), feature)
        kept = rows >= 0
        if not kept.all() and not (skip_missing and kept.any()):
            raise missing_keys(cache, self.corpus, np.flatnonzero(~kept), [feature])
        return self.take_known({}, kept), rows[kept]

    def take_known(self, rows: Mapping[str, Rows], kept: npt.NDArray[np.bool_]) -> "LabelledCorpus":
        """The examples that are `kept`, with the cache rows of all; others are listed."""
        missing = np.flatnonzero(~kept)
        corpus = self.corpus.without(missing, "not in the cache") if len(missing) else self.corpus
        left = {name: found[kept] for name, found in rows.items()}
        return LabelledCorpus(corpus, self.labels[kept], left)

    def take(self, rows: Rows) -> "LabelledCorpus":
        """Only the given examples, in the order given."""
        taken = {name: found[rows] for name, found in self.cache_rows.items()}
        return LabelledCorpus(self.corpus.take(rows), self.labels[rows], taken)

    def of_columns(self, columns: Sequence[int]) -> "LabelledCorpus":
        """The same examples with some of their text columns."""
        return replace(self, corpus=self.corpus.of_columns(columns))

    def texts(self) -> Iterator[str]:
        """All segments, for a vocabulary."""
        return self.corpus.texts()

    def warn_of_unknown(self, tokenizer: Any) -> None:
        """Say so where most of what is read is unknown to a student's tokenizer."""
        sample = np.unique(np.linspace(0, len(self.corpus) - 1, SAMPLE).astype(np.int64))
        unknown = mostly_unknown(tokenizer, list(self.corpus.take(sample).texts()))
        if unknown is not None:
            LOGGER.warning(unknown.of("student"))

    def dataset(
        self, tokenizer: Any, max_length: int, gathers: Mapping[str, Gather]
    ) -> DistillDataset:
        """Token ids and labels of all examples, with `gathers` for their features."""
        examples = [segments for batch in self.corpus.batches() for segments in batch]
        tokens = encode(tokenizer, examples, max_length)
        return DistillDataset(tokens, self.labels, gathers, self.names)

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
    """What a student learns from: training and validation examples, label space, and the sources
    of teachers' features by name."""

    train: LabelledCorpus
    validation: LabelledCorpus | None
    space: LabelSpace
    metric: str
    sources: Mapping[str, Source] = field(default_factory=dict)
    read_digests: Mapping[str, str] = field(default_factory=dict)
    """Of the training texts that sources read, where these are not the student's."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the features of all sources."""
        return {name: source.feature.spec.shape for name, source in self.sources.items()}

    @property
    def from_afar(self) -> list[str]:
        """Sources whose shards come from a URL while the run goes on."""
        return [name for name, source in self.sources.items() if source.answers.mirror is not None]

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Those of the examples, worked out once for all seeds."""
        return {
            "train_digest": self.train.digest(),
            "validation_digest": self.validation.digest() if self.validation else None,
        }

    def provenance(self) -> dict[str, Any]:
        """Where the teachers' answers come from; for the record of a run."""
        told = {
            name: source.provenance()
            | ({"read_digest": self.read_digests[name]} if name in self.read_digests else {})
            for name, source in self.sources.items()
        }
        if len(told) > 1:
            return {"teachers": told}
        nothing = dict.fromkeys(("cache_digest", "teacher_fingerprint", "teacher", "feature"))
        return next(iter(told.values()), nothing)

    def gathers(self, seed: int) -> dict[str, Gather]:
        """How to read the training features, each source under its control."""
        return {
            name: controlled(source.feature, self.train.cache_rows[name], source.control, seed, of)
            for (name, source), of in zip(self.sources.items(), self._own_draws(), strict=True)
        }

    def validation_gathers(self) -> dict[str, Gather]:
        """How to read the validation features, as cached; none unless features are all there is."""
        if self.validation is None:
            return {}
        return {
            name: controlled(self.sources[name].feature, rows, Control("none"), 0)
            for name, rows in self.validation.cache_rows.items()
        }

    def fetch_ahead(self, job: DistillJob, aligners_first: Collection[str]) -> ToCome | None:
        """Of caches at URLs, begin to bring what the run needs; None of local ones.
        `aligners_first` are sources that an aligner reads before the student.

        Raises CacheError if that is more than a mirror may keep."""
        found = []
        for (name, source), of in zip(self.sources.items(), self._own_draws(), strict=True):
            train = self.train.cache_rows[name]
            rows = [rows_by_first_use(job, source, train, name in aligners_first, of)]
            if self.validation is not None and name in self.validation.cache_rows:
                rows.append(self.validation.cache_rows[name])
            found.append(source.answers.fetch_ahead(source.feature.spec.name, np.concatenate(rows)))
        return sum_to_come(found)

    def _own_draws(self) -> list[str]:
        """What tells the noise and the shuffling of sources apart; nothing for the first."""
        return ["" if number == 0 else name for number, name in enumerate(self.sources)]


def read_student_data(job: DistillJob, terms: Sequence[Term]) -> StudentData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    readings, teachers = readings_of(terms), job.all_teachers
    own = [teachers[each.teacher].text_column or job.text_column for each in readings.values()]
    columns = Columns.of(job.text_column, own)
    corpus = read_corpus_of(job, job.train, columns.names)
    corpus.require_format(None, "a student of labels and features")
    space = _label_space(job, corpus, terms)
    train = LabelledCorpus(corpus, label_values(corpus, space))
    features_alone = space.task == "none"
    validation = None
    if job.validation:
        needed = columns.names if features_alone else job.text_column
        validation = read_labelled(job, job.validation, space, needed)
    _require_labels(space, train, "learn")
    if job.num_labels is None:
        require_variety(corpus, space, train.labels)
    _require_labels(space, validation, "validate by")
    metric = _choose_metric(job, space)
    corpora = [train, *([validation] if validation is not None and features_alone else [])]
    sources = open_sources(readings, teachers, columns, [each.corpus for each in corpora])
    _check_features(terms, space, sources)
    if sources:
        joined = [each.joined(sources, job.skip_bad_rows) for each in corpora]
        train, validation = joined[0], joined[1] if joined[1:] else validation
    read_digests = {
        name: train.of_columns(source.columns).digest()
        for name, source in sources.items()
        if source.columns != columns.student
    }
    train = train.of_columns(columns.student)
    if validation is not None and features_alone:
        validation = validation.of_columns(columns.student)
    return StudentData(train, validation, space, metric, sources, read_digests)


def _check_features(
    terms: Sequence[Term], space: LabelSpace, sources: Mapping[str, Source]
) -> None:
    """What can be refused of objectives before a model loads."""
    for term in terms:
        for reading in term.readings:
            spec = sources[reading.source].feature.spec
            shape = Sizes(0, space.num_labels, space.regression, spec.shape)
            require_fit(term.keys.name, term.objective.reads, shape)
            if term.objective.reads.classes:
                _check_class_names(space, spec)


def _label_space(job: DistillJob, corpus: Corpus, terms: Sequence[Term]) -> LabelSpace:
    if job.label_column is not None:
        assert job.task != "language"
        return label_space(corpus, job.task, job.num_labels)
    if any(term.objective.reads.labels for term in terms):
        raise JobError("job key 'label_column' is missing; only objective=feature needs none")
    return NO_LABELS


def _require_labels(space: LabelSpace, labelled: LabelledCorpus | None, purpose: str) -> None:
    if labelled is None or space.task == "none":
        return
    if count_missing(labelled.labels) == len(labelled.labels):
        source = labelled.corpus.sources[0]
        raise CorpusError(f"corpus {source}: no row has a label; nothing to {purpose}")


def read_labelled(
    keys: CorpusKeys, sources: tuple[str, ...], space: LabelSpace, columns: Sequence[str] = ()
) -> LabelledCorpus:
    """Files of examples whose labels are of a known space."""
    corpus = read_corpus_of(keys, sources, columns)
    return LabelledCorpus(corpus, label_values(corpus, space))


def read_corpus_of(
    keys: CorpusKeys, sources: tuple[str, ...], columns: Sequence[str] = ()
) -> Corpus:
    """The examples of some of a job's files; `columns` are those of texts, default the job's."""
    return read_corpus(
        sources,
        columns or keys.text_column,
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


def _check_class_names(space: LabelSpace, feature: FeatureSpec) -> None:
    """Logits teach by position: the same names in another order would teach the wrong classes."""
    if space.names and feature.labels and space.names != feature.labels:
        raise JobError(
            f"feature {feature.name!r}: the teacher's classes are {', '.join(feature.labels)}, the "
            f"student's {', '.join(space.names)}; give labels as the teacher's class numbers"
        )
