"""A language model with its objectives, and its trainer: means over the tokens of a whole step, and
perplexity.

A step may take several batches, and each of several processes has a share of each; every counted
token has the same weight all the same.
Shapes: B rows, T tokens, P predicted tokens, H width.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from ..batches import Batch, DistillDataset
from ..losses import MISSING_LABEL
from ..model import TrainedModel
from ..negatives import Negatives, negatives_name
from ..objectives.base import Feature, Objective, ResponsePairs, Sources, StudentSide
from ..order import Indices
from ..token_loss.answers import TokenAnswers
from ..token_loss.loss import Tokens, cross_entropy
from ..token_loss.own_tokens import token_log_probs
from ..trainer import DistillTrainer
from .batches import Counts, PredictedRows
from .evaluation import MaskedTokenSums, TokenSums
from .pairs import response_log_probs
from .student import LanguageStudent
from .teachers import Tensors, as_answers
from .token_measures import TokenObserver


class LanguageModel(TrainedModel):
    """Training mode: named terms. Evaluation mode: cross entropy, and a look at the logits where
    teachers' predictions are there to compare with."""

    student: LanguageStudent

    def __init__(self, student: LanguageStudent, objective: Objective) -> None:
        super().__init__(student, objective)
        self._pools = any("tokens" not in part.reads.student for part in objective.parts)

    def forward(
        self,
        input_ids: Tensor,
        predicted_at: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        answers: Mapping[str, Tensors] | None = None,
        pooled_at: Tensor | None = None,
        labels: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
        rows: int = 0,
        counts: Counts | None = None,
        masked: bool | None = None,
        negatives: Mapping[str, Negatives] | None = None,
        preferred: int | None = None,
        response_tokens: Tensor | None = None,
        references: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
        pair_weights: Tensor | None = None,
        repeats: Mapping[str, Indices] | None = None,
    ) -> dict[str, Any]:
        """`loss` and, in training, `terms`; in an evaluation with `answers`, what was `seen` of
        the logits (`TokenObserver`), and of two responses to each prompt, `pairs`. `answers` are
        teachers' predictions of tokens, `features` those of whole texts; `counts` are of the whole
        step, `rows` those of the batch, in all processes; `masked` as the student takes it;
        `weights` are those of predicted tokens; `preferred`, `response_tokens`, `references` and
        `pair_weights` as `PairedTexts` has them; `repeats` as in `StudentSide`."""
        inside: dict[str, Any] = {}
        if self.training and (self.layers or self.attention):
            assert attention_mask is not None
            read = self._read_layers(input_ids, attention_mask, masked=masked)
            states_BTH, states, attention = read
            inside = self._layers(states, attention, attention_mask, rows)
            del read, states, attention
        else:
            inputs = (input_ids, attention_mask, position_ids)
            states_BTH = self.parts.read(self.student, *inputs, masked=masked)
        flat_NH = states_BTH.flatten(0, 1)
        hidden_PH = self.student.before_head(flat_NH.index_select(0, predicted_at))
        tokens, pairs = self._tokens(hidden_PH, targets, counts), None
        if preferred is not None and response_tokens is not None:
            texts_P = predicted_at // input_ids.shape[1]
            pairs = self._pairs(tokens, texts_P, response_tokens, counts, rows)
            if pair_weights is not None:
                pairs = replace(pairs, weights_B=self._joined(pair_weights, rows))
            own = slice(preferred)
            tokens = replace(tokens, hidden_PH=tokens.hidden_PH[own], labels_P=tokens.labels_P[own])
        tokens = replace(tokens, weights_P=weights)
        if not self.training:
            seen = _evaluated(tokens, answers or {}, self.student.always_observed)
            return seen | ({} if pairs is None else {"pairs": pairs})
        sources: Sources = {
            **self._features(features, inside.get("mask_BT"), rows),
            **{name: self._joined(each, rows) for name, each in (references or {}).items()},
            **{name: _token_answers(each) for name, each in (answers or {}).items()},
            **{negatives_name(name): each for name, each in (negatives or {}).items()},
        }
        pooled_BH, output_BK = None, None
        if self._pools:
            assert pooled_at is not None
            pooled_BH = self._joined(flat_NH.index_select(0, pooled_at), rows)
            head = self.student.head
            output_BK = None if head is None else head(pooled_BH)
        answered = self._answered(counts)
        side = StudentSide(
            pooled_BH, output_BK, tokens, answered, pairs=pairs, repeats=repeats or {}, **inside
        )
        labels_B = None if output_BK is None else self._joined(labels, rows)
        terms = self.objective.of_batch(side, sources, labels_B)
        return {"loss": terms["total"], "terms": terms}

    def _tokens(self, hidden_PH: Tensor, targets_P: Tensor, counts: Counts | None) -> Tokens:
        weight_VH, bias_V = self.student.head_weights
        return Tokens(
            hidden_PH=hidden_PH,
            weight_VH=weight_VH,
            bias_V=bias_V,
            labels_P=targets_P,
            transform=self.student.transform,
            labelled_count=None if counts is None else counts.labelled / self._shares(counts),
        )

    def _pairs(
        self,
        tokens: Tokens,
        text_of_P: Tensor,
        response_tokens_B2: Tensor,
        counts: Counts | None,
        rows: int,
    ) -> ResponsePairs:
        """Log-probabilities of two responses to each prompt, of the whole batch."""
        log_probs_B2 = response_log_probs(
            token_log_probs(tokens), text_of_P, len(response_tokens_B2)
        )
        counts_B2 = response_tokens_B2.to(log_probs_B2.dtype)
        return ResponsePairs(
            log_probs_B2=self._joined(log_probs_B2, rows),
            counts_B2=self._joined(counts_B2, rows),
            total_weight=None if counts is None else counts.rows / counts.batches,
            total_tokens=None if counts is None else counts.labelled / counts.batches,
        )

    def _answered(self, counts: Counts | None) -> dict[str, float]:
        if counts is None:
            return {}
        return {name: count / self._shares(counts) for name, count in counts.answered.items()}

    def _shares(self, counts: Counts) -> int:
        """Into how many parts the tokens of a step are divided: the gradients of its batches and of
        all processes are averaged."""
        return self.processes.count * counts.batches


