"""The objective of language models that learn the next token from a teacher's probabilities.

    total = alpha · T² · D(teacher, student) + (1 - alpha) · cross entropy

Both are means over tokens: of those with a teacher's prediction, and of those of the corpus.
Without predictions (an evaluation, the teacher's own responses), there is only cross entropy. The
losses are in `../token_loss`.
"""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from ..token_loss.answers import TokenAnswers
from ..token_loss.loss import token_loss
from ..token_loss.settings import TokenLossSettings
from ..token_loss.uld import uld_loss
from .base import (
    Objective,
    ObjectiveOptions,
    Reads,
    Sources,
    StudentSide,
    named_terms,
    task_terms,
)

Tail = Literal["bucket", "renormalised"]


class TokensOptions(ObjectiveOptions, TokenLossSettings):
    """Options of the objective tokens."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's distribution; the corpus's tokens have 1 - alpha",
    )
    token_temperature: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="softmax temperature of teacher's and student's token probabilities; for "
        "top_k, one of tail_temperatures",
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
    def _goes_with_sorted_probabilities(self) -> Self:
        if not self.cross_tokenizer:
            return self
        if self.divergence != "forward_kl":
            raise ValueError(
                f"divergence {self.divergence}: cross_tokenizer compares sorted probabilities, by "
                "the sum of their differences; leave divergence out"
            )
        if self.token_temperature != 1:
            raise ValueError(
                f"token_temperature {self.token_temperature:g}: probabilities of two tokenizers "
                "are compared at temperature 1; leave it out"
            )
        if self.tail != "bucket":
            raise ValueError("tail=renormalised: cross_tokenizer compares tails too; leave it out")
        return self


class TokensObjective(Objective):
    """Owns nothing."""

    Options = TokensOptions
    options: TokensOptions
    reads = Reads(axis="predictions", student=frozenset({"tokens"}), labels=False, headless=True)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, language (cross entropy) and, where a teacher is known, distillation."""
        assert side.tokens is not None
        (source,) = self.sources
        said = sources.get(source)
        if not isinstance(said, TokenAnswers):
            return task_terms(side, labels_B, self.sizes.regression)
        tokens = replace(
            side.tokens, answered_P=said.answered_P, answered_count=side.answered.get(source)
        )
        options = self.options
        if options.cross_tokenizer:
            terms = uld_loss(tokens, said.answers, alpha=options.alpha)
        else:
            terms = token_loss(
                tokens,
                said.answers,
                options,
                alpha=options.alpha,
                temperature=options.token_temperature,
            )
        return named_terms(terms.total, language=terms.task, distillation=terms.distillation)
