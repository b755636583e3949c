"""Two responses to each prompt: batches of both, and how often a language model prefers the right
one.

In: token texts of the preferred responses, and of the rejected ones, row by row. Out: batches whose
first B rows are the preferred responses and the next B the rejected ones. What is learned from
tokens (`tokens`, cross entropy) sees the preferred ones alone.

preference_accuracy   share of pairs whose preferred response is likelier, by log-probability per
                      token
preference_margin     mean difference of these, in nats per token
reward_accuracy       share of pairs with the larger log-ratio for the preferred response
reward_margin         mean difference of the log-ratios, in nats
chosen_reward,        mean log-ratio log π(y|x) - log π_ref(y|x) of either response, in nats; times
rejected_reward       beta, the implicit rewards of DPO

The last four need a reference's cached log-probabilities. Pairs of which a response has no token
within the length limit are in none of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...language.tokens import TokenTexts
from ..objectives.base import ResponsePairs
from .batches import Counts, Ints, PackedTexts, one_each

PAIR_METRICS = ("preference_accuracy", "preference_margin")
"""Metrics of pairs that need no reference: higher is better."""

REWARD_METRICS = ("reward_accuracy", "reward_margin")
"""Metrics with a reference: higher is better."""

REWARD_FACTS = ("chosen_reward", "rejected_reward")
"""Figures with a reference of which only the difference says what is better."""

LogProbs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedTexts(PackedTexts):
    """The preferred responses of N rows as `PackedTexts`, and the rejected ones; `references` [N,
    2] by the name of the source in its objective."""

    rejected: TokenTexts | None = None
    references: Mapping[str, LogProbs] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> Ints:
        """Start of each row's tokens, both responses counted."""
        assert self.rejected is not None
        lengths = self.texts.lengths + self.rejected.lengths
        return np.concatenate([[0], np.cumsum(lengths)])

    @property
    def truncated(self) -> int:
        """Number of rows of which a response is truncated."""
        assert self.rejected is not None
        return int((self.texts.truncated | self.rejected.truncated).sum())

    def counts(self, rows: Ints) -> Counts:
        """Counts of the preferred responses of some rows, and of the rows."""
        pairs = float(len(rows) if self.weights is None else self.weights[rows].sum())
        return replace(super().counts(rows), rows=pairs)

    def pad(self, rows: Ints) -> dict[str, Any]:
        """A batch [2B, T] as of `PackedTexts`; `preferred`, how many of its predicted tokens are of
        the preferred responses, which come first; `response_tokens` [B, 2]; `references`, [B, 2] by
        name; `pair_weights` [B], if texts have weights."""
        assert self.rejected is not None
        own, other = self.texts.take(rows), self.rejected.take(rows)
        both = PackedTexts(
            _laid_together(own, other), one_each(2 * len(rows)), "none", self.pad_id, {}, True
        )
        batch = both.pad(np.arange(2 * len(rows)))
        batch["pooled_at"] = batch["pooled_at"][: len(rows)]
        batch["preferred"] = int(own.predicted.sum())
        counts_B2 = np.stack([own.predicted, other.predicted], axis=1)
        batch["response_tokens"] = torch.from_numpy(counts_B2)
        if self.references:
            batch["references"] = {
                name: torch.from_numpy(each[rows]).float() for name, each in self.references.items()
            }
        if self.weights is not None:
            batch["pair_weights"] = torch.from_numpy(self.weights[rows].astype(np.float32))
        return batch | self._weights(rows) | self._answers(rows)


def paired(
    texts: PackedTexts, rejected: TokenTexts, references: Mapping[str, LogProbs]
) -> PairedTexts:
    """Rows of one preferred text each, and the rejected texts of the same rows."""
    assert texts.packing == "none"
    assert len(texts) == len(rejected)
    return PairedTexts(
        texts.texts,
        texts.packs,
        texts.packing,
        texts.pad_id,
        texts.teachers,
        texts.prompted,
        texts.weights,
        rejected,
        references,
    )


def _laid_together(one: TokenTexts, other: TokenTexts) -> TokenTexts:
    return replace(
        one,
        ids=np.concatenate([one.ids, other.ids]),
        offsets=np.concatenate([one.offsets, one.offsets[-1] + other.offsets[1:]]),
        prompts=np.concatenate([one.prompts, other.prompts]),
        truncated=np.concatenate([one.truncated, other.truncated]),
        bytes=np.concatenate([one.bytes, other.bytes]),
        read=None,
    )


def response_log_probs(log_probs_P: Tensor, text_of_P: Tensor, pairs: int) -> Tensor:
    """Sums [B, 2] of the log-probabilities of the tokens of 2B texts, the preferred ones first."""
    sums = log_probs_P.new_zeros(2 * pairs).index_add(0, text_of_P, log_probs_P)
    return sums.view(2, pairs).t()


@dataclass(slots=True)
class PairSums:
    """Sums over the pairs of an evaluation."""

    pairs: int = 0
    likelier: int = 0
    margin: float = 0.0
    rewarded: int = 0
    rewards: npt.NDArray[np.float64] | None = None

    def add(self, pairs: ResponsePairs, reference_B2: Tensor | None) -> None:
        """Add a batch."""
        counts_B2 = pairs.counts_B2.cpu().numpy()
        whole_B = (counts_B2 > 0).all(axis=1)
        log_probs_B2 = pairs.log_probs_B2.cpu().double().numpy()[whole_B]
        scores_B2 = log_probs_B2 / counts_B2[whole_B]
        margins_B = scores_B2[:, 0] - scores_B2[:, 1]
        self.pairs += len(margins_B)
        self.likelier += int((margins_B > 0).sum())
        self.margin += float(margins_B.sum())
        if reference_B2 is not None:
            ratios_B2 = log_probs_B2 - reference_B2.cpu().double().numpy()[whole_B]
            self.rewarded += int((ratios_B2[:, 0] > ratios_B2[:, 1]).sum())
            sums_2 = ratios_B2.sum(axis=0)
            self.rewards = sums_2 if self.rewards is None else self.rewards + sums_2

    def figures(self) -> dict[str, float]:
        """Means over pairs; nothing without any."""
        if not self.pairs:
            return {}
        found = {
            "preference_accuracy": self.likelier / self.pairs,
            "preference_margin": self.margin / self.pairs,
        }
        if self.rewards is None:
            return found
        chosen, rejected = (self.rewards / self.pairs).tolist()
        return found | {
            "reward_accuracy": self.rewarded / self.pairs,
            "reward_margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }
