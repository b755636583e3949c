"""Options of divergences that class logits and token predictions share, a class a divergence.

Both kinds of objective inherit them, so that a key has one description, one default and one limit.
Nothing here imports torch.
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DivergenceOptions(BaseModel):
    """Base of the options of one divergence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MixtureOption(DivergenceOptions):
    """Option of the generalised Jensen-Shannon divergence."""

    jsd_beta: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="weight of the teacher in the mixture of jsd, and of its term",
    )


class SkewOption(DivergenceOptions):
    """Option of both skewed divergences."""

    skew: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the first distribution mixed into the second (skew_kl, "
        "skew_reverse_kl)",
    )


class MovingTargetOptions(DivergenceOptions):
    """Options of a target that moves from the student's own distribution to the teacher's."""

    taid_start: float = Field(
        default=0.4, ge=0, le=1, description="share of the teacher in the target at first"
    )
    taid_end: float = Field(
        default=1.0, gt=0, le=1, description="share of the teacher in the target at last"
    )

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.taid_start > self.taid_end:
            raise ValueError(
                f"taid_start={self.taid_start:g} is above taid_end={self.taid_end:g}: the share of "
                "the teacher grows; lower taid_start"
            )
        return self


class DecoupledOptions(DivergenceOptions):
    """Options of a divergence whose target class is split off."""

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
