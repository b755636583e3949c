"""The keys of a `distill` job."""

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ..cache_schemas.errors import JobError
from ..stages.corpus.labels import Task
from ..stages.distill.controls import CONTROLS_SHOWN, Control, parse_control
from ..stages.distill.objectives import WITHOUT_TEACHER
from ..stages.distill.objectives.options import SOURCE, TokensOptions
from ..stages.distill.settings import (
    SCRATCH,
    SCRATCH_LEARNING_RATE,
    STATIC,
    STATIC_LEARNING_RATE,
    LoraSettings,
    Optimizer,
    StudentSettings,
    TrainingSettings,
)
from .choosing_keys import SELECT_RULES, AnySelectRule
from .embedding.keys import EmbeddingKeys, with_embedding_defaults
from .jobs import (
    Corpora,
    Job,
    LabelColumns,
    Names,
    Separator,
    TextFormatKeys,
    made_rules,
    make,
    require_two_responses,
    unknown_key,
)
from .language.keys import LanguageKeys, MaskKeys, with_token_teacher
from .objective_keys import (
    ONCE_SHARED,
    CacheKeys,
    ObjectiveKeys,
    StageKeys,
    TeacherKeys,
    WithOptions,
    complete_options,
    options_class,
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]
_OF_TOKENS = ("language", "masked_language")
"""Tasks of language models."""
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]


