"""Options of objectives that compare class logits."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import AlphaOptions, MayMove
from .divergences import SoftenedOptions


class KDOptions(AlphaOptions):
    """Options of the objective kd."""

    temperature: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"], MayMove()
    ] = Field(default=5.0, description="softmax temperature of the logits, or 'learned'")


class LogitMSEOptions(AlphaOptions):
    """Options of the objective logit_mse."""

    centred: bool = Field(
        default=False,
        description="subtract the mean logit of each row first, so that constant shifts, which "
        "change no probability, cost nothing",
    )


class DKDOptions(SoftenedOptions):
    """Options of the objective dkd."""

    target_weight: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the target class against all others",
    )
    nontarget_weight: float = Field(
        default=8.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the other classes among themselves",
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.target_weight == 0 == self.nontarget_weight:
            raise ValueError(
                "target_weight=0 and nontarget_weight=0: nothing is left of the teacher; raise one "
                "of them, or use undistilled"
            )
        return self


class DualHeadOptions(SoftenedOptions):
    """Options of the objective dual_head."""
