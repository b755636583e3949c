"""Losses of pairs of responses to one prompt, of which the first is preferred.

Shapes: B pairs; log_probs, reference [B, 2] in nats, sums over the tokens of a response, the
preferred one first; counts [B, 2], how many tokens each has.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.options import PreferenceLoss


def log_ratios(
    log_probs_B2: Tensor, reference_B2: Tensor, counts_B2: Tensor, per_token: bool
) -> Tensor:
    """log π(y|x) - log π_ref(y|x) [B, 2] of both responses, in nats; `per_token`: divided by the
    tokens of each. The reference is detached.

    beta times this is the implicit reward of DPO (arXiv 2305.18290, section 5)."""
    ratios_B2 = log_probs_B2 - reference_B2.detach().to(log_probs_B2.dtype)
    return ratios_B2 / _lengths(counts_B2) if per_token else ratios_B2


def per_token_log_probs(log_probs_B2: Tensor, counts_B2: Tensor) -> Tensor:
    """Mean log-probability of the tokens of each response [B, 2], in nats; 0 without tokens."""
    return log_probs_B2 / _lengths(counts_B2)


def _lengths(counts_B2: Tensor) -> Tensor:
    return counts_B2.clamp(min=1)


def sigmoid_loss(margin_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """-(1 - e) log σ(beta·h) - e log σ(-beta·h) [B], h the margin of the log-ratios; e, the label
    smoothing, is the share of preferences that are taken to be the wrong way round.

    log 2 at h = 0. Sources: DPO, arXiv 2305.18290, equation 7; with e, conservative DPO (Mitchell,
    "A note on DPO with noisy preferences & relationship to IPO", 2023)."""
    scaled_B = beta * margin_B
    return -(1 - smoothing) * F.logsigmoid(scaled_B) - smoothing * F.logsigmoid(-scaled_B)


def hinge_loss(margin_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """max(0, 1 - beta·h) [B]; nothing is smoothed.

    Source: SLiC, arXiv 2305.10425, with log-ratios as in RSO, arXiv 2309.06657."""
    return torch.relu(1 - beta * margin_B)


def ipo_loss(margin_B: Tensor, beta: float, smoothing: float) -> Tensor:
    """(h - 1 / (2·beta))² [B]; nothing is smoothed. Its least is at h = 1 / (2·beta), so that a
    margin does not grow without end. Source: IPO, arXiv 2310.12036, equation 17."""
    return (margin_B - 1 / (2 * beta)).square()


PREFERENCE_LOSSES: Mapping[PreferenceLoss, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
}


def ranking_loss(scores_B2: Tensor, margin: float) -> Tensor:
    """max(0, margin - s(preferred) + s(rejected)) [B], s the score of a response.

    Sources: ranking calibration of PLaD, arXiv 2406.02886, and of SLiC, arXiv 2210.00045."""
    return torch.relu(margin - (scores_B2[:, 0] - scores_B2[:, 1]))


def weighted_mean(losses_B: Tensor, weights_B: Tensor | None, total: float | None) -> Tensor:
    """Σ w·loss / total, w 1 without weights; `total` is the sum of w over a step divided by its
    batches, default that of these pairs. 0 where it is 0."""
    if weights_B is not None:
        losses_B = losses_B * weights_B.to(losses_B.dtype)
        if total is None:
            return losses_B.sum() / weights_B.sum().clamp(min=torch.finfo(losses_B.dtype).tiny)
    count = len(losses_B) if total is None else total
    return losses_B.sum() / (count or 1)
