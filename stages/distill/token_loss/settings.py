"""Settings of the token-level loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"
]


class TokenLossSettings(BaseModel):
    """Comparison of the student's token predictions with the teacher's.

    `alpha` and `temperature`, which every objective has, are arguments of the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Divergence = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or total_variation, "
        "between the next-token distributions of teacher and student",
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
