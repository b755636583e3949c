"""Texts, pairs and targets of rows, found in the caches of teachers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ...cache_schemas.errors import JobError, MissingKeysError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ...stages.corpus.corpus import Corpus
from ...stages.distill.controls import Gather
from ...stages.distill.embedding.dataset import VectorGather
from ...stages.distill.embedding.groups import Places, TextGroups
from ...stages.store.format.rows import Rows
from ..answers import Answers, missing_keys, open_answers
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..objective_keys import CacheKeys, TeacherKeys
from ..sources import Source, feature_of_texts
from ..terms import Reading, Term
from .keys import prompts_of
from .own_columns import (
    OwnKeys,
    WholeRows,
    targets_of_rows,
)


@dataclass(frozen=True, slots=True)
class Joined:
    """Examples of several texts; of each source the cache rows of the texts, or of the pairs of a
    query and another text, and which of these stand in which place of an example."""

    groups: TextGroups
    rows: Mapping[str, Rows] = field(default_factory=dict)
    places: Mapping[str, Places] = field(default_factory=dict)
    targets: Mapping[str, IntArray] = field(default_factory=dict)
    """Sources whose teachers have columns of their own: the first row of each different target."""

    def names(self, source: str, corpus: Corpus, numbers: Rows) -> list[str]:
        """What features are of, by their numbers."""
        if source in self.targets:
            return [corpus.where(int(row)) for row in self.targets[source][numbers]]
        return [self.groups.texts.where(int(number)) for number in numbers]

    def compared(self, source: str) -> tuple[IntArray, IntArray]:
        """The texts [P] that features of a source are the targets of, and which ones [P]."""
        if source not in self.targets:
            every = np.arange(len(self.groups.texts))
            return every, every
        there = self.groups.places >= 0
        both = np.stack([self.groups.places[there], self.places[source][there]], axis=1)
        texts_P, targets_P = np.unique(both, axis=0).T
        return texts_P, targets_P

    @property
    def complete(self) -> bool:
        """Whether no text, and no pair, lacks a feature."""
        return all((rows >= 0).all() for rows in self.rows.values())


def checked_gather(
    gather: Gather, name: str, source: Source, joined: Joined, corpus: Corpus
) -> Gather:
    """A reader that refuses vectors without a direction, of a feature of texts."""
    if not is_of_texts(source.spec):
        return gather

    def names(numbers: Rows) -> list[str]:
        return joined.names(name, corpus, numbers)

    return VectorGather(gather.feature, gather.rows, gather.change, names=names)


def is_of_texts(spec: FeatureSpec) -> bool:
    """Whether a feature is a vector of a text, not a score of a pair."""
    return prod(spec.shape) > 1


def groups_of(job: DistillJob, corpus: Corpus) -> TextGroups:
    prompts = prompts_of(job, len(job.text_column))
    of_queries = any(keys.of_queries is not None for keys in job.all_teachers.values())
    return TextGroups.of(corpus, apart=prompts.differ or of_queries or job.tower != "shared")


def open_source(
    reading: Reading,
    teachers: Mapping[str, TeacherKeys],
    terms: Sequence[Term],
    corpus: Corpus,
    groups: TextGroups,
    held_out: TextGroups | None,
    rows: Sequence[WholeRows],
) -> Source:
    """A feature of each text; for an objective of candidates, of pairs; or of each row, by columns
    of the teacher's own."""
    keys = teachers[reading.teacher]
    answers = open_answers(keys)
    name = feature_of_texts(answers.cache, reading, len(teachers) > 1)
    spec = answers.cache[name].spec
    if is_of_texts(spec) and answers.cache.teacher.spec.kind == "cross_encoder":
        raise JobError(
            f"teacher {reading.teacher}: is a cross_encoder whose {spec.name!r} is "
            f"{prod(spec.shape)} numbers for each pair, neither a vector of a text nor a score; "
            "name a cross_encoder of a single score"
        )
    for term in terms if not is_of_texts(spec) else ():
        reads = any(each.source == reading.source for each in term.readings)
        if reads and not term.objective.reads.scores:
            raise JobError(
                f"objective {term.keys.name}: feature {spec.name!r} is one number, a score of a "
                "pair, which margin_mse and listwise_kl read; name a feature of texts"
            )
    read = [groups.texts, *([held_out.texts] if held_out is not None else [])]
    if reading.source in rows[0].read:
        if not is_of_texts(spec):
            raise JobError(
                f"teacher {reading.teacher}: text_column: feature {spec.name!r} is one number, and "
                "the texts of a row are to meet a vector; name another feature"
            )
        read = [each.read[reading.source] for each in rows if reading.source in each.read]
    elif not is_of_texts(spec):
        read = [_pairs(corpus, column) for column in range(1, groups.columns)]
    answers = answers.of(name, read)
    queries = None
    if keys.of_queries is not None:
        queries = _open_queries(keys.of_queries, name, spec, read)
    return Source(
        answers,
        answers.cache[name].spec,
        (0,),
        keys.parsed_control,
        keys.placement,
        of_queries=queries,
    )


