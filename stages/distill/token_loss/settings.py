"""What a job chooses about the token-level loss, and what a student's config says about logits."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Divergence = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"
]


class TokenLossSettings(BaseModel):
    """How the student's words are compared with the teacher's.

    `alpha` and `temperature`, which every objective has, are arguments of the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    divergence: Divergence = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl, jsd, skew_kl, skew_reverse_kl or total_variation, "
        "between the teacher's next words and the student's",
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


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """From a linear layer's output z to logits: scale·z, or softcap·tanh(scale·z / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: object) -> "LogitTransform":
        """What a student's config asks for: Granite divides by `logits_scaling`, Cohere multiplies
        by `logit_scale`, Gemma caps at `final_logit_softcapping`."""
        divided = getattr(config, "logits_scaling", None) or 1.0
        multiplied = getattr(config, "logit_scale", None) or 1.0
        return cls(multiplied / divided, getattr(config, "final_logit_softcapping", None) or None)

    def apply_(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def cap_slope_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """A gradient of capped logits, times the cap's slope 1 - (logits / softcap)², in place;
        `logits` are used up. The scale is the caller's."""
        if self.softcap is None:
            return gradient
        return gradient.addcmul_(gradient, logits.square_(), value=-(self.softcap**-2))
