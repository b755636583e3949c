"""Weights of several teachers for each example, and their fused prediction.

Shapes: N teachers, B rows, K classes; logits [N, B, K]; weights [N, B] sum to 1 over the teachers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import entropy
from .task import MISSING_LABEL

LEAST_DEVIATION = 1e-7
"""Added to the deviation of an example's logits, which is 0 where all are equal."""


def standardized(logits: Tensor) -> Tensor:
    """(z - mean) / (deviation + 1e-7) over the classes [..., K] of each example.

    Source: Sun et al., Logit Standardization in Knowledge Distillation, arXiv 2403.01427."""
    mean = logits.mean(dim=-1, keepdim=True)
    centred = logits - mean
    deviation = centred.square().mean(dim=-1, keepdim=True)
    # The root of 0 has no gradient.
    root = torch.where(deviation > 0, deviation, 1).sqrt() * (deviation > 0)
    return centred / (root + LEAST_DEVIATION)


def weights_of_losses(losses_NB: Tensor) -> Tensor:
    """(1 - softmax over teachers of the losses) / (N - 1): the smaller a loss, the larger a weight.

    Source: Zhang et al., Confidence-Aware Multi-Teacher Knowledge Distillation, arXiv
    2201.00007."""
    return (1 - F.softmax(losses_NB, dim=0)) / (len(losses_NB) - 1)


def entropies(logits_NBK: Tensor) -> Tensor:
    """The entropy [N, B] in nats of each prediction."""
    return entropy(F.log_softmax(logits_NBK, dim=-1))


def confidence_losses(logits_NBK: Tensor, labels_B: Tensor) -> Tensor:
    """The cross entropy [N, B] with the label; of a row without one, the entropy."""
    log_p = F.log_softmax(logits_NBK, dim=-1)
    index = labels_B.clamp(min=0).expand(len(logits_NBK), -1).unsqueeze(-1)
    of_label = -log_p.gather(-1, index).squeeze(-1)
    return torch.where(labels_B == MISSING_LABEL, entropies(logits_NBK), of_label)


def agreement_weights(logits_NBK: Tensor) -> Tensor:
    """In proportion to the mean over the other teachers of 1 - total variation, the mass that two
    predictions share; equal where no two share any. Of two teachers, always equal."""
    p_NBK = F.softmax(logits_NBK, dim=-1)
    shared_NNB = torch.minimum(p_NBK.unsqueeze(0), p_NBK.unsqueeze(1)).sum(dim=-1)
    others_NB = shared_NNB.sum(dim=0) - 1
    total_B = others_NB.sum(dim=0)
    equal = torch.full_like(others_NB, 1 / len(logits_NBK))
    return torch.where(total_B > 0, others_NB / torch.where(total_B > 0, total_B, 1), equal)


def fused_log_probabilities(
    logits_NBK: Tensor, weights_NB: Tensor, temperature: float, of_logits: bool
) -> Tensor:
    """log of Σ_n w_n · softmax(z_n / T), or log softmax(Σ_n w_n · z_n / T) [B, K]."""
    weights = weights_NB.unsqueeze(-1)
    if of_logits:
        return F.log_softmax((weights * logits_NBK).sum(dim=0) / temperature, dim=-1)
    log_p = F.log_softmax(logits_NBK / temperature, dim=-1)
    # A weight of 0 is -inf, which takes nothing part; its gradient is none either.
    known = weights > 0
    log_w = torch.where(known, weights, 1).log().masked_fill(~known, -torch.inf)
    return torch.logsumexp(log_w + log_p, dim=0)
