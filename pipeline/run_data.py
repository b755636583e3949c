"""Everything that a distill job names, read, checked and joined before a model loads."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..cache_schemas.errors import CorpusError, InputError, JobError, shown_url
from ..cache_schemas.features import FeatureSpec
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.labels import LabelSpace, label_values
from ..stages.distill.language.pairs import PAIR_METRICS, REWARD_FACTS, REWARD_METRICS
from ..stages.distill.logit_controls import require_classes
from ..stages.distill.measures import is_teacher_measure
from ..stages.distill.objectives.base import Sizes, require_fit
from ..stages.distill.objectives.options import SOURCE
from ..stages.distill.student_source import check_student, layer_count
from ..stages.store.transfer.location import is_local
from .choosing import read_by_rules, select
from .distill_job import DistillJob
from .embedding.data import EmbeddingData, read_embedding_data
from .embedding.task import EmbeddingTask, check_passage_tower
from .label_task import LabelTask
from .labelled_corpus import LabelledCorpus, read_corpus_of, read_labelled
from .language.keys import require_same_masks
from .language.masked_task import MaskedLanguageTask
from .language.pairs import of_different_responses, with_rejected
from .language.task import LanguageTask
from .measured import HeldOut, Measured, compared
from .objective_keys import TeacherKeys
from .sources import Columns, Source, open_sources
from .student_data import StudentData
from .task import Task
from .terms import Reading, Term, readings_of, terms_of


def task_of(job: DistillJob) -> Task:
    """Task of a job."""
    if job.task == "masked_language":
        return MaskedLanguageTask()
    if job.task == "embedding":
        return EmbeddingTask()
    return LanguageTask() if job.task == "language" else LabelTask()


def read_data(job: DistillJob, terms: Sequence[Term]) -> StudentData:
    """Read, check and join everything a job names; raises an InputError for whatever is wrong."""
    if job.task == "embedding":
        return read_embedding_data(job, terms)
    task = task_of(job)
    readings, teachers = readings_of(terms), job.all_teachers
    _refuse_missing(job, readings.values(), teachers)
    own = [_columns_of(job, each, teachers) for each in readings.values()]
    selecting = read_by_rules(job)
    all_columns = Columns.of(job.text_column, [*own, *selecting.values()], job.rejected_columns)
    columns, for_select = all_columns.divided(len(own))
    _check_columns(readings.values(), columns)
    corpus = read_corpus_of(job, job.train, all_columns.names, weighted=True)
    space = task.label_space(job, corpus, terms)
    train = LabelledCorpus(corpus, label_values(corpus, space))
    train = of_different_responses(job, train, columns)
    selection = None
    if job.rules:
        of_teacher = dict(zip(selecting, for_select, strict=True))
        train, selection = select(job, train, space, columns.student, of_teacher)
    features_alone = task.learns_features_alone(space)
    validation = None
    if job.validation:
        needed = columns.names if features_alone else columns.of_responses
        validation = read_labelled(job, job.validation, space, needed)
        validation = of_different_responses(job, validation, columns)
    task.check_labels(job, space, train, validation)
    soft = validation is not None and space.has_probabilities(validation.labels)
    corpora = [train, *([validation] if validation is not None and features_alone else [])]
    held_out = _held_out(job, columns, validation, features_alone)
    opened = {**held_out.texts, **_pairs_held_out(columns, validation)}
    sources = open_sources(readings, teachers, columns, [each.corpus for each in corpora], opened)
    _check_features(terms, space, sources)
    _check_same_masks(job, terms, sources)
    references = {name: sources[name] for name, each in readings.items() if each.response}
    if sources:
        train, validation = _joined(job, sources, references, train, validation, features_alone)
        _check_negatives(job, terms, train)
    if features_alone or references:  # rows may have been skipped
        held_out = _held_out(job, columns, validation, features_alone)
    compared_with = {name: each for name, each in sources.items() if name not in references}
    measured = _measured(job, terms, compared_with, held_out, space)
    metric = _choose_metric(job, _metrics(task.metrics(space, soft), terms, columns), measured)
    read_digests = {
        name: train.of_columns(source.columns).digest()
        for name, source in sources.items()
        if source.columns not in (columns.student, columns.rejected)
    }
    train = with_rejected(train, columns)
    validation = None if validation is None else with_rejected(validation, columns)
    _check_weights(job, train)
    return StudentData(train, validation, space, metric, sources, read_digests, selection, measured)


def figure_names(job: DistillJob, data: StudentData) -> tuple[str, ...]:
    """Names of the figures that a student will have on validation texts."""
    if data.validation is None:
        return ()
    if isinstance(data, EmbeddingData):
        return (*data.metric_names, *data.measured.names, *data.measured.facts)
    soft = data.space.has_probabilities(data.validation.labels)
    own = [*task_of(job).metrics(data.space, soft)]
    if data.validation.rejected is not None:
        of_reference = (*REWARD_METRICS, *REWARD_FACTS) if data.validation.cache_rows else ()
        own += [*PAIR_METRICS, *of_reference]
    return (*own, "loss", *data.measured.names, *data.measured.facts)


def _joined(
    job: DistillJob,
    sources: Mapping[str, Source],
    references: Mapping[str, Source],
    train: LabelledCorpus,
    validation: LabelledCorpus | None,
    features_alone: bool,
) -> tuple[LabelledCorpus, LabelledCorpus | None]:
    """Training rows with the cache rows of all sources; validation rows with those that their
    metrics need: of all, if features are all there is, else of references."""
    themselves = job.of_tokens
    needed = sources if features_alone else references
    own = train.joined(sources, job.skip_bad_rows, may_lack=True, teach_themselves=themselves)
    if validation is None or not needed:
        return own, validation
    return own, validation.joined(needed, job.skip_bad_rows, teach_themselves=themselves)


def _pairs_held_out(
    columns: Columns, validation: LabelledCorpus | None
) -> dict[tuple[int, ...], Corpus]:
    """Validation texts of both responses, by their columns."""
    if validation is None or not columns.rejected:
        return {}
    both = (columns.student, columns.rejected)
    return {own: validation.corpus.of_columns(own) for own in both}


def _check_weights(job: DistillJob, train: LabelledCorpus) -> None:
    """Refuse weights that leave nothing to learn."""
    weights = train.row_weights
    if weights is not None and not weights.any():
        raise CorpusError(
            f"corpus {', '.join(train.corpus.sources)}: weight_column {job.weight_column!r}: all "
            "weights are 0, so nothing is learned; name another, or leave it out"
        )


def _check_columns(readings: Collection[Reading], columns: Columns) -> None:
    """Refuse teachers of tokens that read other texts than the student."""
    for reading, read in zip(readings, columns.sources, strict=True):
        own = columns.rejected if reading.response == "rejected" else columns.student
        if reading.axis is not None and read != own:
            raise JobError(
                f"teacher {reading.teacher}: text_column: a teacher of tokens reads the student's "
                "own columns; leave it out"
            )


def _columns_of(
    job: DistillJob, reading: Reading, teachers: Mapping[str, TeacherKeys]
) -> tuple[str, ...]:
    """The text columns that a source is joined by."""
    if reading.response == "rejected":
        return job.rejected_columns
    return teachers[reading.teacher].text_column or job.text_column


def _metrics(names: Sequence[str], terms: Sequence[Term], columns: Columns) -> list[str]:
    """Metrics of a task, and those of two responses to each prompt, if the corpus has them: first,
    where pairs are learned from."""
    if not columns.rejected:
        return [*names]
    comparing = [term for term in terms if term.compares_pairs]
    referred = any(term.readings for term in comparing)
    of_pairs = [*(REWARD_METRICS if referred else ()), *PAIR_METRICS]
    return [*of_pairs, *names] if comparing else [*names, *of_pairs]


def _refuse_missing(
    job: DistillJob, readings: Collection[Reading], teachers: Mapping[str, TeacherKeys]
) -> None:
    """Refuse what a language model cannot learn without a teacher."""
    for each in readings if job.of_tokens else ():
        if teachers[each.teacher].missing == "refuse":
            continue
        if each.axis != "predictions":
            raise JobError(
                f"missing=without_teacher: teacher {each.teacher}: features of whole texts have to "
                "be there for each row of a language model; skip others with skip_bad_rows=true"
            )
        if each.response is not None:
            raise JobError(
                f"missing=without_teacher: teacher {each.teacher}: is a reference, whose "
                "log-probabilities of both responses have to be there; skip rows without them by "
                "skip_bad_rows=true"
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


def _check_same_masks(
    job: DistillJob, terms: Sequence[Term], sources: Mapping[str, Source]
) -> None:
    """Refuse teachers of masked tokens that have read texts under other masks than the job's."""
    for term in terms if job.task == "masked_language" else ():
        for reading in term.readings if term.reads_predictions else ():
            require_same_masks(sources[reading.source].teacher, job.masks, job.max_length)


