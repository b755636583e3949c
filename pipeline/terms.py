"""The objectives of a job, found and fitted to its teachers, before anything of these is read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..cache_schemas.errors import JobError
from ..cache_schemas.features import GENERATED_IDS, TOKENS, AxisName
from ..stages.corpus.labels import LabelSpace
from ..stages.distill.model import attention_dims, layer_dims
from ..stages.distill.objectives import OBJECTIVES
from ..stages.distill.objectives.base import (
    Objective,
    Reads,
    Shape,
    Sizes,
    StudentTensor,
    require_attention,
    require_layers,
)
from ..stages.distill.objectives.sum import Stage, SummedObjective
from .distill_job import DistillJob
from .embedding.checks import check_embedding, check_embedding_objective
from .language.keys import LanguageKeys, MaskKeys
from .objective_keys import ObjectiveKeys, TeacherKeys

UNDISTILLED = ObjectiveKeys(name="undistilled")


Response = Literal["preferred", "rejected"]


@dataclass(frozen=True, slots=True)
class Reading:
    """A feature of a teacher that objectives read, under the name of a source: the teacher's, or
    `teacher.feature` where several of one teacher are read. `feature` is None where the job names
    none and the teacher's only one is meant."""

    source: str
    teacher: str
    feature: str | None
    logits_for: str | None = None
    """The objective that takes its numbers for logits of the student's classes, if one does."""
    axis: AxisName | None = None
    """Axis of the feature: `predictions`, a row per predicted token; `tokens`, a row per token;
    None: one per text."""
    response: Response | None = None
    """Which response it is of, where objectives compare two: a feature of its own tokens."""


@dataclass(frozen=True, slots=True)
class Term:
    """One objective of a job, what its losses are called, and what it reads."""

    label: str
    keys: ObjectiveKeys
    objective: type[Objective]
    readings: tuple[Reading, ...]

    def build(self, sizes: Sizes) -> Objective:
        """A new, initialised objective. Raises JobError."""
        options = self.options
        require_layers(self.keys.name, self.objective.layers_of(options), sizes)
        require_attention(self.keys.name, self.objective.attention_of(options), sizes)
        built = self.objective(options, sizes)
        built.label = self.label
        built.sources = self.sources
        return built

    def require_options(self, sizes: Sizes) -> None:
        """Raises JobError for options without a meaning for such a student's task."""
        self.objective.require_options(self.keys.name, self.options, sizes)

    def require_inputs(self, sizes: Sizes) -> None:
        """Raises JobError for features and layers that do not fit each other, of a student of which
        its configuration is known."""
        self.objective.require_inputs(self.keys.name, self.options, sizes)

    @property
    def options(self) -> Any:
        """Options of the objective."""
        return self.objective.Options(**self.keys.options)

    @property
    def reads_predictions(self) -> bool:
        """Whether what it reads of teachers is about predicted tokens."""
        return self.objective.reads.axis == "predictions"

    @property
    def compares_pairs(self) -> bool:
        """Whether it compares two responses to each prompt."""
        return "pairs" in self.objective.reads.student

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of its inputs in a batch. Token predictions are decoded by its options, so they
        have its own name."""
        return (self.label,) if self.reads_predictions else tuple(r.source for r in self.readings)


def terms_of(job: DistillJob) -> tuple[Term, ...]:
    """Objectives of a job. Raises JobError for unknown ones, or if they do not fit its teachers and
    controls."""
    keys = _objectives(job)
    classes = [OBJECTIVES.load(each.name) for each in keys]
    teachers = job.all_teachers
    named = [_teachers(*pair, teachers) for pair in zip(keys, classes, strict=True)]
    given = [
        tuple(
            _with_teacher(feature, teacher, teachers)
            for teacher in found
            for feature in _features(own, objective, teachers[teacher], job.responses)
        )
        for own, objective, found in zip(keys, classes, named, strict=True)
    ]
    readings = list(_readings(keys, classes, given))
    if job.teachers is not None and keys != (UNDISTILLED,):
        chosen_by = {name for rule in job.rules for name in rule.teachers}
        read = {reading.teacher for each in readings for reading in each}
        for name in teachers.keys() - read - chosen_by:
            raise JobError(f"teacher {name}: no objective reads it; leave it out")
    labels = _labels(keys, [found[0] if len(found) == 1 else None for found in named])
    terms = tuple(map(Term, labels, keys, classes, readings))
    _check_stages(terms, job)
    for term in terms:
        _check_student(term, job)
        _check_controls(term, teachers)
        if job.shard_student and term.keys.weight == "learned":
            raise JobError(
                f"objective {term.keys.name}: learned weights are not sharded; leave out weight or "
                "shard_student"
            )
        if term.keys.weight == "learned" and not term.objective.reads.nonnegative:
            raise JobError(
                f"objective {term.keys.name}: weight=learned: its loss may be below 0, and such a "
                "weight would grow without end; give it a number"
            )
        if job.optimizer == "dot" and (term.objective.reads.task or is_the_only(terms)):
            _require_task_weight(term)
        term.objective.require_teachers(term.keys.name, term.options, len(term.readings))
        if job.batch_size < term.objective.reads.least_rows:
            raise JobError(
                f"job key 'batch_size': {job.batch_size}; objective {term.keys.name} needs at "
                f"least {term.objective.reads.least_rows} examples per batch"
            )
    return terms


def readings_of(terms: Sequence[Term]) -> dict[str, Reading]:
    """Everything that is read, once each, by the name of the source."""
    every = [reading for term in terms for reading in term.readings]
    every.sort(
        key=lambda reading: reading.logits_for is not None
    )  # these are more specific; order is kept
    found = {reading.source: reading for reading in every}
    return {reading.source: found[reading.source] for term in terms for reading in term.readings}


def sizes_of(student: Any, space: LabelSpace, dropout: float, terms: Sequence[Term]) -> Sizes:
    """Sizes of a student, and of its layers if some objective reads them. Raises
    StudentSourceError."""
    read = {tensor for term in terms for tensor in term.objective.reads.student}
    return Sizes(
        pooled_dim=student.dim,
        num_labels=space.num_labels,
        regression=space.regression,
        feature_shape=None,
        dropout=dropout,
        layer_dims=layer_dims(student) if "layers" in read else (),
        multilabel=space.multilabel,
        attention_dims=attention_dims(student) if "attention" in read else (),
    )


def build_objective(
    terms: Sequence[Term],
    sizes: Sizes,
    shapes: Mapping[str, Shape],
    task: StudentTensor = "output",
    stages: Sequence[Stage] = (),
) -> Objective:
    """The objective of a run; `shapes` are those of the features of all sources, `task` the student
    outputs that the task scores. A single one with weight 1 is returned as it is; several, or one
    beside a language model's own token loss, as a sum."""
    parts = [term.build(_sizes_of(term, sizes, shapes)) for term in terms]
    weights = [term.keys.weight for term in terms]
    if is_the_only(terms):
        parts[0].label = ""
        if task == "output" or task in parts[0].reads.student:
            return parts[0]
    return SummedObjective(parts, weights, sizes, stages)


