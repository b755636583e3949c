"""Everything that a distill job names, read, checked and joined before a model loads."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..cache_schemas.errors import JobError
from ..cache_schemas.features import FeatureSpec
from ..stages.corpus.labels import LabelSpace, label_values
from ..stages.distill.logit_controls import require_classes
from ..stages.distill.objectives.base import Sizes, require_fit
from .choosing import read_by_rules, select
from .distill_job import DistillJob
from .label_task import LabelTask
from .language.task import LanguageTask
from .objective_keys import TeacherKeys
from .sources import Columns, Source, open_sources
from .student_data import LabelledCorpus, StudentData, read_corpus_of, read_labelled
from .task import Task
from .terms import Reading, Term, readings_of


def task_of(job: DistillJob) -> Task:
    """Task of a job."""
    return LanguageTask() if job.task == "language" else LabelTask()


def read_data(job: DistillJob, terms: Sequence[Term]) -> StudentData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    task = task_of(job)
    readings, teachers = readings_of(terms), job.all_teachers
    _refuse_missing(job, readings.values(), teachers)
    own = [teachers[each.teacher].text_column or job.text_column for each in readings.values()]
    selecting = read_by_rules(job)
    more = list(selecting.values())
    all_columns = Columns.of(job.text_column, [*own, *more])
    columns, for_select = all_columns.divided(len(own))
    for reading, read in zip(readings.values(), columns.sources, strict=True):
        if reading.axis is not None and read != columns.student:
            raise JobError(
                f"teacher {reading.teacher}: text_column: a teacher of tokens reads the student's "
                "own columns; leave it out"
            )
    corpus = read_corpus_of(job, job.train, all_columns.names)
    space = task.label_space(job, corpus, terms)
    train = LabelledCorpus(corpus, label_values(corpus, space))
    selection = None
    if job.rules:
        of_teacher = dict(zip(selecting, for_select, strict=True))
        train, selection = select(job, train, space, of_teacher)
    features_alone = task.learns_features_alone(space)
    validation = None
    if job.validation:
        needed = columns.names if features_alone else job.text_column
        validation = read_labelled(job, job.validation, space, needed)
    task.check_labels(job, space, train, validation)
    soft = validation is not None and space.has_probabilities(validation.labels)
    metric = _choose_metric(job, task.metrics(space, soft))
    corpora = [train, *([validation] if validation is not None and features_alone else [])]
    sources = open_sources(readings, teachers, columns, [each.corpus for each in corpora])
    _check_features(terms, space, sources)
    if sources:
        joined = [
            each.joined(
                sources,
                job.skip_bad_rows,
                may_lack=each is train,
                teach_themselves=job.task == "language",
            )
            for each in corpora
        ]
        train, validation = joined[0], joined[1] if joined[1:] else validation
        _check_negatives(job, terms, train)
    read_digests = {
        name: train.of_columns(source.columns).digest()
        for name, source in sources.items()
        if source.columns != columns.student
    }
    train = train.of_columns(columns.student)
    if validation is not None and features_alone:
        validation = validation.of_columns(columns.student)
    return StudentData(train, validation, space, metric, sources, read_digests, selection)


def _refuse_missing(
    job: DistillJob, readings: Collection[Reading], teachers: Mapping[str, TeacherKeys]
) -> None:
    """Refuse what a language model cannot learn without a teacher."""
    for each in readings if job.task == "language" else ():
        if teachers[each.teacher].missing == "refuse":
            continue
        if each.axis != "predictions":
            raise JobError(
                f"missing=without_teacher: teacher {each.teacher}: features of whole texts have to "
                "be there for each row of a language model; skip others with skip_bad_rows=true"
            )
        if job.responses == "generated":
            raise JobError(
                "missing=without_teacher: without a teacher's response there is nothing to learn; "
                "skip such rows with skip_bad_rows=true"
            )


def _check_features(
    terms: Sequence[Term], space: LabelSpace, sources: Mapping[str, Source]
) -> None:
    """Check features against objectives, before a model loads."""
    for term in terms:
        for reading in () if term.reads_predictions else term.readings:
            spec = sources[reading.source].spec
            sizes = Sizes(
                *(0, space.num_labels, space.regression, spec.shape), multilabel=space.multilabel
            )
            require_fit(term.keys.name, term.objective.reads, sizes)
            control = sources[reading.source].control
            if control.of_logits and space.task != "classification":
                raise JobError(
                    f"control {control.name}: is for logits of which one class holds, but the task "
                    f"is {space.task}; choose another control"
                )
            term.require_options(sizes)
            if sources[reading.source].may_lack and np.dtype(spec.dtype).kind != "f":
                raise JobError(
                    f"missing=without_teacher: feature {spec.name!r} holds whole numbers "
                    f"({spec.dtype}), which have no value for a missing one; skip such rows with "
                    "skip_bad_rows=true"
                )
            if term.objective.reads.classes:
                require_classes(sources[reading.source].control.name, spec.values_per_row)
                _check_class_names(space, spec)


def _check_negatives(job: DistillJob, terms: Sequence[Term], train: LabelledCorpus) -> None:
    """Refuse negatives that are more than the other texts of the training set."""
    for term in terms:
        wanted = term.objective.negatives_of(term.objective.Options(**term.keys.options))
        for reading in term.readings[:1] if wanted else ():
            rows = train.cache_rows[reading.source]
            texts = len(np.unique(rows[rows >= 0]))
            if wanted > texts - job.batch_size:
                raise JobError(
                    f"objective {term.keys.name}: negatives {wanted}: teacher {reading.teacher} "
                    f"has features of {texts} different training texts, {job.batch_size} of them "
                    f"in a batch; choose at most {max(0, texts - job.batch_size)}"
                )


def _choose_metric(job: DistillJob, names: Sequence[str]) -> str:
    if job.metric is not None and job.metric not in names:
        raise JobError(f"job key 'metric': {job.metric!r} is not one of {', '.join(names)}")
    return job.metric or names[0]


def _check_class_names(space: LabelSpace, feature: FeatureSpec) -> None:
    """Logits teach by position: the same names in another order would teach the wrong classes."""
    unnamed = tuple(f"LABEL_{number}" for number in range(space.num_labels))
    if space.regression and feature.labels == unnamed:
        return  # columns are in the order that the job names them in
    if space.names and feature.labels and space.names != feature.labels:
        raise JobError(
            f"feature {feature.name!r}: the teacher's classes are {', '.join(feature.labels)}, the "
            f"student's {', '.join(space.names)}; give labels as the teacher's class ids"
        )