def check_inputs(job: DistillJob, terms: Sequence[Term], data: StudentData) -> None:
    """Check features and layers against each other, by the configuration alone of the checkpoint
    that a student begins with. A finished run is read without it: that may be gone."""
    if job.static_source is not None:
        check_student(job)
    if job.tower == "own":
        check_passage_tower(job)
    layers = any("layers" in term.objective.reads.student for term in terms)
    count = layer_count(job) if layers else None
    space, sources = data.space, data.sources
    for term in terms:
        if term.readings and not term.reads_predictions:
            shape, *more = (sources[reading.source].spec.shape for reading in term.readings)
            term.require_inputs(
                Sizes(
                    *(0, space.num_labels, space.regression, shape),
                    more_shapes=tuple(more),
                    layer_dims=() if count is None else (0,) * (count + 1),
                    multilabel=space.multilabel,
                )
            )


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


def _held_out(
    job: DistillJob, columns: Columns, validation: LabelledCorpus | None, all_columns: bool
) -> HeldOut:
    """Validation texts for teachers' answers; `all_columns`: whether `validation` has those of all
    sources. Otherwise others are read again: the student does without, and rows may lack them."""
    if validation is None or job.measure_teacher == "off":
        return HeldOut({}, {})
    corpus = validation.corpus
    if all_columns:
        return HeldOut({own: corpus.of_columns(own) for own in {*columns.sources}}, {})
    others = {*columns.sources} - {columns.student}
    corpus = corpus.of_columns(columns.student)
    texts = {columns.student: corpus}
    if not others:
        return HeldOut(texts, {})
    try:
        beside = read_corpus_of(job, job.validation, columns.names)
    except CorpusError as error:
        return HeldOut(texts, dict.fromkeys(others, str(error)))
    if not np.array_equal(beside.of_columns(columns.student).keys(), corpus.keys()):
        reason = "some validation rows lack its text columns"
        return HeldOut(texts, dict.fromkeys(others, reason))
    return HeldOut(texts | {own: beside.of_columns(own) for own in others}, {})


