"""Options of objectives that compare class distributions."""

from typing import Annotated

from pydantic import Field

from ...divergence_options import MixtureOption, SkewOption
from .base import AlphaOptions, MayMove


class SoftenedOptions(AlphaOptions):
    """Options of an objective that compares class logits at a fixed temperature."""

    temperature: Annotated[float, Field(gt=0), MayMove()] = Field(
        default=5.0, description="softmax temperature of the logits"
    )


class ReverseKLOptions(SoftenedOptions):
    """Options of the objective reverse_kl."""


class TVDOptions(SoftenedOptions):
    """Options of the objective tvd."""


class JSDOptions(MixtureOption, SoftenedOptions):
    """Options of the objective jsd."""


class SkewKLOptions(SkewOption, SoftenedOptions):
    """Options of the objective skew_kl."""


class SkewReverseKLOptions(SkewKLOptions):
    """Options of the objective skew_reverse_kl."""


class BalancedKLOptions(SoftenedOptions):
    """Options of the objective balanced_kl."""

    balance: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of forward KL where the student is the more certain, and of reverse KL "
        "elsewhere; the other one has 1",
    )
