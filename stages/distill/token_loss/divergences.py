"""Divergences of two distributions as sums over outcomes, with their slopes, without a graph.

Each takes log p (teacher) and log q (student) of the same shape and gives, outcome by outcome,

    its part of the sum, and   g = q · ∂sum/∂q = ∂sum/∂log q,  log q taken as free

from which the caller gets the slope in the logits z behind q = softmax(z):  g_j - q_j · Σ_i g_i.
Every one is an f-divergence Σ p·h(q/p), so that at log p = 0, log q = log r they give h(r) and
r·h'(r), which is what estimates from draws need.

Where a probability is 0 its logarithm is `LEAST`: finite, so that 0·LEAST is 0 and no mask is
needed. No KL to the teacher is finite where the teacher's probability is 0 and the student's is
not: there, and below e^-80 anywhere, it counts as e^-80.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .settings import TokenLossSettings

LEAST = -1e30
"""The logarithm of 0, as far as float32 is concerned."""

LEAST_DIVISOR = -80.0
"""The least logarithm of a probability that is divided by: e^80 times 80 still is a float32."""

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""log p, which may be used up, and log q [...] -> parts and slopes [...]."""


def measure_of(settings: TokenLossSettings) -> Measure:
    """The divergence that the settings choose."""
    measures: dict[str, Measure] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": partial(jsd, beta=settings.jsd_beta),
        "skew_kl": partial(skew_kl, skew=settings.skew),
        "skew_reverse_kl": partial(skew_reverse_kl, skew=settings.skew),
        "total_variation": total_variation,
    }
    return measures[settings.divergence]


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = Σ p (log p - log q)."""
    p = log_p.exp()
    return log_p.sub_(log_q).mul_(p), p.neg_()


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) = Σ q (log q - log p)."""
    q = log_q.exp()
    parts = (log_q - log_p.clamp(min=LEAST_DIVISOR)).mul_(q)
    return parts, q.add_(parts)


def jsd(log_p: Tensor, log_q: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """β·KL(p ‖ m) + (1-β)·KL(q ‖ m), m = β·p + (1-β)·q.

    Source: generalised Jensen-Shannon divergence, as in GKD, arXiv 2306.13649."""
    log_m = _log_mixture(log_p, log_q, beta)
    slope = (log_q - log_m).mul_(log_q.exp()).mul_(1 - beta)
    return (log_p - log_m).mul_(log_p.exp()).mul_(beta).add_(slope), slope


def skew_kl(log_p: Tensor, log_q: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """KL(p ‖ m), m = λ·p + (1-λ)·q. Source: DistiLLM, arXiv 2402.03898."""
    if skew == 0:
        return forward_kl(log_p, log_q)
    log_m = _log_mixture(log_p, log_q, skew)
    slope = (log_p + log_q).sub_(log_m).exp_().mul_(skew - 1)
    return (log_p - log_m).mul_(log_p.exp()), slope


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, *, skew: float) -> tuple[Tensor, Tensor]:
    """KL(q ‖ m), m = (1-λ)·p + λ·q. Source: DistiLLM, arXiv 2402.03898."""
    if skew == 0:
        return reverse_kl(log_p, log_q)
    log_m = _log_mixture(log_p, log_q, 1 - skew)
    q = log_q.exp()
    parts = (log_q - log_m).mul_(q)
    # q·(1 - λq/m), for the mixture moves along.
    return parts, (2 * log_q).sub_(log_m).exp_().mul_(-skew).add_(q).add_(parts)


def total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """½ Σ |p - q|; its slope is 0 where the two are equal."""
    q = log_q.exp()
    difference = q - log_p.exp()
    return difference.abs().mul_(0.5), q.mul_(difference.sign_()).mul_(0.5)


def _log_mixture(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share_of_p), log_q + math.log1p(-share_of_p))
