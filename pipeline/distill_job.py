"""The keys of a `distill` job."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..cache_schemas.locations import Source
from ..stages.corpus.labels import Task
from ..stages.distill.controls import Control, parse_control
from ..stages.distill.objectives.base import ObjectiveSettings
from ..stages.distill.settings import SCRATCH_LEARNING_RATE, TrainingSettings
from ..stages.distill.student import StudentSettings
from ..stages.distill.student_source import SCRATCH
from ..stages.store.transfer.connection import is_local, local_path
from .byte_counts import ByteCount
from .corpus_keys import TextFormatKeys
from .jobs import Job
from .language.keys import LanguageKeys

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]


class CorpusKeys(TextFormatKeys):
    """What to train on."""

    train: tuple[Source, ...] = Field(min_length=1, description="files or folders to train on")
    validation: tuple[Source, ...] = Field(
        default=(), description="files or folders to choose the best epoch by"
    )
    text_column: tuple[str, ...] = Field(
        min_length=1,
        description="columns of the text segments, in order; one that ends in ? may be blank",
    )
    label_column: str | None = Field(
        default=None,
        description="column of labels; a row may lack one; objective=feature needs none at all",
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    limit: int | None = Field(default=None, ge=1, description="most rows to take of each file")
    skip_bad_rows: bool = Field(default=False, description="leave bad rows out and list them")
    task: Task | Literal["language"] | None = Field(
        default=None,
        description="classification or regression, told from the labels if left out; or language: "
        "the student is a causal language model and learns words",
    )
    num_labels: int | None = Field(
        default=None, ge=1, description="number of classes; told from the labels if left out"
    )
    metric: str | None = Field(
        default=None, description="chooses the best epoch; default accuracy or pearson"
    )

    @field_validator("train", "validation", "text_column", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CacheKeys(Job):
    """What to learn from."""

    cache: Path | str | None = Field(
        default=None,
        description="folder of the cache, or a URL that fsspec opens; only control=undistilled "
        "needs none",
    )
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    feature: str | None = Field(
        default=None, description="feature to learn from; may be left out if there is one"
    )
    expect_digest: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="digest that the cache must have"
    )
    mirror: Path | None = Field(
        default=None,
        description="folder that keeps what comes of a cache at a URL; default one in the user's "
        "own cache folder",
    )
    mirror_limit: ByteCount | None = Field(
        default=None, description="most bytes that the mirror may keep, such as 50GiB"
    )
    verify_cache: bool = Field(
        default=False, description="compare the checksum of each file when it is first opened"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _path_or_url(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return local_path(value) if is_local(value) else value


class DistillJob(
    CorpusKeys, CacheKeys, StudentSettings, ObjectiveSettings, LanguageKeys, TrainingSettings
):
    """What is trained, and where it goes."""

    output: Path = Field(description="folder to write the run to")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=120,
        description="what reports call the run; default what sets it apart",
    )
    objective: str = Field(
        default="armada", description="armada, kd, feature, tokens (task=language), or a plug-in"
    )
    control: str = Field(
        default="none",
        description="none, undistilled, random-aligner, shuffled or noise=SIGMA",
    )
    seed: Seed | Seeds = Field(
        default=0, description="one seed, or a list of seeds: one run each, and their spread"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto, cpu or cuda; CUDA_VISIBLE_DEVICES says which of several"
    )
    resume: bool = Field(default=False, description="go on with an unfinished run in `output`")
    push_to_hub: str | None = Field(
        default=None,
        description="USER/NAME of a model repository on the Hub to send the student to at the end; "
        "made, and private, if there is none",
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
            raise ValueError("one seed comes twice")
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
        from_scratch = keys.get("student_from_scratch") in (True, "true")
        if from_scratch or str(keys.get("student", "")).startswith(SCRATCH):
            return {**keys, "learning_rate": SCRATCH_LEARNING_RATE}
        return keys

    @model_validator(mode="after")
    def _needs_cache(self) -> "DistillJob":
        if self.cache is None and self.distilled:
            raise ValueError("job key 'cache' is missing; only control=undistilled needs none")
        return self

    @model_validator(mode="after")
    def _measures_something(self) -> "DistillJob":
        if self.metric is not None and not self.validation:
            raise ValueError(
                f"job key 'metric': {self.metric!r} chooses the best epoch by a validation set, "
                "and there is none; name one in `validation`, or leave metric out"
            )
        return self

    @property
    def parsed_control(self) -> Control:
        """The control with its parameter."""
        return parse_control(self.control)

    @property
    def distilled(self) -> bool:
        """Whether a teacher's features are read."""
        return "undistilled" not in (self.parsed_control.name, self.objective)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds to run."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)
