"""What a job chooses about the token-level loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"
]


class TokenLossSettings(BaseModel):
    """How the student's tokens are compared with the teacher's.

    `alpha` and `temperature`, which every objective has, are arguments of the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Divergence = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or total_variation, "
        "between the teacher's next tokens and the student's",
    )
    jsd_beta: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="share of the teacher in the mixture of jsd, and weight of its own term",
    )
    skew: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="how much of the first distribution is mixed into the second one "
        "(skew_kl, skew_reverse_kl)",
    )
