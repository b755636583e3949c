"""The base of options, and keys of every objective."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

SOURCE = "teacher"
"""The name of the source in a run that has one."""


class ObjectiveOptions(BaseModel):
    """Base of the options of an objective: keys of a job, each with one line of description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AlphaOptions(ObjectiveOptions):
    """Options of an objective that weighs a teacher against the labels."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's logits; the task loss has 1 - alpha",
    )


class BetaOptions(ObjectiveOptions):
    """Options of an objective that adds one loss to the task's."""

    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the teacher's term"
    )


class WeightSchedule(BaseModel):
    """A weight that changes from one value to another during a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    begin: float = Field(alias="from", ge=0, allow_inf_nan=False, description="weight at the start")
    end: float = Field(alias="to", ge=0, allow_inf_nan=False, description="weight at the end")
    until: float = Field(
        default=1.0, gt=0, le=1, description="share of the steps after which `to` is reached"
    )
    shape: Literal["linear", "cosine"] = Field(
        default="linear", description="course: linear, or cosine (slow at both ends)"
    )

    @model_serializer
    def _as_written(self) -> dict[str, float | str]:
        return {"from": self.begin, "to": self.end, "until": self.until, "shape": self.shape}

    def at(self, progress: float) -> float:
        """The weight when a share of the steps, 0 to 1, is made."""
        passed = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            passed = (1 - math.cos(math.pi * passed)) / 2
        return self.begin + passed * (self.end - self.begin)
