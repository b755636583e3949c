"""Settings of the token-level loss."""

from typing import Literal

from pydantic import Field

from ..divergence_options import (
    DecoupledOptions,
    DivergenceOptions,
    MixtureOption,
    MovingTargetOptions,
    SkewOption,
)

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "taid",
    "dkd",
    "atkd",
    "self_evolution",
]

TokenWeights = Literal["uniform", "entropy", "certainty", "gap"]


class DivergenceChoice(DivergenceOptions):
    """The divergence itself."""

    divergence: Divergence = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, total_variation, taid, "
        "dkd, atkd or self_evolution, between the next-token distributions of teacher and student",
    )


class TokenLossSettings(
    DecoupledOptions, MovingTargetOptions, SkewOption, MixtureOption, DivergenceChoice
):
    """Comparison of the student's token predictions with the teacher's.

    `alpha` and `temperature`, which every objective has, are arguments of the loss."""

    atkd_easy_weight: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="weight of tokens that the teacher finds easy; hard ones have the rest of 1",
    )
    atkd_uncertainty: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="a token is hard if the teacher gives more than this to other tokens",
    )
    evolution_label_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of the corpus's token in the target of self_evolution; the teacher has "
        "the rest",
    )
    evolution_prior_share: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="share of that target that is mixed into the student's prediction of a "
        "difficult token",
    )
    evolution_difficulty: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="a token is difficult if the student is further from that target, in nats",
    )
    token_weights: TokenWeights = Field(
        default="uniform",
        description="weight of a token: uniform, entropy or certainty (of the teacher), or gap "
        "(how far the student is from it)",
    )
