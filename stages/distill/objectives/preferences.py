"""Objectives of language models that learn which of two responses to a prompt is preferred.

    total = loss of the pairs + sft_weight · cross entropy of the preferred responses

A mean over the pairs of the whole step, and one over its preferred tokens. The formulas are in
`../losses/preferences.py`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....cache_schemas.errors import MissingFeatureError
from ..losses import accumulated
from ..losses.preferences import (
    PREFERENCE_LOSSES,
    log_ratios,
    per_token_log_probs,
    ranking_loss,
    weighted_mean,
)
from .base import Objective, Reads, ResponsePairs, Sources, StudentSide, named_terms
from .options import DPOOptions, PLaDOptions

_OF_PAIRS: dict[str, Any] = {
    "student": frozenset({"tokens", "pairs"}),
    "labels": False,
    "headless": True,
}


class DPOObjective(Objective):
    """Preferred responses become likelier against rejected ones than they were for a reference.

    Formula: mean of -log σ(beta·h) over pairs, h = log-ratio of the preferred - of the rejected
    response, log-ratio = log π(y|x) - log π_ref(y|x); or hinge or ipo of h; + sft_weight · CE
    Source: DPO, arXiv 2305.18290; hinge: SLiC, arXiv 2305.10425; ipo: arXiv 2310.12036; sft_weight:
    RPO, arXiv 2404.19733; with a larger teacher as the reference and length_normalised: DPKD, arXiv
    2406.19774.

    The reference's log-probabilities (`own_log_probs`) come from a cache, where the student's own
    start is a teacher like any other: no second model is in memory.

    Owns nothing.
    """

    Options = DPOOptions
    options: DPOOptions
    reads = Reads(axis="predictions", default_feature="own_log_probs", **_OF_PAIRS)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total; preference (before sft_weight is added); language, if sft_weight is not 0; and of
        the batch accuracy (share of pairs with h > 0), chosen_reward and rejected_reward, beta
        times the mean log-ratios."""
        pairs, options = _pairs(side), self.options
        (source,) = self.sources
        reference_B2 = sources.get(source)
        if not isinstance(reference_B2, Tensor):
            raise MissingFeatureError(
                "dpo needs a reference's log-probabilities and the batch has none"
            )
        ratios_B2 = log_ratios(
            pairs.log_probs_B2, reference_B2, pairs.counts_B2, options.length_normalised
        )
        margin_B = ratios_B2[:, 0] - ratios_B2[:, 1]
        compare = PREFERENCE_LOSSES[options.preference_loss]
        losses_B = compare(margin_B, float(options.beta), options.label_smoothing)
        rewards_2 = float(options.beta) * ratios_B2.mean(dim=0)
        return _terms(
            pairs,
            losses_B,
            1.0,
            float(options.sft_weight),
            accuracy=(margin_B > 0).to(margin_B.dtype).mean(),
            chosen_reward=rewards_2[0],
            rejected_reward=rewards_2[1],
        )

    def task_weight(self, sources: Sources) -> float:
        """sft_weight."""
        return float(self.options.sft_weight)


class PLaDObjective(Objective):
    """Preferred responses become likelier than rejected ones by a margin; without a reference.

    Formula: mean of max(0, margin - s(preferred) + s(rejected)) over pairs, times beta, s = log
    π(y|x) / tokens of y; + sft_weight · CE of the preferred responses
    Source: PLaD, arXiv 2406.02886 (ranking calibration); SLiC, arXiv 2210.00045.

    In PLaD a teacher's response is preferred to the student's own: a corpus with both as columns.

    Owns nothing.
    """

    Options = PLaDOptions
    options: PLaDOptions
    reads = Reads(features=0, **_OF_PAIRS)

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total; calibration before its weight; language, if sft_weight is not 0; and accuracy, the
        share of the batch's pairs whose preferred response is likelier."""
        pairs, options = _pairs(side), self.options
        scores_B2 = pairs.log_probs_B2
        if options.length_normalised:
            scores_B2 = per_token_log_probs(scores_B2, pairs.counts_B2)
        losses_B = ranking_loss(scores_B2, float(options.margin))
        right_B = (scores_B2[:, 0] > scores_B2[:, 1]).to(losses_B.dtype)
        beta, sft_weight = float(options.beta), float(options.sft_weight)
        return _terms(pairs, losses_B, beta, sft_weight, accuracy=right_B.mean())

    def task_weight(self, sources: Sources) -> float:
        """sft_weight."""
        return float(self.options.sft_weight)


def _pairs(side: StudentSide) -> ResponsePairs:
    if side.pairs is None:
        raise MissingFeatureError("an objective of preferences needs two responses to each prompt")
    return replace(side.pairs, log_probs_B2=accumulated(side.pairs.log_probs_B2))


def _terms(
    pairs: ResponsePairs, losses_B: Tensor, weight: float, sft_weight: float, **reported: Tensor
) -> dict[str, Tensor]:
    """total, preference, and language if it has a weight."""
    preference = weighted_mean(losses_B, pairs.weights_B, pairs.total_weight)
    total = weight * preference
    if sft_weight:
        language = _cross_entropy(pairs)
        total, reported = total + sft_weight * language, {"language": language, **reported}
    return named_terms(total, preference=preference, **reported)


def _cross_entropy(pairs: ResponsePairs) -> Tensor:
    """Mean cross entropy of the preferred responses' tokens."""
    nats_B, counts_B = -pairs.log_probs_B2[:, 0], pairs.counts_B2[:, 0].to(pairs.log_probs_B2.dtype)
    if pairs.weights_B is not None:
        weights_B = pairs.weights_B.to(nats_B.dtype)
        nats_B, counts_B = nats_B * weights_B, counts_B * weights_B
    if pairs.total_tokens is not None:
        return nats_B.sum() / (pairs.total_tokens or 1)
    return nats_B.sum() / counts_B.sum().clamp(min=torch.finfo(counts_B.dtype).tiny)
