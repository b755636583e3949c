"""The objective of language models that learn the next token from a teacher's probabilities.

    total = alpha · T² · D(teacher, student) + (1 - alpha) · cross entropy

Both are means over tokens: of those with a teacher's prediction, and of those of the corpus.
Without predictions (an evaluation, the teacher's own responses), there is only cross entropy. The
losses are in `../token_loss`.
"""

from dataclasses import replace

from torch import Tensor

from ..token_loss.answers import TokenAnswers
from ..token_loss.loss import token_loss
from ..token_loss.uld import uld_loss
from .base import (
    Objective,
    Reads,
    Sources,
    StudentSide,
    named_terms,
    task_terms,
)
from .options import TokensOptions


class TokensObjective(Objective):
    """Next-token probabilities of the teacher, for language models.

    Formula: alpha · T²·D(teacher ‖ student) + (1 - alpha) · cross entropy, means over tokens
    Source: Hinton et al., arXiv 1503.02531; for other divergences D, see `divergence`: MiniLLM
    (2306.08543), GKD (2306.13649), DistiLLM (2402.03898), TAID (2501.16937), DKD (2203.08679), ATKD
    (2402.11890), Self-Evolution KD (2412.15303). A temperature for each token: Swing Distillation
    (2212.08349), whose noise on the targets is left out.

    The target of taid moves in a straight line with the steps; what it adapts to elsewhere, the
    loss of a whole batch, no single process has here. Targets of dkd, atkd and self_evolution are
    the corpus's next tokens: one outside of top_k is the tail, for what is not listed is one
    outcome. Samples are refused by these four, by token_weights and by token_temperatures.

    Owns nothing.
    """

    Options = TokensOptions
    options: TokensOptions
    reads = Reads(axis="predictions", student=frozenset({"tokens"}), labels=False, headless=True)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, language (cross entropy) and, where a teacher is known, distillation."""
        assert side.tokens is not None
        (source,) = self.sources
        teacher = sources.get(source)
        if not isinstance(teacher, TokenAnswers):
            return task_terms(side, labels_B, self.sizes.regression)
        tokens = replace(
            side.tokens, answered_P=teacher.answered_P, answered_count=side.answered.get(source)
        )
        options = self.options
        if options.cross_tokenizer:
            terms = uld_loss(tokens, teacher.answers, alpha=options.alpha)
        else:
            terms = token_loss(
                tokens,
                teacher.answers,
                options,
                alpha=options.alpha,
                temperature=options.token_temperature,
                # An evaluation in the middle of a run has the target of the end.
                progress=self.progress if self.training else 1.0,
            )
        return named_terms(terms.total, language=terms.task, distillation=terms.distillation)

    def task_weight(self, sources: Sources) -> float:
        """1 - alpha; 1 where no teacher is known."""
        (source,) = self.sources
        return 1 - self.options.alpha if isinstance(sources.get(source), TokenAnswers) else 1.0
