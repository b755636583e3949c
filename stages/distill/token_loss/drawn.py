"""Answers that are draws from the teacher: estimates whose mean over draws is the divergence's.

forward KL   Weights w_i = 1/K: the value is KL of the drawn tokens' frequencies to the student, the
             gradient that of Σ w_i·(-log q_i), unbiased. At another temperature than the draws',
             w_i ∝ p_i^(1/T - 1), self-normalised: consistent as K grows, not unbiased.
others       Σ p·h(q/p) is estimated by the mean of h(r_i) - h'(1)·(r_i - 1), r_i = q_i/p_i. What
             is taken off has mean 0, for Σ p·(q/p - 1) = 0, provided that no token that the student
             uses has the probability 0: value and gradient then are unbiased. The value is never
             negative, and where q = p neither has any variance.
Source of draws for forward KL: arXiv 2503.16870.
"""

import torch
from torch import Tensor

from .answers import Answers, DrawnAnswers
from .divergences import LEAST_DIVISOR, Measure
from .softened import Softened, softmax


def soften_drawn(
    logits_CV: Tensor,
    spare_CV: Tensor,
    answers: Answers,
    answered_C: Tensor,
    *,
    measure: Measure | None,
    temperature: float,
) -> Softened:
    """The estimate from K draws; no measure: forward KL."""
    assert isinstance(answers, DrawnAnswers)
    ids_CK = answers.ids_PK.where(answered_C[:, None], 0).long()
    log_p_CK = _log_probs(answers, answered_C, logits_CV)
    log_sum_C1 = softmax(logits_CV, spare_CV)
    log_q_CK = logits_CV.gather(1, ids_CK).sub_(log_sum_C1)
    if measure is None:
        parts_CK, slopes_CK = _frequencies(ids_CK, log_p_CK, log_q_CK, temperature)
    else:
        parts_CK, slopes_CK = _ratios(log_q_CK - log_p_CK, measure)
    return Softened(
        divergence_C=parts_CK.sum(dim=1),
        log_sum_C1=log_sum_C1,
        shares_CV=spare_CV,
        rest_C1=torch.ones_like(log_sum_C1),
        slope_C1=-slopes_CK.sum(dim=1, keepdim=True),
        push=slopes_CK,
        ids_Ck=ids_CK,
    )


def _log_probs(answers: DrawnAnswers, answered_C: Tensor, like: Tensor) -> Tensor:
    """Of the drawn tokens; zeros where nobody kept them and nobody needs them."""
    if answers.log_probs_PK is None:
        return like.new_zeros(answers.ids_PK.shape)
    kept_CK = answers.log_probs_PK.where(answered_C[:, None], 0).to(like.dtype)
    return kept_CK.clamp(min=LEAST_DIVISOR)


def _frequencies(
    ids_CK: Tensor, log_p_CK: Tensor, log_q_CK: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Parts and slopes of KL(W ‖ q), W the weight of each drawn token."""
    log_w_CK = (log_p_CK * (1 / temperature - 1)).log_softmax(dim=1)
    ordered_CK = ids_CK.sort(dim=1).values
    first, past = (torch.searchsorted(ordered_CK, ids_CK, right=right) for right in (False, True))
    log_weight_CK = log_w_CK + (past - first).to(log_w_CK.dtype).log_()
    w_CK = log_w_CK.exp_()
    return (log_weight_CK - log_q_CK).mul_(w_CK), -w_CK


def _ratios(log_r_CK: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """Parts and slopes of the mean of h(r) - h'(1)·(r - 1); h is the measure at p = 1, q = r."""
    draws = log_r_CK.shape[1]
    parts_CK, slopes_CK = measure(torch.zeros_like(log_r_CK), log_r_CK)
    _, at_one_CK = measure(torch.zeros_like(log_r_CK), torch.zeros_like(log_r_CK))
    parts_CK = parts_CK - at_one_CK * torch.expm1(log_r_CK)
    return parts_CK / draws, (slopes_CK - at_one_CK * log_r_CK.exp()) / draws
