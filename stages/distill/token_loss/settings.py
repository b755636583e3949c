"""Settings of the token-level loss."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class TokenLossSettings(BaseModel):
    """Comparison of the student's token predictions with the teacher's.

    `alpha` and `temperature`, which every objective has, are arguments of the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Divergence = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl, total_variation, taid, "
        "dkd, atkd or self_evolution, between the next-token distributions of teacher and student",
    )
    jsd_beta: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="weight of the teacher in the mixture of jsd, and of its term",
    )
    skew: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the first distribution mixed into the second (skew_kl, "
        "skew_reverse_kl)",
    )
    taid_start: float = Field(
        default=0.4, ge=0, le=1, description="share of the teacher in the target at first"
    )
    taid_end: float = Field(
        default=1.0, gt=0, le=1, description="share of the teacher in the target at last"
    )
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

    @model_validator(mode="after")
    def _can_teach(self) -> Self:
        if self.taid_start > self.taid_end:
            raise ValueError(
                f"taid_start={self.taid_start:g} is above taid_end={self.taid_end:g}: the share of "
                "the teacher grows; lower taid_start"
            )
        if self.target_weight == 0 == self.nontarget_weight:
            raise ValueError(
                "target_weight=0 and nontarget_weight=0: nothing is left of the teacher; raise one "
                "of them, or use undistilled"
            )
        return self