def _sizes_of(term: Term, sizes: Sizes, shapes: Mapping[str, Shape]) -> Sizes:
    own = [] if term.reads_predictions else [shapes[reading.source] for reading in term.readings]
    return replace(sizes, feature_shape=own[0], more_shapes=tuple(own[1:])) if own else sizes


def _objectives(job: DistillJob) -> tuple[ObjectiveKeys, ...]:
    if job.task != "language":
        _refuse_language_keys(job)
    elif job.responses == "generated":
        _check_generated(job)
    _check_masks(job)
    check_embedding(job)
    plain = job.parsed_control.name == "undistilled" or job.objective == "undistilled"
    return (UNDISTILLED,) if plain else job.all_objectives


def _refuse_language_keys(job: DistillJob) -> None:
    """Raises JobError for keys of language models in a job of any other task, where they have no
    effect."""
    for key, field in LanguageKeys.model_fields.items():
        if getattr(job, key) != field.default:
            raise JobError(f"job key {key!r}: is for language models; set task=language")


def _check_masks(job: DistillJob) -> None:
    """Raises JobError for masks in a job of another task, and for what masked language models do
    without."""
    if job.task == "masked_language":
        _ = job.masks  # raises JobError
        if job.lora_rank is not None:
            raise JobError("lora_rank: adapters are not for masked language models; leave it out")
        return
    for key, field in MaskKeys.model_fields.items():
        if getattr(job, key) != field.default:
            raise JobError(
                f"job key {key!r}: is for masked language models; set task=masked_language"
            )


def _check_generated(job: DistillJob) -> None:
    if job.objective_name != "tokens":
        raise JobError("responses=generated: is only for objective tokens")
    (keys,) = job.all_objectives
    if keys.options.get("cross_tokenizer"):
        raise JobError(
            "responses=generated: needs the teacher's tokenizer; use a student that has it"
        )


