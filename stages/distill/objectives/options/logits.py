"""Options of objectives that compare class logits."""

from typing import Annotated, Literal

from pydantic import Field

from ...divergence_options import DecoupledOptions
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


class DKDOptions(DecoupledOptions, SoftenedOptions):
    """Options of the objective dkd."""


class DualHeadOptions(SoftenedOptions):
    """Options of the objective dual_head."""
