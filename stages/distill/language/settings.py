"""What a job chooses about a student that is a language model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..token_loss.settings import TokenLossSettings

Packing = Literal["none", "apart", "joined"]
Tail = Literal["bucket", "renormalised"]


class LoraSettings(BaseModel):
    """Low-rank adapters in place of all weights (arXiv 2106.09685)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora_rank: int | None = Field(
        default=None,
        ge=1,
        description="train adapters of this rank and leave all other weights as they are "
        "(task=language)",
    )
    lora_alpha: float | None = Field(
        default=None, gt=0, description="adapters are scaled by lora_alpha / lora_rank; default 1"
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before adapters")
    lora_targets: tuple[str, ...] = Field(
        default=(),
        description="names of the layers that get adapters; default all linear layers but the head",
    )


class LanguageSettings(LoraSettings, TokenLossSettings):
    """How a language model learns."""

    token_temperature: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="softening of the words' probabilities, the teacher's and the student's; of "
        "top_k, one at which the tail was cached",
    )
    tail: Tail = Field(
        default="bucket",
        description="words that top_k leaves out: bucket (together, as one more word) or "
        "renormalised (both sides without them)",
    )
    packing: Packing = Field(
        default="none",
        description="whole texts in rows of max_length tokens: none (a row each), apart (they do "
        "not see each other) or joined (a text sees those before it)",
    )
    responses: Literal["corpus", "generated"] = Field(
        default="corpus",
        description="what to predict: the responses of the corpus, or those that the teacher gave "
        "(cached with max_new_tokens)",
    )
    cross_tokenizer: bool = Field(
        default=False,
        description="learn from a teacher with another tokenizer: sorted probabilities, where both "
        "have read the same characters (universal logit distillation, arXiv 2402.12030)",
    )
