"""Comparisons that look at more of a token than the two distributions: its target, the progress of
training, or how much it counts.

Each takes log p (teacher) and log q (student) of C tokens over o outcomes, and the target's number
among these, [C], -1 for unknown; and gives parts and slopes as in `divergences.py`. Outcomes are
the whole vocabulary, or the listed tokens and, with a tail, all others as one more, the last. A
target that is not listed is that last one: "some token that the teacher did not list"; without a
tail it is unknown. For an unknown target the teacher's most probable outcome stands.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .divergences import LEAST, Measure, forward_kl, measure_of, skew_kl
from .settings import TokenLossSettings, TokenWeights

Comparison = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""log p, which may be used up, log q [C, o], targets [C] -> parts and slopes [C, o]."""


def comparison_of(settings: TokenLossSettings, progress: float) -> Comparison:
    """The comparison that the settings choose, when a share of the steps, 0 to 1, is made."""
    compare: Comparison
    match settings.divergence:
        case "dkd":
            compare = partial(
                dkd,
                target_weight=settings.target_weight,
                nontarget_weight=settings.nontarget_weight,
            )
        case "atkd":
            compare = partial(
                atkd,
                easy_weight=settings.atkd_easy_weight,
                uncertainty=settings.atkd_uncertainty,
            )
        case "taid":
            span = settings.taid_end - settings.taid_start
            share = settings.taid_start + progress * span
            compare = _whatever_the_target(partial(taid, share=share))
        case "self_evolution":
            compare = partial(
                self_evolution,
                label_share=settings.evolution_label_share,
                prior_share=settings.evolution_prior_share,
                difficulty=settings.evolution_difficulty,
            )
        case _:
            compare = _whatever_the_target(measure_of(settings))
    if settings.token_weights == "uniform":
        return compare
    return partial(_weighed, compare, settings.token_weights)


def _whatever_the_target(measure: Measure) -> Comparison:
    return lambda log_p, log_q, _: measure(log_p, log_q)


def taid(log_p: Tensor, log_q: Tensor, *, share: float) -> tuple[Tensor, Tensor]:
    """KL(r ‖ q), r the softmax of logits between the student's, without a gradient, and the
    teacher's: log r = (1-t)·log q + t·log p less a constant. The tail is interpolated as one token.

    Source: Shing et al., TAID, arXiv 2501.16937."""
    log_r = torch.lerp(log_q, log_p, share).log_softmax(dim=-1).clamp_(min=LEAST)
    return forward_kl(log_r, log_q)


