"""Options of objectives that compare class logits."""

from typing import Annotated, Literal

from pydantic import Field

from .base import AlphaOptions, MayMove


class KDOptions(AlphaOptions):
    """Options of the objective kd."""

    temperature: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"], MayMove()
    ] = Field(default=5.0, description="softmax temperature of the logits, or 'learned'")
