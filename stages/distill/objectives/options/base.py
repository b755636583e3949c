"""The base of options, values that move during a run, and keys of every objective."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

SOURCE = "teacher"
"""The name of the source in a run that has one."""


class WeightSchedule(BaseModel):
    """A number that changes from one value to another during a run.

        linear       begin + p · (end - begin)
        cosine       the same with (1 - cos(π p)) / 2 in place of p
        exponential  begin · (end / begin)^p
        step         begin, and end from `until` on

    with p the share of the way from `after` to `until` that is made, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    begin: float = Field(alias="from", ge=0, allow_inf_nan=False, description="value at the start")
    end: float = Field(alias="to", ge=0, allow_inf_nan=False, description="value at the end")
    after: float = Field(
        default=0.0, ge=0, lt=1, description="share of the steps up to which it stays at `from`"
    )
    until: float = Field(
        default=1.0, gt=0, le=1, description="share of the steps after which `to` is reached"
    )
    shape: Literal["linear", "cosine", "exponential", "step"] = Field(
        default="linear",
        description="course: linear, cosine (slow at both ends), exponential, or step (at `until`)",
    )

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Self:
        if self.after >= self.until:
            raise ValueError(
                f"after {self.after:g}: is not before until, {self.until:g}; choose less"
            )
        if self.shape == "exponential" and not (self.begin > 0 and self.end > 0):
            raise ValueError(
                "shape exponential: reaches no 0, and begins at none; choose another shape, or a "
                "small number"
            )
        if self.shape == "step" and self.after:
            raise ValueError("shape step: changes at until; leave after out")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, float | str]:
        after = {"after": self.after} if self.after else {}
        both = {"from": self.begin, "to": self.end}
        return {**both, **after, "until": self.until, "shape": self.shape}

    def at(self, progress: float) -> float:
        """The value when a share of the steps, 0 to 1, is made."""
        passed = min(max((progress - self.after) / (self.until - self.after), 0.0), 1.0)
        if self.shape == "cosine":
            passed = (1 - math.cos(math.pi * passed)) / 2
        elif self.shape == "exponential":
            return float(self.begin * (self.end / self.begin) ** passed)
        elif self.shape == "step":
            passed = math.floor(passed)
        return self.begin + passed * (self.end - self.begin)


class MayMove:
    """Annotation of an option that may be a schedule in a job. Wherever an objective reads it, it
    is a number: that of the step."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """The number's, or that of a schedule for a mapping."""
        return core_schema.no_info_wrap_validator_function(
            _or_a_schedule,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(_as_plain),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Either of them."""
        number = dict(handler(schema))
        about: dict[str, Any] = {}
        for key in ("title", "default"):
            if key in number:
                about[key] = number.pop(key)
        moving = handler(WeightSchedule.__pydantic_core_schema__)
        if number.get("type") != "number":
            return {"anyOf": [number, moving], **about}
        # An editor names a limit that is passed, and not that none of the two forms fits.
        inner = handler.resolve_ref_schema(moving)
        of_objects = {k: inner[k] for k in ("properties", "required", "additionalProperties")}
        return {**number, "type": ["number", "object"], **of_objects, **about}


def _or_a_schedule(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, Mapping):
        return WeightSchedule.model_validate(value)
    return value if isinstance(value, WeightSchedule) else number(value)


def _as_plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, WeightSchedule) else value


class ObjectiveOptions(BaseModel):
    """Base of the options of an objective: keys of a job, each with one line of description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_valid_at_both_ends(self) -> Self:
        for name, schedule in self.schedules.items():
            for end in (schedule.begin, schedule.end):
                try:
                    type(self)(**{**self._values, name: end})
                except ValidationError as error:
                    message = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"{name}: {end:g} of its schedule: {message}") from error
        return self

    @property
    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    @property
    def schedules(self) -> dict[str, WeightSchedule]:
        """The options that move during a run."""
        return {n: v for n, v in self._values.items() if isinstance(v, WeightSchedule)}

    def at(self, progress: float) -> Self:
        """The options as they are when a share of the steps, 0 to 1, is made."""
        moving = {name: each.at(progress) for name, each in self.schedules.items()}
        return type(self)(**{**self._values, **moving}) if moving else self


class AlphaOptions(ObjectiveOptions):
    """Options of an objective that weighs a teacher against the labels."""

    alpha: Annotated[float, Field(ge=0, le=1), MayMove()] = Field(
        default=0.5,
        description="weight of the teacher's logits; the task loss has 1 - alpha",
    )


class BetaOptions(ObjectiveOptions):
    """Options of an objective that adds one loss to the task's."""

    beta: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0, description="weight of the teacher's term"
    )
