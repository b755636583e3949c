"""Options of objectives that compare predicted tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ...token_loss.settings import TokenLossSettings
from .base import MayMove, ObjectiveOptions

Tail = Literal["bucket", "renormalised"]
"""What becomes of the tokens outside of a teacher's top k."""


class TokensOptions(ObjectiveOptions, TokenLossSettings):
    """Options of the objective tokens."""

    alpha: Annotated[float, Field(ge=0, le=1), MayMove()] = Field(
        default=0.5,
        description="weight of the teacher's distribution; the corpus's tokens have 1 - alpha",
    )
    token_temperature: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="softmax temperature of teacher's and student's token probabilities; for "
        "top_k, one of tail_temperatures",
    )
    token_temperatures: tuple[Annotated[float, Field(gt=0, le=1024)], ...] = Field(
        default=(),
        description="a temperature for each token, by how sure the teacher is of it: the first for "
        "those it leaves most open, the last for those it is surest of; for top_k, all of them "
        "cached",
    )
    tail: Tail = Field(
        default="bucket",
        description="tokens outside top_k: bucket (merged into one more token) or renormalised "
        "(dropped on both sides)",
    )
    cross_tokenizer: bool = Field(
        default=False,
        description="teacher with another tokenizer: compare sorted probabilities at equal "
        "character offsets (universal logit distillation, arXiv 2402.12030)",
    )

    @model_validator(mode="after")
    def _has_one_kind_of_temperature(self) -> Self:
        if self.token_temperatures and self.token_temperature != 1:
            raise ValueError(
                f"token_temperature {self.token_temperature:g}: token_temperatures gives each "
                "token its own; leave one of them out"
            )
        if self.token_temperatures and self.cross_tokenizer:
            raise ValueError(
                "token_temperatures: probabilities of two tokenizers are compared at temperature "
                "1; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _goes_with_sorted_probabilities(self) -> Self:
        if not self.cross_tokenizer:
            return self
        if self.divergence != "forward_kl":
            raise ValueError(
                f"divergence {self.divergence}: cross_tokenizer compares sorted probabilities, by "
                "the sum of their differences; leave divergence out"
            )
        if self.token_weights != "uniform":
            raise ValueError(
                f"token_weights {self.token_weights}: cross_tokenizer weighs all tokens alike; "
                "leave it out"
            )
        if self.token_temperature != 1:
            raise ValueError(
                f"token_temperature {self.token_temperature:g}: probabilities of two tokenizers "
                "are compared at temperature 1; leave it out"
            )
        if self.tail != "bucket":
            raise ValueError("tail=renormalised: cross_tokenizer compares tails too; leave it out")
        return self