def _measured(
    job: DistillJob,
    terms: Sequence[Term],
    sources: Mapping[str, Source],
    held_out: HeldOut,
    space: LabelSpace,
) -> Measured:
    """What the student is compared with: what it learns from; or, if it is undistilled beside a
    teacher, what it would learn from."""
    if not held_out.texts:
        return Measured()
    if job.parsed_control.name != "undistilled" or not job.all_teachers:
        if job.measure_teacher == "require" and not sources:
            raise JobError("measure_teacher=require: no teacher is read; leave it out")
        return compared(job, terms, sources, held_out, space)
    try:
        return _measured_without_learning(job, held_out, space)
    except InputError as error:
        # An undistilled student needs no cache: there may be none.
        if job.measure_teacher == "require":
            raise
        return Measured(reasons={SOURCE: str(error)})


def _measured_without_learning(job: DistillJob, held_out: HeldOut, space: LabelSpace) -> Measured:
    teachers = job.all_teachers
    afar = [keys.cache for keys in teachers.values() if not is_local(str(keys.cache))]
    if afar and job.measure_teacher != "require":
        raise JobError(
            f"cache {shown_url(str(afar[0]))}: is at a URL; measure_teacher=require reads it for "
            "an undistilled student"
        )
    terms = terms_of(job.model_copy(update={"control": "none"}))
    readings = {name: each for name, each in readings_of(terms).items() if not each.response}
    own = [teachers[each.teacher].text_column or job.text_column for each in readings.values()]
    columns = Columns.of(job.text_column, own)
    texts = {columns.student: next(iter(held_out.texts.values()))}
    others = dict.fromkeys(
        {*columns.sources} - {columns.student},
        "reads columns of its own, which an undistilled student does without",
    )
    sources = open_sources(readings, teachers, columns, [], texts)
    of_tokens = [each.teacher for each in sources.values() if each.spec.axis is not None]
    if job.task == "masked_language":
        for teacher in of_tokens:
            require_same_masks(teacher, job.masks, job.max_length)
    elif job.recipe(of_tokens, job.text_column) != job.recipe([], job.text_column):
        raise JobError("its texts are formatted otherwise than those of the undistilled student")
    return compared(job, terms, sources, HeldOut(texts, others), space)


def _choose_metric(job: DistillJob, names: Sequence[str], measured: Measured) -> str:
    known = [*names, *measured.names]
    if job.metric is not None and job.metric not in known:
        if is_teacher_measure(job.metric):
            raise measured.refuse(job.metric)
        raise JobError(f"job key 'metric': {job.metric!r} is not one of {', '.join(known)}")
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