def _teachers(
    keys: ObjectiveKeys, objective: type[Objective], teachers: Mapping[str, TeacherKeys]
) -> tuple[str, ...]:
    """The names of the teachers that an objective reads."""
    if objective.reads.features == 0:
        if keys.asked_teachers or keys.asked_features:
            raise JobError(
                f"objective {keys.name}: reads no teacher; leave teacher and feature out"
            )
        return ()
    names = ", ".join(teachers)
    several = objective.reads.several_teachers
    found = keys.asked_teachers or (tuple(teachers) if several or len(teachers) == 1 else ())
    if not found:
        raise JobError(f"objective {keys.name}: names no teacher; choose one of {names or 'none'}")
    for name in found:
        if name not in teachers:
            raise JobError(
                f"objective {keys.name}: teacher {name!r} is not in the job; choose one of "
                f"{names or 'none'}"
            )
    if several and len(found) < 2:
        raise JobError(
            f"objective {keys.name}: reads several teachers, and there is one, {found[0]}; name "
            "more in `teachers`, or choose an objective of one"
        )
    if len(found) > 1 and not several:
        raise JobError(
            f"objective {keys.name}: reads one teacher, but {len(found)} are named; choose one, or "
            "multi_kd"
        )
    return found


def _readings(
    keys: Sequence[ObjectiveKeys],
    classes: Sequence[type[Objective]],
    given: Sequence[tuple[tuple[str, str | None], ...]],
) -> Iterator[tuple[Reading, ...]]:
    """What each objective reads: features, each with its teacher."""
    of_teacher: dict[str, set[str | None]] = {}
    for teacher, feature in (each for features in given for each in features):
        of_teacher.setdefault(teacher, set()).add(feature)
    for own, objective, features in zip(keys, classes, given, strict=True):
        logits_for = own.name if objective.reads.classes else None
        pairs = "pairs" in objective.reads.student
        responses: tuple[Response | None, ...] = ("preferred", "rejected") if pairs else (None,)
        yield tuple(
            Reading(
                _source(teacher, feature, len(of_teacher[teacher]) > 1)
                + (".rejected" if response == "rejected" else ""),
                teacher,
                feature,
                logits_for,
                objective.reads.axis,
                response,
            )
            for teacher, feature in features
            for response in responses
        )


def _with_teacher(
    feature: str | None, teacher: str, teachers: Mapping[str, TeacherKeys]
) -> tuple[str, str | None]:
    """Teacher and feature; `NAME.FEATURE` is that of another teacher of the job."""
    other, _, rest = (feature or "").partition(".")
    return (other, rest) if rest and other in teachers else (teacher, feature)


def _features(
    keys: ObjectiveKeys, objective: type[Objective], teacher: TeacherKeys, responses: str
) -> tuple[str | None, ...]:
    reads = objective.reads
    if reads.axis == "predictions" and responses == "generated":
        return (GENERATED_IDS,)
    found = keys.asked_features or (teacher.feature or reads.default_feature,)
    if reads.several_teachers and len(found) != 1:
        raise JobError(
            f"objective {keys.name}: reads one feature of each teacher, but {len(found)} are named"
        )
    if reads.features is not None and len(found) != reads.features:
        raise JobError(
            f"objective {keys.name}: reads {reads.features} features of a teacher, but "
            f"{len(found)} are named"
        )
    return found


def _source(teacher: str, feature: str | None, several: bool) -> str:
    return f"{teacher}.{feature or 'feature'}" if several else teacher


def _labels(keys: Sequence[ObjectiveKeys], named: Sequence[str | None]) -> list[str]:
    """Names of the objectives; with that of the teacher, and then a number, where one comes
    twice."""
    names = [each.name for each in keys]
    wide = [
        f"{name}-{teacher}" if names.count(name) > 1 and teacher else name
        for name, teacher in zip(names, named, strict=True)
    ]
    return [
        label if wide.count(label) == 1 else f"{label}-{wide[: number + 1].count(label)}"
        for number, label in enumerate(wide)
    ]


def _check_student(term: Term, job: DistillJob) -> None:
    """Raises JobError for an objective that reads what this kind of student does not have."""
    name, reads = term.keys.name, term.objective.reads
    _check_static_student(name, reads, job)
    if "attention" in reads.student and job.compile_student:
        raise JobError(
            f"compile_student: objective {name} records queries, keys and values, which compiled "
            "layers do not hand out; leave it out"
        )
    if job.task == "masked_language":
        _check_masked_student(name, reads)
    elif job.task == "embedding":
        check_embedding_objective(name, reads, term.objective.has_aligner, job)
    elif "candidates" in reads.student:
        raise JobError(f"objective {name}: compares queries and passages; set task=embedding")
    elif job.task == "language":
        _check_language_student(term, job)
    elif "tokens" in reads.student <= {"layers", "tokens", "pairs"}:
        raise JobError(f"objective {name}: is for language models; set task=language")