def _evaluated(tokens: Tokens, answers: Mapping[str, Tensors], observed: bool) -> dict[str, Any]:
    if not (answers or observed):
        return {"loss": cross_entropy(tokens)}
    teachers = {name: _token_answers(each) for name, each in answers.items()}
    observer = TokenObserver(tokens.labels_P, teachers)
    return {"loss": cross_entropy(tokens, observer), "seen": observer.seen}


def _token_answers(tensors: Tensors) -> TokenAnswers:
    return TokenAnswers(as_answers(tensors), tensors.get("answered"))


def only_rows(batch: dict[str, Any], rows: int) -> None:
    """Mask the tokens of all but the first rows of a batch, in place: rows that were repeated to
    make shares equal."""
    texts, width = batch["input_ids"].shape
    of_row = batch["predicted_at"] // width
    if "preferred" in batch:  # two texts a row
        of_row = of_row % (texts // 2)
    kept = of_row < rows
    batch["targets"] = batch["targets"].masked_fill(~kept, MISSING_LABEL)
    kept = kept[: batch.get("preferred")]
    for tensors in batch.get("answers", {}).values():
        answered = tensors.get("answered")
        tensors["answered"] = kept if answered is None else kept & answered


def rows_of(dataset: DistillDataset) -> PredictedRows:
    """The rows of a language model's dataset."""
    rows = dataset.tokens
    assert isinstance(rows, PredictedRows)
    return rows


class LanguageTrainer(DistillTrainer):
    """The trainer of language models: means are over tokens, and the evaluation differs."""

    sums: ClassVar[type[TokenSums]] = TokenSums
    """What an evaluation adds up."""

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> Counts:
        """Counts of a step: of all its batches, in all processes."""
        texts = rows_of(self.train_dataset)
        counts = (texts.counts(batch["indices"]) for batch in batch_samples)
        return sum(counts, Counts(0, batches=0))

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
        **more: Any,
    ) -> Any:
        """The total of the loss; sums each term for the log, on the device."""
        if model.training:
            inputs["counts"] = num_items_in_batch
            only_rows(inputs, self._own_rows(inputs))
        return super().compute_loss(model, inputs, return_outputs, **more)

    def _mean_terms(self) -> dict[str, float]:
        """Each term since the last log, of the batches that have it; every process has its share of
        it."""
        totals = torch.stack([total.double() for total in self._terms.values()])
        sums = self.train_dataset.processes.mean(totals).tolist()
        counts = self._batches_with
        return {name: each / counts[name] for name, each in zip(self._terms, sums, strict=True)}

    def _own_rows(self, inputs: Batch) -> int:
        """Number of rows in this process's share, without repetitions of the last one."""
        share = len(inputs["input_ids"]) // (2 if "preferred" in inputs else 1)
        left = len(inputs["indices"]) - int(self.train_dataset.processes.rank) * share
        return min(share, max(0, left))

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **_: Any
    ) -> EvalLoopOutput:
        """Cross entropy over all tokens, summed batch by batch."""
        self.model.eval()
        sums = self.sums()
        for batch in dataloader:
            with self.compute_loss_context_manager():
                add = partial(self._add, sums, batch, rows_of(dataloader.dataset))
                self.model.parts.fitted(add, batch["input_ids"])
        metrics = {f"{metric_key_prefix}_{name}": v for name, v in sums.metrics().items()}
        metrics |= self._beside
        return EvalLoopOutput(None, None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _add(self, sums: TokenSums, batch: Batch, texts: PredictedRows, _: bool) -> None:
        sums.add(self.model, self._prepare_inputs(batch), texts)


class MaskedTrainer(LanguageTrainer):
    """The trainer of masked language models."""

    sums = MaskedTokenSums
