"""Keys of a `distill` job about its teachers and objectives, where it has one or several.

    teachers:                                      a name -> a teacher's features in a cache
      clip: {cache: caches/clip}
      hint: {cache: caches/all, teacher: 96e0, text_column: [text, hint], control: shuffled}
    objectives:                                    the loss is their weighted sum
      - {name: armada, teacher: clip, alpha: 0.5}
      - {name: feature, teacher: hint, distance: cosine, weight: {from: 1, to: 0}}

A job with one of each may set `cache`, `teacher`, `feature`, `objective` and its options directly:
`distill_job.py`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ..cache_schemas.errors import JobError
from ..cache_schemas.locations import shown
from ..stages.distill.controls import Control, parse_control
from ..stages.distill.objectives import OBJECTIVES
from ..stages.distill.objectives.options import MayMove, TokensOptions, WeightSchedule
from ..stages.distill.settings import Placement
from ..stages.store.transfer.location import is_local, local_path
from .jobs import ByteCount, Job, Names, make, unknown_key
from .messages import LOGGER

ONCE_SHARED = frozenset(
    {
        *("alpha", "beta", "gamma", "temperature", "manifold", "distance", "aligner_hidden_size"),
        *("orthogonal_map", "orthogonal_projection"),
        *("divergence", "jsd_beta", "skew", "token_temperature", "tail", "cross_tokenizer"),
    }
)
"""Options that were keys of every job once, whatever its objective: finished runs still have them
all in their job files."""


class CacheKeys(Job):
    """Teacher and cache."""

    cache: Path | str | None = Field(
        default=None,
        description="folder of the cache, or a URL that fsspec opens; only control=undistilled "
        "needs none",
    )
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    query_cache: Path | str | None = Field(
        default=None,
        description="cache of what the teacher said of the queries of a student that embeds, if "
        "it read them with another prompt than passages (task=embedding)",
    )
    query_teacher: str | None = Field(
        default=None,
        description="fingerprint of the teacher that read the queries of a student that embeds, in "
        "query_cache, or with another prompt in `cache` (task=embedding)",
    )
    feature: str | None = Field(
        default=None, description="feature to learn from; may be left out if there is one"
    )
    missing: Literal["refuse", "without_teacher"] = Field(
        default="refuse",
        description="training rows that are not in the cache: refuse (or skip them with "
        "skip_bad_rows), or without_teacher: they are trained by the other losses alone",
    )
    expect_digest: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="expected digest of the cache"
    )
    mirror: Path | None = Field(
        default=None,
        description="local mirror of a cache at a URL; default: a folder in the user's cache "
        "folder",
    )
    mirror_limit: ByteCount | None = Field(
        default=None, description="maximum size of the mirror, such as 50GiB"
    )
    verify_cache: bool = Field(
        default=False, description="verify the checksum of each file when it is first opened"
    )

    @property
    def of_queries(self) -> "CacheKeys | None":
        """Where the answers to queries are, if not where those to passages are."""
        if self.query_cache is None and self.query_teacher is None:
            return None
        other = self.query_cache is not None
        found = {"cache": self.query_cache or self.cache, "teacher": self.query_teacher}
        if other:
            found |= {"mirror": None, "expect_digest": None}
        return self.model_copy(update=found)

    @field_validator("cache", "query_cache", mode="before")
    @classmethod
    def _path_or_url(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return local_path(value) if is_local(value) else value


class TeacherKeys(CacheKeys):
    """Keys of one of several teachers."""

    cache: Path | str = Field(description="folder of the cache, or a URL that fsspec opens")
    text_column: Names = Field(
        default=(),
        description="text columns of this teacher, if not those of the student: hints, retrieved "
        "documents, translations, pictures (picture:COLUMN)",
    )
    control: str = Field(
        default="none",
        description="control of this teacher alone: any but undistilled",
    )
    placement: Placement | None = Field(
        default=None, description="placement of its features; default as the job's"
    )

    @field_validator("control")
    @classmethod
    def _known_control(cls, value: str) -> str:
        if parse_control(value).name == "undistilled":
            raise ValueError(
                "is for a whole job; to drop one teacher, leave out the objectives that read it"
            )
        return value

    @property
    def parsed_control(self) -> Control:
        """The control with its parameter."""
        return parse_control(self.control)


class WithOptions(Job):
    """A job whose objective has its own keys: in files they are beside the others, here they are
    `options`."""

    options: dict[str, Any] = Field(default_factory=dict, description="options of the objective")

    @model_serializer(mode="wrap", when_used="json")
    def _to_be_shown(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = shown(plain(self))
        # In the order of declaration: names of conditions start with them.
        return {
            name: inner
            for key, value in document.items()
            for name, inner in (value.items() if key == "options" else [(key, value)])
        }

    @classmethod
    def _with_options(cls, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Flat keys in which those that are no job keys stand as its options."""
        own = {key: value for key, value in keys.items() if key in cls.model_fields}
        others = {key: value for key, value in keys.items() if key not in cls.model_fields}
        options = own.get("options") or {}
        # Anything but a mapping is refused by the job.
        own["options"] = {**options, **others} if isinstance(options, Mapping) else options
        return own


