"""The texts of a student that embeds, joined to teachers' features of each text, or of pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache_schemas.errors import CorpusError, JobError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ...stages.corpus.corpus import Corpus, read_corpus, refuse_unreadable
from ...stages.corpus.labels import NO_LABELS, LabelSpace, LabelValues, is_missing, label_values
from ...stages.corpus.reading import OPTIONAL
from ...stages.distill.batches import Features
from ...stages.distill.controls import Control, Gather, controlled
from ...stages.distill.embedding.dataset import Figures, Measure, VectorGather
from ...stages.distill.embedding.groups import Places, TextGroups
from ...stages.distill.embedding.measures import (
    RETRIEVAL_METRICS,
    SCORE_METRICS,
    ranking_metrics,
    score_metrics,
    target_metrics,
)
from ...stages.distill.embedding_student import has_length_1
from ...stages.distill.measures import is_teacher_measure
from ...stages.distill.objectives.base import Objective, Sizes, require_fit
from ...stages.distill.order import epoch_order
from ...stages.distill.teacher_answers import FeatureAnswers, prefixes
from ...stages.store.format.rows import Rows
from ...stages.store.transfer.mirror import ToCome
from ..answers import Answers, missing_keys, open_answers
from ..choosing import Selection, read_by_rules, select
from ..distill_job import DistillJob
from ..measured import Measured, MeasuredSource
from ..objective_keys import CacheKeys, TeacherKeys
from ..sources import Columns, Source, feature_of_texts, sum_to_come
from ..student_data import LabelledCorpus, StudentData
from ..terms import Reading, Term, readings_of
from .keys import prompts_of
from .own_columns import (
    OwnColumns,
    OwnKeys,
    WholeRows,
    check_own_columns,
    own_columns,
    targets_of_rows,
)

_LENGTH_ROWS = 64
_OF_ONE_WIDTH = ("crd", "wcord")
"""Built-in objectives with maps of embeddings of one width; others are refused when they are
made."""
_SCORES = LabelSpace(task="regression", num_labels=1)


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


@dataclass(frozen=True, kw_only=True)
class EmbeddingData(StudentData):
    """Data of a run whose student embeds; `train.corpus` has a column for each text."""

    joined: Joined
    held_out: Joined | None = None
    metric_names: tuple[str, ...] = ()
    """Metrics of its validation texts, without those of teachers."""
    passages_of: str | None = None
    """The source whose features are the embeddings of passages; None: passages are read."""
    searched: tuple[str, ...] = ()
    """Sources among whose targets each validation text is to find its own."""

    @property
    def rows_of_texts(self) -> Mapping[str, Rows]:
        """The cache rows of the different texts; scores of pairs are of no text, and pictures of
        rows of none alone."""
        rows, targets = self.joined.rows, self.joined.targets
        named = [n for n, s in self.sources.items() if is_of_texts(s.spec) and n not in targets]
        return {name: rows[name] for name in named}

    def gathers(self, seed: int, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the training features of each source, under its control."""
        found: dict[str, Features] = {}
        for (name, source), own in zip(self.sources.items(), self._own_draws(), strict=True):
            gather = controlled(source.feature, self.joined.rows[name], source.control, seed, own)
            found[name] = _checked(gather, name, source, self.joined, self.train.corpus)
        return found

    def validation_gathers(self, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the validation features, as cached; where some lack, of none but those that
        passages have for embeddings."""
        held_out = self.held_out
        if held_out is None:
            return {}
        names = [n for n in self.sources if held_out.complete or n == self.passages_of]
        return {name: self._held_out_gather(name) for name in names}

    def _held_out_gather(self, name: str) -> Gather:
        assert self.held_out is not None
        assert self.validation is not None
        source = self.sources[name]
        gather = controlled(source.feature, self.held_out.rows[name], Control("none"), 0)
        return _checked(gather, name, source, self.held_out, self.validation.corpus)

    def fetch_ahead(self, job: DistillJob, aligners_first: Any) -> ToCome | None:
        """Start downloading what the run needs from caches at URLs, in the order of first use."""
        order = epoch_order(len(self.joined.groups), job.seeds[0], 0)
        found = []
        for name, source in self.sources.items():
            numbers = self.joined.places[name][order].ravel()
            rows = [self.joined.rows[name][numbers[numbers >= 0]]]
            if self.held_out is not None:
                rows.append(self.held_out.rows[name])
            read = np.concatenate(rows)
            found.append(source.fetch_ahead(read[read >= 0]))
        return sum_to_come(found)

    def measure(self, objective: Objective) -> Measure:
        """Metrics of validation embeddings, and how near they are to those of teachers."""
        assert self.held_out is not None
        assert self.validation is not None
        first = prefixes(list(self.measured.sources))
        answers = {
            first[name]: each.answers(name, objective)
            for name, each in self.measured.sources.items()
        }
        compared = {first[name]: self.held_out.compared(name) for name in self.measured.sources}

        def figures(embeddings_TE: npt.NDArray[np.float32], labels: LabelValues) -> Figures:
            found = self.task_figures(embeddings_TE, labels)
            for prefix, each in answers.items():
                assert isinstance(each, FeatureAnswers)
                texts_P, _ = compared[prefix]
                each.see(np.arange(len(texts_P)), torch.from_numpy(embeddings_TE[texts_P]))
                own = each.figures(embeddings_TE, labels, self.space)
                found |= {f"{prefix}{name}": value for name, value in own.items()}
            return found

        return figures

    def task_figures(self, embeddings_TE: npt.NDArray[np.float32], labels: LabelValues) -> Figures:
        """Metrics of any embeddings of the validation texts, without those of teachers."""
        assert self.held_out is not None
        places, words = self.held_out.groups.places, self.held_out.groups.words
        found: Figures = {}
        if set(self.metric_names) & set(SCORE_METRICS):
            found |= score_metrics(embeddings_TE, places, labels)
        if set(self.metric_names) & set(RETRIEVAL_METRICS) and not self.searched:
            found |= ranking_metrics(embeddings_TE, places, words)
        for name, prefix in prefixes(self.searched).items():
            targets = self._held_out_gather(name), *self.held_out.compared(name)
            ranked = target_metrics(embeddings_TE, *targets)
            found |= {f"{prefix}{metric}": value for metric, value in ranked.items()}
        return found


def _checked(gather: Gather, name: str, source: Source, joined: Joined, corpus: Corpus) -> Gather:
    """A reader that refuses vectors without a direction, of a feature of texts."""
    if not is_of_texts(source.spec):
        return gather

    def names(numbers: Rows) -> list[str]:
        return joined.names(name, corpus, numbers)

    return VectorGather(gather.feature, gather.rows, gather.change, names=names)


def is_of_texts(spec: FeatureSpec) -> bool:
    """Whether a feature is a vector of a text, not a score of a pair."""
    return prod(spec.shape) > 1


def read_embedding_data(job: DistillJob, terms: Sequence[Term]) -> EmbeddingData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    _check_columns(job)
    readings = readings_of(terms)
    own = own_columns(job, readings)
    check_own_columns(own, terms)
    chosen, selection = _read_training(job, own)
    rows = [chosen]
    train, validation = chosen.student, None
    columns = job.validation_text_column or job.text_column
    if job.validation:
        label = job.validation_label_column or job.label_column
        rows.append(_read_validation(job, columns, own, label))
        validation = rows[1].student
    if job.label_column is not None and is_missing(train.labels).all():
        raise CorpusError(
            f"corpus {train.corpus.sources[0]}: label_column {job.label_column!r}: no row has a "
            "score; name another column, or leave it out"
        )
    label = job.validation_label_column or job.label_column
    if validation is not None and label is not None and is_missing(validation.labels).all():
        raise CorpusError(
            f"corpus {validation.corpus.sources[0]}: label_column {label!r}: no row has a score to "
            "validate by; name another column, or leave it out"
        )
    groups = _groups(job, train.corpus)
    held_out = None if validation is None else _groups(job, validation.corpus)
    sources = {
        name: _open(reading, job.all_teachers, terms, train.corpus, groups, held_out, rows)
        for name, reading in readings.items()
    }
    _check_features(job, terms, sources)
    keys = [each.keys() for each in rows]
    del rows  # with their pictures
    train, joined, keys[0] = _joined(job, train, groups, sources, keys[0])
    joined_out = None
    if validation is not None and held_out is not None:
        joined_out = _join(sources, validation.corpus, held_out, keys[1])
    _check_texts(job, terms, joined)
    passages_of = None
    if job.tower == "cached":
        passages_of = _source_of_passages(job, terms, sources)
        _require_validation(sources[passages_of], passages_of, joined_out)
    measured = _measured(job, terms, sources, joined_out, keys[-1].reasons)
    searched = _searched(terms, validation, joined_out)
    names = _metric_names(job, train, validation, joined, joined_out, searched)
    metric = _choose_metric(job, names, measured)
    return EmbeddingData(
        train=train,
        validation=validation,
        space=NO_LABELS,
        metric=metric,
        sources=sources,
        read_digests=keys[0].digests(train.labels),
        measured=measured,
        joined=joined,
        held_out=joined_out,
        metric_names=names,
        passages_of=passages_of,
        searched=searched,
        selection=selection,
    )


def _read_training(job: DistillJob, own: OwnColumns) -> tuple[WholeRows, Selection | None]:
    """The training rows, or those that the job's rules choose; each of these reads the first text
    of a row, or the columns that its teacher names."""
    by_rules = read_by_rules(job)
    every = Columns.of(job.text_column, [*own.values(), *by_rules.values()])
    columns, of_rules = every.divided(len(own))
    whole = _read(job, job.train, every.names, job.label_column, weighted=True)
    selection = None
    if job.rules:
        of_teacher = dict(zip(by_rules, of_rules, strict=True))
        whole, selection = select(job, whole, NO_LABELS, columns.student, of_teacher)
    return WholeRows.of(whole, columns, own), selection


def _read(
    job: DistillJob,
    files: tuple[str, ...],
    columns: Sequence[str],
    label_column: Any,
    weighted: bool = False,
) -> LabelledCorpus:
    corpus = read_corpus(
        files,
        columns,
        label_column=label_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        form=job.file_format,
        weight_column=job.weight_column if weighted else None,
    )
    corpus.require_format(None, "a student that embeds")
    return LabelledCorpus(corpus, label_values(corpus, _SCORES if label_column else NO_LABELS))


def _read_validation(
    job: DistillJob, student: Sequence[str], own: OwnColumns, label_column: Any
) -> WholeRows:
    """The validation rows; files without the columns of teachers' own do without them."""
    try:
        for columns in own.values():
            refuse_unreadable(
                job.validation, columns, id_column=job.id_column, form=job.file_format
            )
    except CorpusError as error:
        without = WholeRows.of(
            _read(job, job.validation, student, label_column), Columns.of(student, []), {}
        )
        return replace(without, reasons=dict.fromkeys(own, str(error)))
    every = Columns.of(student, list(own.values()))
    return WholeRows.of(_read(job, job.validation, every.names, label_column), every, own)


def _check_columns(job: DistillJob) -> None:
    for columns in (job.text_column, job.validation_text_column or ()):
        for column in columns[:2]:
            if column.endswith(OPTIONAL):
                raise JobError(
                    f"text_column {column!r}: a query and the passage that answers it are in every "
                    "row; leave the question mark out, or name it after these"
                )


def _groups(job: DistillJob, corpus: Corpus) -> TextGroups:
    prompts = prompts_of(job, len(job.text_column))
    of_queries = any(keys.of_queries is not None for keys in job.all_teachers.values())
    return TextGroups.of(corpus, apart=prompts.differ or of_queries or job.tower != "shared")


def _open(
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


def _join(
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


def _joined(
    job: DistillJob,
    train: LabelledCorpus,
    groups: TextGroups,
    sources: Mapping[str, Source],
    keys: OwnKeys,
) -> tuple[LabelledCorpus, Joined, OwnKeys]:
    """Training rows whose texts, pairs and targets are all in the caches; others are left out and
    listed, or refused."""
    joined = _join(sources, train.corpus, groups, keys)
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
    return train, _join(sources, train.corpus, _groups(job, train.corpus), keys), keys


def _missing(sources: Mapping[str, Source], corpus: Corpus, joined: Joined) -> Exception:
    """The error for the first source that lacks something."""
    name = next(name for name, rows in joined.rows.items() if (rows < 0).any())
    source, rows = sources[name], joined.rows[name]
    if is_of_texts(source.spec) and name not in joined.targets:
        absent = np.flatnonzero(rows < 0)
        cache = source.cache
        if source.of_queries is not None and joined.groups.queries[absent].all():
            cache = source.of_queries.cache
        return missing_keys(cache, joined.groups.texts, absent, [source.spec.name])
    places = joined.places[name]
    lacking = np.flatnonzero(((rows[places] < 0) & (places >= 0)).any(axis=1))
    return missing_keys(source.cache, corpus, lacking, [source.spec.name])


def _check_features(job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]) -> None:
    for term in terms:
        for reading in term.readings:
            spec = sources[reading.source].spec
            sizes = Sizes(0, NO_LABELS.num_labels, NO_LABELS.regression, spec.shape)
            require_fit(term.keys.name, term.objective.reads, sizes)
            term.require_options(sizes)
            if np.dtype(spec.dtype).kind != "f":
                raise JobError(
                    f"feature {spec.name!r}: holds whole numbers ({spec.dtype}), no embeddings; "
                    "name another"
                )
    dim = embedding_dim(job, terms, sources)
    for term in terms:
        if getattr(term.options, "projector", None) == "none":
            width = prod(sources[term.readings[0].source].spec.shape)
            if width != dim:
                raise JobError(
                    f"objective {term.keys.name}: embeddings of {dim} numbers are to meet a "
                    f"feature of {width}; set embedding_dim={width}, or projector=linear for it"
                )
        elif job.prefix_dims and (
            hasattr(term.options, "projector") or term.keys.name in _OF_ONE_WIDTH
        ):
            raise JobError(
                f"matryoshka_dims: objective {term.keys.name} has weights for embeddings of one "
                "width, and prefixes have fewer numbers; use projector=none or another objective, "
                "or leave matryoshka_dims out"
            )
    for cut in job.prefix_dims:
        if dim is not None and cut >= dim:
            raise JobError(
                f"matryoshka_dims {cut}: an embedding has {dim} numbers; choose fewer than that"
            )


def embedding_dim(
    job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]
) -> int | None:
    """Numbers of an embedding, as named or as the feature that is met has; None: the student's
    width decides."""
    if job.embedding_dim is not None:
        return job.embedding_dim
    for term in terms:
        if getattr(term.options, "projector", None) == "none":
            return prod(sources[term.readings[0].source].spec.shape)
    return None


def normalizes(job: DistillJob, terms: Sequence[Term], data: EmbeddingData) -> bool:
    """Whether embeddings have length 1: as the job says, or unless they are to meet numbers of a
    feature that has another length."""
    if job.normalize_embeddings is not None:
        return job.normalize_embeddings
    units = []
    for term in terms:
        met = getattr(term.options, "projector", None) == "none"
        if met and getattr(term.options, "distance", "cosine") != "cosine":
            source = data.sources[term.readings[0].source]
            sample = data.joined.rows[term.readings[0].source][:_LENGTH_ROWS]
            units.append(has_length_1(source.feature.gather(sample)))
    return all(units)


def _check_texts(job: DistillJob, terms: Sequence[Term], joined: Joined) -> None:
    """Refuse negatives that are more than the other texts of the training set."""
    batch = job.batch_size * joined.groups.columns
    for term in terms:
        wanted = term.objective.negatives_of(term.options)
        for reading in term.readings[:1] if wanted else ():
            texts = len(np.unique(joined.rows[reading.source]))
            if wanted > texts - batch:
                raise JobError(
                    f"objective {term.keys.name}: negatives {wanted}: teacher {reading.teacher} "
                    f"has features of {texts} different training texts, up to {batch} of them in a "
                    f"batch; choose at most {max(0, texts - batch)}"
                )


def _source_of_passages(
    job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]
) -> str:
    """The source of the embeddings that passages have. Raises JobError unless there is one, or one
    whose numbers an objective meets, as wide as those of queries."""
    of_texts = [name for name, source in sources.items() if is_of_texts(source.spec)]
    met = [
        term.readings[0].source
        for term in terms
        if getattr(term.options, "projector", None) == "none"
    ]
    for names in (list(dict.fromkeys(met)), of_texts):
        if len(names) == 1:
            _check_width(names[0], sources, embedding_dim(job, terms, sources))
            return names[0]
    problem = "no objective reads embeddings of texts"
    if of_texts:
        problem = f"objectives read embeddings of several teachers ({', '.join(of_texts)})"
    raise JobError(
        f"passage_tower=cached: {problem}; have one of them learned by objective feature with "
        "projector=none, whose embeddings the passages then have"
    )


