"""What a job chooses about a student that is a language model."""

from typing import Literal

from pydantic import Field

from ..token_loss.settings import TokenLossSettings

Packing = Literal["none", "apart", "joined"]
Tail = Literal["bucket", "renormalised"]


class LanguageSettings(TokenLossSettings):
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