def _open_queries(keys: CacheKeys, name: str, spec: FeatureSpec, read: Sequence[Corpus]) -> Answers:
    """The same feature by the teacher that read the queries."""
    answers = open_answers(keys)
    teacher = answers.cache.teacher.fingerprint[:12]
    if name not in answers.cache.features:
        raise JobError(
            f"query_teacher {teacher}: has {', '.join(answers.cache.features)}, and no feature "
            f"{name!r}; name the model of `teacher` with the prompt of queries"
        )
    own = answers.cache.feature_spec(name)
    if own.shape != spec.shape or own.axis is not None or not is_of_texts(spec):
        raise JobError(
            f"query_teacher {teacher}: its feature {name!r} is {own.shown}, that of passages "
            f"{spec.shown}; name one model with two prompts, which embeds texts"
        )
    return answers.of(name, read)


def _pairs(corpus: Corpus, column: int) -> Corpus:
    """The query of each row and another of its texts."""
    return corpus.of_columns((0, column))


def join(
    sources: Mapping[str, Source], corpus: Corpus, groups: TextGroups, own_keys: OwnKeys
) -> Joined:
    """The cache rows of all texts, pairs and targets of rows, -1 where there is none."""
    rows, places, targets = dict[str, Rows](), dict[str, Places](), dict[str, IntArray]()
    keys: KeyArray | None = None
    for name, source in sources.items():
        if name in own_keys.reasons:
            targets[name], rows[name] = np.zeros(1, np.int64), np.full(1, -1)
            places[name] = np.where(groups.places < 0, -1, 0)
            continue
        if name in own_keys.keys:
            read = own_keys.keys[name]
            targets[name], places[name] = targets_of_rows(read, groups.places)
            rows[name] = source.find(read[targets[name]])
            continue
        if is_of_texts(source.spec):
            keys = groups.texts.keys() if keys is None else keys
            rows[name] = source.find_texts(keys, groups.queries)
            places[name] = groups.places
            continue
        there = groups.places[:, 1:] >= 0
        numbers = np.full(there.shape, -1)
        numbers[there] = np.arange(there.sum())
        places[name] = numbers
        found = np.full(int(there.sum()), -1)
        for column in range(there.shape[1]):
            own = _pairs(corpus, column + 1).take(np.flatnonzero(there[:, column]))
            found[numbers[there[:, column], column]] = source.find(own.keys())
        rows[name] = found
    return Joined(groups, rows, places, targets)


def join_training(
    job: DistillJob,
    train: LabelledCorpus,
    groups: TextGroups,
    sources: Mapping[str, Source],
    keys: OwnKeys,
) -> tuple[LabelledCorpus, Joined, OwnKeys]:
    """Training rows whose texts, pairs and targets are all in the caches; others are left out and
    listed, or refused."""
    joined = join(sources, train.corpus, groups, keys)
    if joined.complete:
        return train, joined, keys
    lacking = np.zeros(len(groups), np.bool_)
    for name, rows in joined.rows.items():
        places = joined.places[name]
        lacking |= ((rows[places] < 0) & (places >= 0)).any(axis=1)
    if not job.skip_bad_rows or lacking.all():
        raise _missing(sources, train.corpus, joined)
    train = train.without(np.flatnonzero(lacking), "not in the cache")
    keys = keys.take(np.flatnonzero(~lacking))
    return train, join(sources, train.corpus, groups_of(job, train.corpus), keys), keys


def missing_texts(source: Source, groups: TextGroups, absent: Rows) -> MissingKeysError:
    """The error for texts that a teacher, or the one that has read the queries, has not read."""
    if source.of_queries is None:
        return missing_keys(source.cache, groups.texts, absent, [source.spec.name])
    queries = groups.queries[absent]
    of_caches = (source.of_queries.cache, absent[queries]), (source.cache, absent[~queries])
    problems = [
        str(missing_keys(cache, groups.texts, rows, [source.spec.name]))
        for cache, rows in of_caches
        if len(rows)
    ]
    return MissingKeysError("; and ".join(problems), absent.tolist())


def _missing(sources: Mapping[str, Source], corpus: Corpus, joined: Joined) -> Exception:
    """The error for the first source that lacks something."""
    name = next(name for name, rows in joined.rows.items() if (rows < 0).any())
    source, rows = sources[name], joined.rows[name]
    if is_of_texts(source.spec) and name not in joined.targets:
        return missing_texts(source, joined.groups, np.flatnonzero(rows < 0))
    places = joined.places[name]
    lacking = np.flatnonzero(((rows[places] < 0) & (places >= 0)).any(axis=1))
    return missing_keys(source.cache, corpus, lacking, [source.spec.name])