def _check_width(name: str, sources: Mapping[str, Source], dim: int | None) -> None:
    width = prod(sources[name].spec.shape)
    if dim != width:
        raise JobError(
            f"passage_tower=cached: the passages' embeddings have {width} numbers, and those of "
            f"queries {dim or 'as many as the student is wide'}; set embedding_dim={width}"
        )


def _require_validation(source: Source, name: str, held_out: Joined | None) -> None:
    if held_out is not None and (held_out.rows[name] < 0).any():
        absent = np.flatnonzero(held_out.rows[name] < 0)
        raise missing_keys(source.cache, held_out.groups.texts, absent, [source.spec.name])


def _measured(
    job: DistillJob,
    terms: Sequence[Term],
    sources: Mapping[str, Source],
    held_out: Joined | None,
    without: Mapping[str, str],
) -> Measured:
    """The teachers of texts that validation embeddings are compared with."""
    if held_out is None or job.measure_teacher == "off":
        return Measured()
    found, reasons = dict[str, MeasuredSource](), dict[str, str]()
    for name, source in sources.items():
        rows = held_out.rows[name]
        if job.tower == "cached" and is_of_texts(source.spec):
            # The passages' embeddings are the teacher's own.
            rows = np.where(held_out.groups.queries, rows, -1)
        if name in held_out.targets:
            rows = rows[held_out.compared(name)[1]]
        if name in without:
            reasons[name] = without[name]
        elif not is_of_texts(source.spec):
            reasons[name] = f"{source.spec.name} is a score of pairs"
        elif (rows < 0).all():
            reasons[name] = f"none of {len(rows)} validation texts is in the cache"
        else:
            found[name] = MeasuredSource(source, rows, "feature", _is_met(terms, name))
            continue
        if job.measure_teacher == "require":
            raise JobError(f"measure_teacher=require: teacher {name}: {reasons[name]}")
    return Measured(found, reasons)


