"""What the trainer trains: a language model, the loss of its words, and ARMADA's parts beside it.

total = token loss (cross entropy, and the divergence from the teacher's words)
        + beta · manifold term (objective armada; with labels, all of the objective's terms)

Shapes: B rows, T tokens, P predicted tokens, H width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..aligner import AlignerAnswers
from ..losses import MANIFOLDS, MISSING_LABEL, choose
from ..model import TrainedModel, joined_feature
from ..objectives.armada import ArmadaObjective
from ..objectives.base import Feature, Objective, Sources
from ..processes import ALONE
from ..token_loss.loss import Tokens, TokenTerms, token_loss
from ..token_loss.settings import TokenLossSettings
from ..token_loss.uld import uld_loss
from .batches import Counts
from .cached_answers import Tensors, as_answers, no_answers
from .student import LanguageStudent


@dataclass(frozen=True, slots=True)
class WordLoss:
    """How predicted words are scored: the weight of the teacher's answers, 0 where there are none,
    and how they are compared."""

    settings: TokenLossSettings
    alpha: float
    temperature: float
    by_rank: bool = False
    """Whether the teacher has another tokenizer, so that probabilities are compared by rank."""


class LanguageModel(TrainedModel):
    """Training mode: named terms. Evaluation mode: cross entropy alone."""

    def __init__(self, student: LanguageStudent, objective: Objective, words: WordLoss) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.words = words
        self.processes = ALONE

    def forward(
        self,
        input_ids: Tensor,
        predicted_at: Tensor,
        words: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        answers: Tensors | None = None,
        answered: Tensor | None = None,
        pooled_at: Tensor | None = None,
        labels: Tensor | None = None,
        features: Sources | None = None,
        rows: int = 0,
        counts: Counts | None = None,
    ) -> dict[str, Any]:
        """`loss` and, in training, `terms`. `counts` are of the whole step, `rows` those of the
        batch, in all processes."""
        states_BTH = self.student(input_ids, attention_mask, position_ids)
        flat_NH = states_BTH.flatten(0, 1)
        said = self._word_loss(
            flat_NH.index_select(0, predicted_at),
            words,
            answers if self.training else None,
            answered,
            counts,
        )
        terms = {"total": said.total, "language": said.task.detach()}
        if not self.training:
            return {"loss": said.total}
        if answers is not None:
            terms["distillation"] = said.distillation.detach()
        feature = self.objective.told(features or {})
        if feature is not None:
            assert isinstance(feature, Tensor | AlignerAnswers)
            assert pooled_at is not None
            assert labels is not None
            pooled_BH = flat_NH.index_select(0, pooled_at)
            found = self._with_feature(pooled_BH, feature, labels, rows)
            # Words have been divided by those of the whole step.
            batches = counts.batches if counts else 1
            beside = {name: term / batches for name, term in found.items()}
            terms |= {**beside, "total": said.total + beside["total"]}
        return {"loss": terms["total"], "terms": terms}

    def _word_loss(
        self,
        hidden_PH: Tensor,
        words_P: Tensor,
        answers: Tensors | None,
        answered_P: Tensor | None,
        counts: Counts | None,
    ) -> TokenTerms:
        weight_VH, bias_V = self.student.head_weights
        if answers is None:
            answered_P = torch.zeros_like(words_P, dtype=torch.bool)
        # Each process has its share of the sums, and gradients are averaged over processes.
        share = self.processes.count if counts is not None else 1
        tokens = Tokens(
            hidden_PH=hidden_PH,
            weight_VH=weight_VH,
            bias_V=bias_V,
            labels_P=words_P,
            answered_P=answered_P,
            transform=self.student.transform,
            labelled_count=None if counts is None else counts.labelled / share,
            answered_count=None if counts is None else counts.answered / share,
        )
        how = self.words
        if answers is None:
            nothing = no_answers(len(words_P), words_P.device)
            return token_loss(tokens, nothing, how.settings, alpha=0.0, temperature=1.0)
        if how.by_rank:
            return uld_loss(tokens, as_answers(answers), alpha=how.alpha)
        return token_loss(
            tokens,
            as_answers(answers),
            how.settings,
            alpha=how.alpha,
            temperature=how.temperature,
        )

    def _with_feature(
        self,
        pooled_BH: Tensor,
        feature: Feature,
        labels_B: Tensor,
        rows: int,
    ) -> dict[str, Tensor]:
        objective = self.objective
        assert isinstance(objective, ArmadaObjective)
        head = self.student.head
        output_BK = None if head is None else head(pooled_BH)
        if self.processes.count > 1:
            pooled_BH, labels_B = (self.processes.joined(t, rows) for t in (pooled_BH, labels_B))
            output_BK = None if output_BK is None else self.processes.joined(output_BK, rows)
            feature = joined_feature(self.processes, feature, rows)
        if output_BK is not None:
            found: dict[str, Tensor] = objective(pooled_BH, output_BK, feature, labels_B)
            return found
        answers = feature if isinstance(feature, AlignerAnswers) else objective.read(feature)
        measure = choose(MANIFOLDS, "manifold", objective.options.manifold)
        manifold = measure(answers.projection.float(), objective.projection(pooled_BH).float())
        return {"total": objective.options.beta * manifold, "manifold": manifold.detach()}


def only_rows(batch: dict[str, Any], rows: int) -> None:
    """Leave the words of all but the first rows of a batch out of its loss, in place: those that
    were repeated to make shares of one size."""
    width = batch["input_ids"].shape[1]
    kept = batch["predicted_at"] // width < rows
    batch["words"] = batch["words"].masked_fill(~kept, MISSING_LABEL)
    if "answers" in batch:
        batch["answered"] = kept if "answered" not in batch else kept & batch["answered"]