class CorpusKeys(TextFormatKeys):
    """Training data."""

    train: Corpora = Field(min_length=1, description="files or folders to train on")
    validation: Corpora = Field(
        default=(), description="files or folders that the best epoch is chosen on"
    )
    text_column: Names = Field(
        min_length=1,
        description="columns of the text segments, in order; a name ending in ? may be blank",
    )
    label_column: LabelColumns | None = Field(
        default=None,
        description="column of labels, or of lists of labels, or a list of columns, one for each "
        "class or output; may have gaps; not needed for objective=feature",
    )
    label_separator: Separator | None = Field(
        default=None,
        description="what separates several labels in a cell of text, such as ';' in a CSV file",
    )
    rejected_column: str | None = Field(
        default=None,
        min_length=1,
        description="column of a rejected response to each prompt (task=language: objectives dpo "
        "and plad, metrics of preferences); the preferred one is the last of text_column",
    )
    weight_column: str | None = Field(
        default=None,
        min_length=1,
        description="column of a weight for each training row, a number of 0 or more (task="
        "language): losses are weighted means",
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum rows to read from each file")
    skip_bad_rows: bool = Field(default=False, description="skip invalid rows and list them")
    task: Task | Literal["language", "masked_language", "embedding"] | None = Field(
        default=None,
        description="classification, multilabel (any number of classes per text) or regression "
        "(default: inferred from the labels), or language: the student is a causal language model "
        "and learns next-token prediction, or masked_language: a masked language model, which "
        "learns masked tokens, or embedding: each text column is a text that is embedded by "
        "itself, such as a query and a passage",
    )
    num_labels: int | None = Field(
        default=None, ge=1, description="number of classes or outputs; default: as in the labels"
    )
    metric: str | None = Field(
        default=None,
        description="metric that chooses the best epoch; default accuracy, micro_f1 or pearson; "
        "with a teacher's answers on validation texts also agreement, teacher_kl, ...",
    )

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of labels: none, one, or several."""
        named = self.label_column
        return named if isinstance(named, tuple) else () if named is None else (named,)


class DistillJob(
    CorpusKeys,
    CacheKeys,
    StudentSettings,
    LoraSettings,
    LanguageKeys,
    MaskKeys,
    EmbeddingKeys,
    TrainingSettings,
    WithOptions,
):
    """Task, objective and output."""

    output: Path = Field(description="folder to write the run to")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=120,
        description="name of the run in reports; default: the settings that differ",
    )
    objective: str | None = Field(
        default="armada",
        description="armada, kd, feature, tokens (language models) or another of `armada "
        "objectives`, whose options are keys of the job as well (`--keys --objective NAME`)",
    )
    teachers: dict[str, TeacherKeys] | None = Field(
        default=None,
        description="several teachers by name, each with {cache, teacher, feature, text_column, "
        "control, placement}, instead of cache, teacher and feature",
    )
    objectives: tuple[ObjectiveKeys, ...] | None = Field(
        default=None,
        min_length=1,
        description="several objectives, each with {name, teacher, feature, weight} and its own "
        "options, instead of objective: their weighted sum",
    )
    select: tuple[AnySelectRule, ...] | None = Field(
        default=None,
        description="rules that choose among the training rows by cached features, one after "
        "another, each {rule, ...}: difference, learnability, balance, entropy, confidence, "
        "score, agreement or domain_gap",
    )
    stages: tuple[StageKeys, ...] | None = Field(
        default=None,
        min_length=1,
        description="parts of a run in which only some of the objectives are computed, each with "
        "{until, objectives}",
    )
    control: str = Field(
        default="none",
        description=f"{CONTROLS_SHOWN}; permuted-classes, class-means and smoothed are for class "
        "logits",
    )
    measure_teacher: Literal["auto", "off", "require"] = Field(
        default="auto",
        description="compare the student with its teachers' cached answers on validation texts "
        "(agreement, teacher_kl, ...): auto: with those that are cached; off; require: all must be",
    )
    seed: Seed | Seeds = Field(
        default=0, description="one seed, or a list of seeds: one run each, and their spread"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto, cpu or cuda; CUDA_VISIBLE_DEVICES selects one of several; students are "
        "not trained on mps or xpu",
    )
    resume: bool = Field(default=False, description="continue an unfinished run in `output`")
    push_to_hub: str | None = Field(
        default=None,
        description="USER/NAME of a model repository on the Hub to upload the student to at the "
        "end; created as private if it does not exist",
    )

    @field_validator("control")
    @classmethod
    def _known_control(cls, value: str) -> str:
        parse_control(value)
        return value

    @field_validator("seed")
    @classmethod
    def _no_seed_twice(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError("one seed is given twice")
        return value

    @field_validator("push_to_hub")
    @classmethod
    def _names_a_repository(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]{1,96}", value, re.ASCII):
            raise ValueError(f"{value!r} is not USER/NAME of letters, digits, '-', '_' and '.'")
        return value

    @model_validator(mode="before")
    @classmethod
    def _random_weights_learn_faster(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping) or "learning_rate" in keys:
            return keys
        if (optimizer := keys.get("optimizer")) in get_args(Optimizer):
            raise JobError(
                f"job key 'learning_rate' is missing: the default is for AdamW, and a rate for "
                f"optimizer={optimizer} is often a thousand times as large; name one"
            )
        from_scratch = keys.get("student_from_scratch") in (True, "true")
        if from_scratch or str(keys.get("student", "")).startswith(SCRATCH):
            return {**keys, "learning_rate": SCRATCH_LEARNING_RATE}
        if str(keys.get("student", "")).startswith(STATIC):
            return {**keys, "learning_rate": STATIC_LEARNING_RATE}
        return keys

    @model_validator(mode="before")
    @classmethod
    def _others_are_options(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping):
            return keys
        if keys.get("task") == "embedding":
            keys = with_embedding_defaults(keys)
        own = cls._with_options(with_token_teacher(keys, cls.model_fields))
        if not isinstance(own["options"], Mapping):
            return own
        name = own.get("objective", cls.model_fields["objective"].default)
        if own.get("objectives") is None:
            if isinstance(name, str):
                if own.get("task") not in _OF_TOKENS:
                    _refuse_token_options(name, own["options"])
                own["options"] = complete_options(
                    name, own["options"], cls.model_fields, once_shared=True
                )
            return own
        for key in ({"objective"} if own.get("objective") else set()) | own["options"].keys():
            if key in ONCE_SHARED or key in cls.model_fields:
                raise JobError(
                    f"job key {key!r}: is for a single objective; with several, set it for each"
                )
            raise JobError(unknown_key("job", key, cls.model_fields))
        return {**own, "objective": None}

    @field_validator("teachers", mode="before")
    @classmethod
    def _each_teacher(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if not value:
            raise ValueError("is empty; name a teacher, or leave it out")
        for name in value:
            if not re.fullmatch(r"[\w-]{1,60}", str(name), re.ASCII):
                raise ValueError(f"{name!r} is not a name of letters, digits, '-' and '_'")
        return {
            str(name): _made(TeacherKeys, keys, f"teacher {name}") for name, keys in value.items()
        }

    @field_validator("objectives", mode="before")
    @classmethod
    def _each_objective(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            _made(ObjectiveKeys, keys, f"objectives.{number}") for number, keys in enumerate(value)
        )

    @field_validator("select", mode="before")
    @classmethod
    def _each_rule(cls, value: Any) -> Any:
        return made_rules(value, SELECT_RULES, "select")

    @field_validator("stages", mode="before")
    @classmethod
    def _each_stage(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(_made(StageKeys, keys, f"stages.{n}") for n, keys in enumerate(value))

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> "DistillJob":
        if self.stages is None:
            return self
        if self.objectives is None:
            raise ValueError("job key 'stages': needs objectives; name each in `objectives` first")
        ends = [stage.until for stage in self.stages]
        for number, (before, end) in enumerate(pairwise(ends), start=1):
            if end <= before:
                raise ValueError(
                    f"job key 'stages': stage {number} ends at {end:g} of the steps, the one "
                    f"before at {before:g}; let each end later"
                )
        if ends[-1] != 1:
            raise ValueError(
                f"job key 'stages': the last ends at {ends[-1]:g} of the steps; leave its until out"
            )
        return self

    @model_validator(mode="after")
    def _needs_cache(self) -> "DistillJob":
        if self.teachers is not None:
            for key in ("cache", "teacher", "feature", "expect_digest", "missing"):
                if getattr(self, key) != CacheKeys.model_fields[key].default:
                    raise ValueError(
                        f"job keys 'teachers' and {key!r}: set {key} inside the teacher it belongs "
                        "to"
                    )
        elif self.cache is None and self.distilled and not self._reads_no_teacher:
            raise ValueError(
                "job key 'cache' is missing; only control=undistilled runs without one"
            )
        return self

    @model_validator(mode="after")
    def _adapts_a_whole_checkpoint(self) -> "DistillJob":
        if self.lora_rank is None:
            return self
        if self.student.startswith(SCRATCH) or self.student_from_scratch:
            raise ValueError(
                "lora_rank: a student from scratch has no pretrained weights to adapt; leave it out"
            )
        if self.student_layers is not None:
            raise ValueError(
                "student_layers: adapters refer to a whole checkpoint; save the shortened one first"
            )
        return self

    @model_validator(mode="after")
    def _is_no_transformer(self) -> "DistillJob":
        if self.static_source is None:
            return self
        if self.of_tokens:
            raise ValueError(
                f"task {self.task!r}: a static student reads whole texts and predicts no tokens; "
                "use a transformer"
            )
        for key in ("lora_rank", "gradient_checkpointing", "compile_student", "shard_student"):
            if getattr(self, key):
                raise ValueError(
                    f"{key}: a static student is a table of token embeddings, with no layers; "
                    "leave it out"
                )
        if self.precision == "fp16":
            raise ValueError(
                "precision 'fp16': scaled gradients are not for a static student; use float32 or "
                "bf16"
            )
        return self

    @model_validator(mode="after")
    def _weighs_texts(self) -> "DistillJob":
        if self.weight_column is not None and self.task != "language":
            raise ValueError("weight_column: is for language models; set task=language")
        return self

    @model_validator(mode="after")
    def _prefers_one_of_two_responses(self) -> "DistillJob":
        if self.rejected_column is None:
            return self
        if self.task != "language":
            raise ValueError("rejected_column: is for language models; set task=language")
        require_two_responses(self.text_column, self.rejected_column)
        if self.packing != "none":
            raise ValueError(
                f"packing {self.packing!r}: a row has two responses (rejected_column); use "
                "packing=none"
            )
        if self.responses == "generated":
            raise ValueError(
                "responses=generated: is for a teacher's responses alone; export them to a corpus "
                "(`armada corpus`) to prefer them to others, or leave rejected_column out"
            )
        return self

    @property
    def rejected_columns(self) -> tuple[str, ...]:
        """The text columns of the rejected responses; none without one."""
        if self.rejected_column is None:
            return ()
        return (*self.text_column[:-1], self.rejected_column)

    @model_validator(mode="after")
    def _parts_labels(self) -> "DistillJob":
        if self.label_separator is not None and self.label_column is None:
            raise ValueError(
                f"job key 'label_separator': {self.label_separator!r} parts labels, and job key "
                "'label_column' is missing; name it, or leave both out"
            )
        return self

    @model_validator(mode="after")
    def _measures_something(self) -> "DistillJob":
        if self.metric is not None and not self.validation:
            raise ValueError(
                f"job key 'metric': {self.metric!r} needs a validation set to choose the best "
                "epoch; name one in `validation`, or leave metric out"
            )
        if self.measure_teacher == "require" and not self.validation:
            raise ValueError(
                "measure_teacher=require: is about validation texts; name some in `validation`, or "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _selects_by_known_teachers(self) -> "DistillJob":
        known = self.all_teachers
        for number, rule in enumerate(self.rules):
            for name in rule.teachers:
                if name not in known:
                    raise ValueError(
                        f"select.{number} ({rule.name}): teacher {name!r} is not in the job; "
                        f"choose one of {', '.join(known) or 'none'}"
                    )
        return self

    @property
    def rules(self) -> tuple[AnySelectRule, ...]:
        """The rules that choose among the training rows."""
        return self.select or ()

    @model_validator(mode="after")
    def _draws_whole_rows(self) -> "DistillJob":
        drawing = [rule.name for rule in self.rules if rule.name == "domain_gap"]
        placements = {self.placement, *(keys.placement for keys in self.all_teachers.values())}
        if len(drawing) > 1:
            raise ValueError("select: domain_gap is there twice; name it once")
        if drawing and "streamed" in placements:
            raise ValueError(
                "select: domain_gap draws rows in random order, and placement=streamed follows the "
                "shards; use another placement"
            )
        if drawing and self.packing != "none":
            raise ValueError(
                f"select: domain_gap draws single texts; packing={self.packing} joins them: use "
                "packing=none"
            )
        return self

    @property
    def all_teachers(self) -> dict[str, TeacherKeys]:
        """All teachers by name, also a single one; empty without a cache."""
        if self.teachers is not None:
            return {
                name: keys
                if "control" in keys.model_fields_set
                else keys.model_copy(update={"control": self.control})
                for name, keys in self.teachers.items()
            }
        if self.cache is None:
            return {}
        own = {key: getattr(self, key) for key in CacheKeys.model_fields}
        control = "none" if self.parsed_control.name == "undistilled" else self.control
        return {SOURCE: TeacherKeys(**own, control=control)}

    @property
    def all_objectives(self) -> tuple[ObjectiveKeys, ...]:
        """Also the one of a job that has one."""
        if self.objectives is not None:
            return self.objectives
        assert self.objective is not None
        return (ObjectiveKeys(name=self.objective, feature=self.feature, options=self.options),)

    @property
    def of_tokens(self) -> bool:
        """Whether the student is a language model, causal or masked."""
        return self.task in _OF_TOKENS

    @property
    def objective_name(self) -> str:
        """Name of the objective, or of several."""
        return "+".join(keys.name for keys in self.all_objectives)

    @property
    def parsed_control(self) -> Control:
        """The control with its parameter."""
        return parse_control(self.control)

    @property
    def distilled(self) -> bool:
        """Whether a teacher's features are read."""
        names = {keys.name for keys in self.all_objectives}
        return self.parsed_control.name != "undistilled" and names != {"undistilled"}

    @property
    def _reads_no_teacher(self) -> bool:
        return {keys.name for keys in self.all_objectives} <= WITHOUT_TEACHER

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds to run."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)


def _refuse_token_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of tokens for other tasks than language, unless the objective has them too."""
    known = None if name == "tokens" else options_class(name)
    own = {"alpha", *(known.model_fields if known else ())}
    for key, field in TokensOptions.model_fields.items():
        if key not in own and options.get(key, field.default) != field.default:
            raise JobError(f"job key {key!r}: is for language models; set task=language")


def _made(model: type[Job], keys: Any, what: str) -> Any:
    """Nested keys, whose errors name their position; anything but a mapping is refused later."""
    return make(model, keys, what) if isinstance(keys, Mapping) else keys
