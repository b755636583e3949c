"""Corpora and caches of a language job: what texts are learned from, and which teachers say what of
them; all of it found and joined before a model loads."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...cache_schemas.errors import JobError
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.labels import NO_LABELS, label_space, label_values
from ...stages.distill.language.evaluation import METRICS
from ...stages.distill.order import epoch_order
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import Cache
from ...stages.store.transfer.mirror import ToCome
from ..answers import Answers, open_answers
from ..distill_job import DistillJob
from ..sources import Columns, open_sources, sum_to_come
from ..student_data import LabelledCorpus, StudentData, read_corpus_of, read_labelled
from ..terms import Reading, Term, readings_of
from .keys import word_feature
from .teacher_texts import GENERATED


@dataclass(frozen=True)
class Words:
    """A teacher of words: its answers, the feature that holds them, and the cache rows of the
    training texts."""

    answers: Answers
    feature: str
    rows: Rows

    @property
    def cache(self) -> Cache:
        """The open cache."""
        return self.answers.cache

    @property
    def spec(self) -> TeacherSpec:
        """Who was asked, and how."""
        return self.cache.teacher.spec


@dataclass(frozen=True)
class LanguageData(StudentData):
    """What a language model learns from; `feature` is that of ARMADA's manifold, if any."""

    words: Words | None = None

    def provenance(self) -> dict[str, Any]:
        """Where the teachers' answers come from; for the record of a run."""
        if self.words is None:
            return super().provenance()
        words = {
            "cache_digest": self.words.answers.digest,
            "teacher_fingerprint": self.words.cache.teacher.fingerprint,
            "teacher": self.words.spec.model_dump(mode="json"),
            "feature": self.words.feature,
        }
        if not self.sources:
            return words
        return super().provenance() | {f"token_{name}": value for name, value in words.items()}

    def without(self, rows: Rows, problem: str) -> "LanguageData":
        """The same without some training texts, each listed with what is wrong with it."""
        train, words = self.train, self.words
        kept = np.setdiff1d(np.arange(len(train.labels)), rows)
        if words is not None:
            words = replace(words, rows=words.rows[kept])
        cache_rows = {name: found[kept] for name, found in train.cache_rows.items()}
        corpus = train.corpus.without(rows, problem)
        rest = LabelledCorpus(corpus, train.labels[kept], cache_rows)
        return replace(self, train=rest, words=words)

    def fetch_ahead(self, job: DistillJob, aligners_first: Collection[str]) -> ToCome | None:
        """Of caches at URLs, begin to bring what the run needs; None of local ones."""
        to_come = super().fetch_ahead(job, aligners_first)
        if self.words is None:
            return to_come
        words = self.words
        order = epoch_order(len(words.rows), job.seeds[0], 0)
        found = words.answers.fetch_ahead(words.feature, words.rows[order])
        return sum_to_come([to_come, found])


def read_language_data(job: DistillJob, terms: Sequence[Term]) -> LanguageData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    corpus = read_corpus_of(job, job.train)
    space = NO_LABELS
    if job.label_column is not None:
        space = label_space(corpus, None, job.num_labels)
    train = LabelledCorpus(corpus, label_values(corpus, space))
    validation = read_labelled(job, job.validation, space) if job.validation else None
    words, train = _words(job, train)
    data = LanguageData(train, validation, space, _metric(job), words=words)
    readings = readings_of(terms)
    return _with_feature(job, data, readings) if readings else data


def _metric(job: DistillJob) -> str:
    if job.metric is not None and job.metric not in METRICS:
        raise JobError(f"job key 'metric': {job.metric!r} is not one of {', '.join(METRICS)}")
    return job.metric or METRICS[0]


def _words(job: DistillJob, train: LabelledCorpus) -> tuple[Words | None, LabelledCorpus]:
    if not job.distilled:
        return None, train
    if job.objective == "tokens":
        keys, asked, key = job, job.feature, "feature"
    elif job.beside_a_feature:
        changes = {"cache": job.token_cache or job.cache, "teacher": job.token_teacher}
        if job.token_cache is not None:
            changes["expect_digest"] = None
        keys, asked, key = job.model_copy(update=changes), job.token_feature, "token_feature"
    else:
        return None, train
    answers = open_answers(keys)
    feature = _feature(job, answers.cache, asked, key)
    answers = answers.of(feature, [train.corpus])
    plain, rows = train.found_in(answers.cache, feature, job.skip_bad_rows)
    return Words(answers, feature, rows), plain


def _feature(job: DistillJob, cache: Cache, asked: str | None, key: str) -> str:
    spec = cache.teacher.spec
    if "tokenizer" not in spec.settings:
        raise JobError(f"job key 'teacher': a {spec.kind} teaches no words; name a causal_lm")
    if job.responses == "corpus":
        return word_feature(cache.features, asked, key)
    if GENERATED not in cache.features:
        raise JobError(
            "responses generated: the teacher gave none; precompute with max_new_tokens, and "
            "add_features=true if the cache is to keep what it has"
        )
    return GENERATED


def _with_feature(
    job: DistillJob, data: LanguageData, readings: Mapping[str, Reading]
) -> LanguageData:
    if job.cache is None:
        raise JobError("job key 'cache' is missing; objective armada reads a feature from it")
    if job.packing != "none":
        raise JobError(
            f"packing {job.packing!r}: texts in one row share what ARMADA compares; use packing "
            "none, or objective tokens"
        )
    columns = Columns.of(job.text_column, [job.text_column] * len(readings))
    sources = open_sources(readings, job.all_teachers, columns, [data.train.corpus])
    train = data.train.joined(sources, job.skip_bad_rows)
    words = data.words
    if words is not None:  # some texts may have gone
        rows = words.cache.find(train.corpus.keys(), words.feature)
        words = Words(words.answers, words.feature, rows)
    return replace(data, train=train, sources=sources, words=words)
