"""The data of a student that embeds: texts joined to features, and what is measured of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache_schemas.errors import CorpusError, JobError
from ...stages.corpus.corpus import read_corpus, refuse_unreadable
from ...stages.corpus.labels import NO_LABELS, LabelSpace, LabelValues, is_missing, label_values
from ...stages.corpus.reading import OPTIONAL
from ...stages.distill.batches import Features
from ...stages.distill.controls import Control, Gather, controlled
from ...stages.distill.embedding.dataset import Figures, Measure
from ...stages.distill.embedding.measures import (
    RETRIEVAL_METRICS,
    SCORE_METRICS,
    ranking_metrics,
    score_metrics,
    target_metrics,
)
from ...stages.distill.measures import is_teacher_measure
from ...stages.distill.objectives.base import Objective
from ...stages.distill.order import epoch_order
from ...stages.distill.teacher_answers import FeatureAnswers, prefixes
from ...stages.store.format.rows import Rows
from ...stages.store.transfer.mirror import ToCome
from ..choosing import Selection, read_by_rules, select
from ..distill_job import DistillJob
from ..labelled_corpus import LabelledCorpus
from ..measured import Measured, MeasuredSource
from ..sources import Columns, Source, sum_to_come
from ..student_data import StudentData
from ..terms import Term, readings_of
from .fits import check_features, check_negatives, is_met, source_of_passages
from .joining import (
    Joined,
    checked_gather,
    groups_of,
    is_of_texts,
    join,
    join_training,
    missing_texts,
    open_source,
)
from .own_columns import (
    OwnColumns,
    WholeRows,
    check_own_columns,
    own_columns,
)

_SCORES = LabelSpace(task="regression", num_labels=1)


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
            found[name] = checked_gather(gather, name, source, self.joined, self.train.corpus)
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
        return checked_gather(gather, name, source, self.held_out, self.validation.corpus)

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
    groups = groups_of(job, train.corpus)
    held_out = None if validation is None else groups_of(job, validation.corpus)
    sources = {
        name: open_source(reading, job.all_teachers, terms, train.corpus, groups, held_out, rows)
        for name, reading in readings.items()
    }
    check_features(job, terms, sources)
    keys = [each.keys() for each in rows]
    del rows  # with their pictures
    train, joined, keys[0] = join_training(job, train, groups, sources, keys[0])
    joined_out = None
    if validation is not None and held_out is not None:
        joined_out = join(sources, validation.corpus, held_out, keys[1])
    check_negatives(job, terms, joined)
    passages_of = None
    if job.tower == "cached":
        passages_of = source_of_passages(job, terms, sources, own)
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


def _require_validation(source: Source, name: str, held_out: Joined | None) -> None:
    if held_out is not None and (held_out.rows[name] < 0).any():
        raise missing_texts(source, held_out.groups, np.flatnonzero(held_out.rows[name] < 0))


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
        elif job.pooling == "none":
            reasons[name] = "the student has a vector for each token, and not one of a text"
        elif not is_of_texts(source.spec):
            reasons[name] = f"{source.spec.name} is a score of pairs"
        elif (rows < 0).all():
            reasons[name] = f"none of {len(rows)} validation texts is in the cache"
        else:
            found[name] = MeasuredSource(source, rows, "feature", is_met(terms, name))
            continue
        if job.measure_teacher == "require":
            raise JobError(f"measure_teacher=require: teacher {name}: {reasons[name]}")
    return Measured(found, reasons)


def _searched(
    terms: Sequence[Term], validation: LabelledCorpus | None, held_out: Joined | None
) -> tuple[str, ...]:
    """The sources among whose targets, of the validation rows, single texts are to find theirs."""
    if validation is None or held_out is None or held_out.groups.columns > 1:
        return ()
    return tuple(
        name
        for name in held_out.targets
        if (held_out.rows[name] >= 0).all() and is_met(terms, name)
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