def _check_language_student(term: Term, job: DistillJob) -> None:
    name, reads = term.keys.name, term.objective.reads
    if term.compares_pairs and job.rejected_column is None:
        raise JobError(
            f"objective {name}: compares two responses to each prompt; name the column of the "
            "rejected one in rejected_column (the preferred one is the last of text_column)"
        )
    if "tokens" in reads.student and "layers" not in reads.student:
        return
    if job.weight_column is not None:
        raise JobError(
            f"weight_column {job.weight_column!r}: objective {name} compares whole texts, and "
            "these have no weights; use tokens, dpo, plad or undistilled, or leave it out"
        )
    if job.label_column is None and not reads.headless:
        raise JobError(
            f"objective {name}: needs labels, and job key 'label_column' is missing; without "
            "labels, use tokens, feature or armada"
        )
    if job.packing != "none":
        raise JobError(
            f"packing {job.packing!r}: objective {name} needs one text per row; use packing=none, "
            "or objective tokens alone"
        )


def _check_static_student(name: str, reads: Reads, job: DistillJob) -> None:
    inner = reads.student & {"layers", "attention"}
    if job.static_source is not None and inner:
        raise JobError(
            f"objective {name}: reads the student's {' and '.join(sorted(inner))}, and a static "
            "student has none; use objectives of whole texts, such as feature, rkd or infonce"
        )


def _check_masked_student(name: str, reads: Reads) -> None:
    if "pairs" in reads.student:
        raise JobError(
            f"objective {name}: compares two responses to each prompt, and a masked language model "
            "has none; use tokens"
        )
    if not reads.student & {"tokens", "layers", "attention"}:
        raise JobError(
            f"objective {name}: reads what a masked language model does not learn (labels, or a "
            "feature of the whole text); use tokens, and layers or token states beside it"
        )


def _check_stages(terms: Sequence[Term], job: DistillJob) -> None:
    """Raises JobError for stages of objectives that are not there, and objectives of no stage."""
    if job.stages is None or job.parsed_control.name == "undistilled":
        return
    labels = [term.label for term in terms]
    found: set[str] = set()
    for number, stage in enumerate(job.stages):
        for name in stage.objectives:
            if name not in labels:
                raise JobError(
                    f"stages.{number} key 'objectives': {name!r} is none of the job's; choose from "
                    f"{', '.join(labels)}"
                )
        found |= set(stage.objectives)
    for label in labels:
        if label not in found:
            raise JobError(f"objective {label}: is in no stage; add it to one, or leave it out")


def stages_of(terms: Sequence[Term], job: DistillJob) -> tuple[Stage, ...]:
    """The stages of a job's objectives; none where it names none."""
    if job.parsed_control.name == "undistilled":
        return ()
    return tuple(
        Stage(stage.until, frozenset(n for n, t in enumerate(terms) if t.label in stage.objectives))
        for stage in job.stages or ()
    )


def is_the_only(terms: Sequence[Term]) -> bool:
    """Whether an objective is the loss by itself, and not one of a sum."""
    return [term.keys.weight for term in terms] == [1]


def _require_task_weight(term: Term) -> None:
    if term.objective.task_weight is Objective.task_weight:
        raise JobError(
            f"optimizer=dot: objective {term.keys.name} does not tell the weight of the task in "
            "its loss; use another optimizer or objective"
        )


def _check_controls(term: Term, teachers: Mapping[str, TeacherKeys]) -> None:
    for reading in term.readings:
        parsed = teachers[reading.teacher].parsed_control
        control = parsed.name
        if parsed.of_logits and not term.objective.reads.classes:
            raise JobError(
                f"control {control}: is for class logits, and objective {term.keys.name!r} reads "
                "other features; use it with kd, or choose another control"
            )
        if term.objective.reads.axis == TOKENS and control != "none":
            raise JobError(
                f"control {teachers[reading.teacher].control}: objective {term.keys.name} compares "
                "token with token, and another text has others; use control=undistilled"
            )
        if term.reads_predictions and control != "none":
            raise JobError(
                f"control {teachers[reading.teacher].control}: needs a cached feature; objective "
                f"{term.keys.name} uses none; use control=undistilled, or set the control of each "
                "teacher"
            )
        if control == "random-aligner" and not term.objective.has_aligner:
            raise JobError(
                f"control random-aligner: objective {term.keys.name!r} has no aligner; choose "
                "another"
            )
