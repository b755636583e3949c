"""What a job chooses about a student that is a language model."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Packing = Literal["none", "apart", "joined"]


class LanguageSettings(BaseModel):
    """How a language model learns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