def _is_met(terms: Sequence[Term], source: str) -> bool:
    """Whether embeddings are in the space of a source: an objective has them meet its numbers."""
    return any(
        getattr(term.options, "projector", None) == "none"
        for term in terms
        for reading in term.readings
        if reading.source == source
    )


def _searched(
    terms: Sequence[Term], validation: LabelledCorpus | None, held_out: Joined | None
) -> tuple[str, ...]:
    """The sources among whose targets, of the validation rows, single texts are to find theirs."""
    if validation is None or held_out is None or held_out.groups.columns > 1:
        return ()
    return tuple(
        name
        for name in held_out.targets
        if (held_out.rows[name] >= 0).all() and _is_met(terms, name)
    )


def _metric_names(
    job: DistillJob,
    train: LabelledCorpus,
    validation: LabelledCorpus | None,
    joined: Joined,
    held_out: Joined | None,
    searched: Sequence[str],
) -> tuple[str, ...]:
    if validation is None or held_out is None:
        return ("loss",)
    names: tuple[str, ...] = ()
    columns = held_out.groups.columns
    if not is_missing(validation.labels).all():
        if columns != 2:
            raise CorpusError(
                f"validation: {columns} text columns and a score; scores are of pairs: name two "
                "columns in validation_text_column"
            )
        names = SCORE_METRICS
    elif columns > 1:
        names = RETRIEVAL_METRICS
    else:
        first = prefixes(searched)
        names = tuple(f"{first[name]}{each}" for name in searched for each in RETRIEVAL_METRICS)
    has_loss = held_out.complete and columns == joined.groups.columns
    if has_loss and (job.label_column is None or names == SCORE_METRICS):
        names = (*names, "loss")
    return names


def _choose_metric(job: DistillJob, names: Sequence[str], measured: Measured) -> str:
    known = [*names, *measured.names]
    if job.metric is not None and job.metric not in known:
        if is_teacher_measure(job.metric):
            raise measured.refuse(job.metric)
        raise JobError(
            f"job key 'metric': {job.metric!r} is not one of {', '.join(known) or 'none here'}"
        )
    if not known:
        raise JobError(
            "validation: single texts of which a teacher's features are not all cached, so that "
            "nothing can be measured; precompute them, or name pairs in validation_text_column"
        )
    return job.metric or known[0]