class ObjectiveKeys(WithOptions):
    """Keys of one of several objectives. Other keys are options of the objective."""

    name: str = Field(description="one of `armada objectives`, or a plug-in")
    teacher: str | None = Field(
        default=None, description="name of the teacher it reads; may be left out if there is one"
    )
    teachers: tuple[str, ...] = Field(
        default=(),
        description="names of the teachers it reads, if the objective reads several; default all",
    )
    feature: str | None = Field(
        default=None,
        description="feature it reads; default the teacher's `feature`, or its only one",
    )
    features: tuple[str, ...] = Field(
        default=(), description="features it reads, if the objective reads several"
    )
    weight: Annotated[float | Literal["learned"] | WeightSchedule, MayMove()] = Field(
        default=1.0,
        description="weight in the sum: a number, a schedule {from, to, after, until, shape} over "
        "the share of steps done, or learned",
    )

    @model_validator(mode="before")
    @classmethod
    def _others_are_options(cls, keys: Any) -> Any:
        if not isinstance(keys, Mapping):
            return keys
        own = cls._with_options(keys)
        if isinstance(own.get("name"), str) and isinstance(own["options"], Mapping):
            own["options"] = complete_options(own["name"], own["options"], cls.model_fields)
        return own

    @field_validator("weight")
    @classmethod
    def _is_a_weight(
        cls, value: float | Literal["learned"] | WeightSchedule
    ) -> float | Literal["learned"] | WeightSchedule:
        if isinstance(value, float) and not 0 <= value < math.inf:
            raise ValueError("is not a number of 0 or more")
        return value

    @model_validator(mode="after")
    def _names_features_once(self) -> "ObjectiveKeys":
        if self.feature is not None and self.features:
            raise ValueError(f"objective {self.name}: name feature or features, not both")
        if self.teacher is not None and self.teachers:
            raise ValueError(f"objective {self.name}: name teacher or teachers, not both")
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError(f"objective {self.name}: one of its teachers is named twice")
        return self

    @property
    def asked_teachers(self) -> tuple[str, ...]:
        """The teachers that are named."""
        return self.teachers or ((self.teacher,) if self.teacher else ())

    @property
    def asked_features(self) -> tuple[str, ...]:
        """The features that are named."""
        return self.features or ((self.feature,) if self.feature else ())


class StageKeys(Job):
    """Keys of one of several stages of a run."""

    until: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the steps after which it ends; the last has 1",
    )
    objectives: tuple[str, ...] = Field(
        min_length=1, description="names of the objectives that are computed in it, as in the log"
    )


def complete_options(
    name: str, given: Mapping[str, Any], beside: Iterable[str], once_shared: bool = False
) -> dict[str, Any]:
    """All options of an objective, as plain data; or as given, if it is not installed.
    `once_shared`: options that earlier releases shared are ignored with a warning, if they are not
    its own. Raises JobError for unknown options and invalid values; `beside` are other keys that
    could have been meant."""
    options = options_class(name)
    if options is None:
        return dict(given)
    if name == "tokens" and "temperature" in given:
        raise JobError(
            f"job key 'temperature': {given['temperature']}: softens class logits; for tokens, use "
            "token_temperature"
        )
    unread = given.keys() & ONCE_SHARED - options.model_fields.keys() if once_shared else set()
    for key in sorted(unread):
        field = TokensOptions.model_fields.get(key)
        if key == "alpha" or field is None or given[key] != field.default:
            LOGGER.warning(
                f"{_no_option(name, key, options, beside)}; ignored for now, an error in the next "
                "release"
            )
    given = {key: value for key, value in given.items() if key not in unread}
    for key in given:
        if key not in options.model_fields:
            raise JobError(_no_option(name, key, options, beside))
    return make(options, given).model_dump(mode="json")


def _no_option(name: str, key: str, options: type[BaseModel], beside: Iterable[str]) -> str:
    if key in ONCE_SHARED:
        known = ", ".join(options.model_fields) or "none"
        return f"job key {key!r}: is not an option of objective {name}; it has {known}"
    return unknown_key("job", key, [*options.model_fields, *beside])


def objective_options(name: str) -> type[BaseModel]:
    """The options of an objective. Raises JobError for one that is not installed."""
    options: type[BaseModel] = OBJECTIVES.options(name)
    return options


def options_class(name: str) -> type[BaseModel] | None:
    """The options of an objective, None of one that is not installed."""
    try:
        return objective_options(name)
    except JobError:
        return None


def with_new_options(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an unfinished run's job, with the defaults of options that its objectives did not
    have when it began."""
    each = keys.get("objectives")
    if each is not None:
        return {**keys, "objectives": [_with_defaults(one.get("name"), one) for one in each]}
    return _with_defaults(keys.get("objective"), keys)


def _with_defaults(name: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    options = options_class(name) if isinstance(name, str) else None
    fields = options.model_fields if options else {}
    return {key: field.default for key, field in fields.items() if key not in keys} | dict(keys)


def without_once_shared(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a finished run's job without options that its objective never read."""
    options = options_class(name)
    read = options.model_fields if options else {}
    return {key: v for key, v in keys.items() if key not in ONCE_SHARED or key in read}