def dkd(
    log_p: Tensor,
    log_q: Tensor,
    target_C: Tensor,
    *,
    target_weight: float | Tensor,
    nontarget_weight: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """target_weight · KL((p_y, 1-p_y) ‖ (q_y, 1-q_y)) + nontarget_weight · KL of p to q among the
    other outcomes, y the target; weights may differ by token, [C, 1].

    The second is 0 where one of the two has nothing but its target.
    Source: Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679."""
    y_C1 = _known(log_p, target_C)
    log_p_y_C1, log_q_y_C1 = log_p.gather(1, y_C1), log_q.gather(1, y_C1)
    others_p, log_rest_p_C1 = _others(log_p, y_C1)
    others_q, log_rest_q_C1 = _others(log_q, y_C1)
    some_C1 = (log_rest_p_C1 > LEAST / 2) & (log_rest_q_C1 > LEAST / 2)
    p_hat, q_hat = (each.exp().where(some_C1, 0) for each in (others_p, others_q))
    p_y_C1, rest_C1 = log_p_y_C1.exp(), log_rest_p_C1.exp()
    target_C1 = p_y_C1 * (log_p_y_C1 - log_q_y_C1) + rest_C1 * (log_rest_p_C1 - log_rest_q_C1)
    parts = nontarget_weight * (p_hat * (others_p - others_q))
    slopes = nontarget_weight * (q_hat - p_hat) - target_weight * rest_C1 * q_hat
    parts.scatter_(1, y_C1, target_weight * target_C1)
    slopes.scatter_(1, y_C1, -target_weight * p_y_C1)
    return parts, slopes


def atkd(
    log_p: Tensor, log_q: Tensor, target_C: Tensor, *, easy_weight: float, uncertainty: float
) -> tuple[Tensor, Tensor]:
    """Both halves of `dkd` for tokens that are hard to learn, the second alone for easy ones:

    hard, 1 - p_y > uncertainty:   (1 - easy_weight) · (target + nontarget)
    easy, all others:              easy_weight · nontarget

    The paper calls half of a batch's tokens hard; here a threshold does, so that a token's loss
    depends on nothing but the token.
    Source: Zhong et al., ATKD, arXiv 2402.11890."""
    y_C1 = _known(log_p, target_C)
    hard_C1 = (1 - log_p.gather(1, y_C1).exp() > uncertainty).to(log_p.dtype)
    target_weight = (1 - easy_weight) * hard_C1
    nontarget_weight = target_weight + easy_weight * (1 - hard_C1)
    return dkd(
        log_p, log_q, target_C, target_weight=target_weight, nontarget_weight=nontarget_weight
    )


def self_evolution(
    log_p: Tensor,
    log_q: Tensor,
    target_C: Tensor,
    *,
    label_share: float,
    prior_share: float,
    difficulty: float,
) -> tuple[Tensor, Tensor]:
    """KL(r ‖ m), of a target r made of the corpus's token y and the teacher:

    r = label_share · onehot(y) + (1 - label_share) · p
    m = prior_share · r + (1 - prior_share) · q where KL(r ‖ q) > difficulty, and q elsewhere

    so that a student far from the target is led by a share of it. Where y is unknown, r = p.
    Difficulty passes no gradient. With both shares 0 it is `forward_kl`.
    Source: Song et al., Self-Evolution Knowledge Distillation, arXiv 2412.15303, which parts a
    batch's tokens into difficult and easy ones; here a threshold does, so that a token's loss
    depends on nothing but the token.
    """
    log_r = _with_label(log_p, target_C, label_share) if label_share else log_p
    if prior_share == 0:
        return forward_kl(log_r, log_q)
    easy_parts, easy_slopes = forward_kl(log_r.clone(), log_q)
    hard_C1 = easy_parts.sum(dim=1, keepdim=True) > difficulty
    hard_parts, hard_slopes = skew_kl(log_r, log_q, skew=prior_share)
    return hard_parts.where(hard_C1, easy_parts), hard_slopes.where(hard_C1, easy_slopes)


def _with_label(log_p: Tensor, target_C: Tensor, share: float) -> Tensor:
    y_C1 = target_C.clamp(min=0)[:, None]
    mixed = (log_p + math.log1p(-share)).clamp_(min=LEAST)
    label_C1 = torch.full_like(log_p[:, :1], math.log(share))
    mixed.scatter_(1, y_C1, torch.logaddexp(mixed.gather(1, y_C1), label_C1))
    return mixed.where(target_C[:, None] >= 0, log_p)


def _known(log_p: Tensor, target_C: Tensor) -> Tensor:
    return torch.where(target_C < 0, log_p.argmax(dim=1), target_C)[:, None]


def _others(log_p: Tensor, y_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the other outcomes among themselves, and of their sum [C, 1]."""
    others = log_p.scatter(1, y_C1, LEAST)
    log_rest_C1 = others.logsumexp(dim=1, keepdim=True)
    return others - log_rest_C1, log_rest_C1


def _weighed(
    compare: Comparison, how: TokenWeights, log_p: Tensor, log_q: Tensor, target_C: Tensor
) -> tuple[Tensor, Tensor]:
    """A comparison times a weight of each token in [0, 1], without a gradient:

    entropy    H(p) / log o: tokens that the teacher leaves open
    certainty  1 - H(p) / log o: tokens that it is sure of
    gap        ½ Σ |p - q|: tokens where the student is far from it

    The mean is still over all tokens, so that it does not depend on what meets in a batch."""
    p = log_p.exp()
    if how == "gap":
        weight_C1 = 0.5 * (p - log_q.exp()).abs().sum(dim=1, keepdim=True)
    else:
        entropy_C1 = -(p * log_p).sum(dim=1, keepdim=True) / math.log(max(2, p.shape[1]))
        weight_C1 = entropy_C1 if how == "entropy" else 1 - entropy_C1
    parts, slopes = compare(log_p, log_q, target_C)
    return parts * weight_C1, slopes * weight_C1
