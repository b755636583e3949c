"""Divergences of two distributions as sums over outcomes, with their slopes, without a graph.

Each takes log p (teacher) and log q (student) of the same shape and gives, outcome by outcome,

    its part of the sum, and   g = q · ∂sum/∂q = ∂sum/∂log q,  log q taken as free

from which the caller gets the slope in the logits z behind q = softmax(z):  g_j - q_j · Σ_i g_i.
Every one is an f-divergence Σ p·h(q/p), so that at log p = 0, log q = log r they give h(r) and
r·h'(r), which is what estimates from samples need.

Where a probability is 0 its logarithm is `LEAST`: finite, so that 0·LEAST is 0 and no mask is
needed. No KL to the teacher is finite where the teacher's probability is 0 and the student's is
not: there, and below e^-80 anywhere, it counts as e^-80.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import (
    Answers,
    DenseAnswers,
    Entries,
    SampledAnswers,
    SparseAnswers,
    entries,
    temperatures_of,
)
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


# --- A chunk's divergence with its gradient, in a form common to all kinds of predictions.
#
# The gradient over the vocabulary is a softmax times one number per token, plus a few numbers at
# listed ids (or, for dense predictions, one more matrix): sparse predictions and samples take one
# pass of exponentials and no matrix [C, V] beside the logits and the softmax.


@dataclass(frozen=True, slots=True)
class Softened:
    """With z the logits over the temperature [C, V] and q = softmax(z):

    divergence_C  of each row
    log_sum_C1    log Σ exp z
    shares_CV     q of all ids that are not set apart, over their sum; 0 at the others
    rest_C1       that sum: q = rest · shares, plus mass_Ck at the ids that are set apart
    slope_C1      ∂divergence/∂z = slope · shares, plus push at ids_Ck, or everywhere: [C, V]
    """

    divergence_C: Tensor
    log_sum_C1: Tensor
    shares_CV: Tensor
    rest_C1: Tensor
    slope_C1: Tensor
    push: Tensor
    ids_Ck: Tensor | None = None
    mass_Ck: Tensor | None = None


Soften = Callable[[Tensor, Tensor, Answers, Tensor, Tensor], Softened]
"""Maps logits over the temperature [C, V], which are overwritten, a buffer of that shape for
shares, the predictions, a mask of rows with one [C], and the next tokens [C], -1 where unknown.
Every number is finite in masked rows too, and none shares memory with the logits."""

Compare = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A measure that may look at the target's number among the outcomes, [C]: see `targets.py`."""


def softmax(logits_CV: Tensor, out: Tensor) -> Tensor:
    """Writes exp z / Σ exp z to `out`; returns log Σ exp z, [C, 1].

    The greatest share is 1 / Σ exp(z - max z): no second pass of exponentials."""
    torch.softmax(logits_CV, dim=-1, out=out)
    peak_C1 = logits_CV.amax(dim=-1, keepdim=True)
    return peak_C1 - out.amax(dim=-1, keepdim=True).log_()


# --- Dense predictions: the divergence over the whole vocabulary.
#
# Costs about five matrices [C, V] of a chunk beside the logits and the softmax, none of [P, V].


def soften_dense(
    logits_CV: Tensor,
    spare_CV: Tensor,
    answers: Answers,
    answered_C: Tensor,
    targets_C: Tensor,
    *,
    compare: Compare,
    temperature: float,
) -> Softened:
    """The divergence from softmax(log p / T), over V tokens; T may be each position's own."""
    assert isinstance(answers, DenseAnswers)
    log_sum_C1 = softmax(logits_CV, spare_CV)
    each_C1 = temperatures_of(answers, answered_C)
    at = temperature if each_C1 is None else each_C1.to(logits_CV.dtype)
    log_p_CV = tempered(answers, answered_C, logits_CV, at)
    log_p_CV = padded(log_p_CV, logits_CV.shape[1])
    parts_CV, slopes_CV = compare(log_p_CV, logits_CV.sub_(log_sum_C1), targets_C)
    return Softened(
        divergence_C=parts_CV.sum(dim=1),
        log_sum_C1=log_sum_C1,
        shares_CV=spare_CV,
        rest_C1=log_sum_C1.new_ones(log_sum_C1.shape),
        slope_C1=-slopes_CV.sum(dim=1, keepdim=True),
        push=slopes_CV,
    )


def tempered(
    answers: DenseAnswers, answered_C: Tensor, like: Tensor, temperature: float | Tensor
) -> Tensor:
    """log_softmax(log p / T), [C, V'], T that of all or of each [C, 1]; finite: `LEAST` for a
    probability of 0, and zeros in rows without predictions."""
    log_p = answers.log_probs_PV.to(like.dtype)
    at_one = not isinstance(temperature, Tensor) and temperature == 1
    log_p = (log_p if at_one else log_p / temperature).log_softmax(dim=1)
    return log_p.clamp_(min=LEAST).masked_fill_(~answered_C[:, None], 0)


def padded(log_p: Tensor, vocab_size: int) -> Tensor:
    """Padded with probability 0 for tokens beyond the teacher's vocabulary."""
    lacking = vocab_size - log_p.shape[1]
    return F.pad(log_p, (0, lacking), value=LEAST) if lacking > 0 else log_p


# --- Top-k predictions: the listed ids are treated separately, so that the others' sum is exact.
#
# The student's mass on all other tokens is a logsumexp of its own, never 1 minus the sum of the
# listed ones, which has no correct digit where it is small.


def soften_sparse(
    logits_CV: Tensor,
    spare_CV: Tensor,
    answers: Answers,
    answered_C: Tensor,
    targets_C: Tensor,
    *,
    compare: Compare,
) -> Softened:
    """The divergence over the listed tokens, and one more outcome for the others if they have a
    tail."""
    assert isinstance(answers, SparseAnswers)
    listed = entries(answers, answered_C, LEAST)
    log_p_Ck = listed.log_probs_Ck.to(logits_CV.dtype)
    apart = SetApart(logits_CV, spare_CV, listed.ids_Ck, listed.present_Ck)
    if answers.log_tail_P is None:
        log_p_Ck = log_p_Ck - log_p_Ck.logsumexp(dim=1, keepdim=True)
        outcomes_C = _outcomes(targets_C, listed, elsewhere=-1)
        return apart.renormalised(*compare(log_p_Ck, apart.log_within_Ck, outcomes_C))
    log_tail_C1 = answers.log_tail_P.where(answered_C, 0).to(log_p_Ck)[:, None]
    # If every id is listed there is no other token, whatever rounding has left in the tail.
    log_tail_C1 = log_tail_C1.where(apart.has_rest_C1, LEAST).clamp(min=LEAST)
    outcomes_C = _outcomes(targets_C, listed, elsewhere=log_p_Ck.shape[1])
    log_p_Co = torch.cat((log_p_Ck, log_tail_C1), 1)
    return apart.with_tail(*compare(log_p_Co, apart.log_q_Co, outcomes_C))


def _outcomes(targets_C: Tensor, listed: Entries, elsewhere: int) -> Tensor:
    """The numbers of targets among the outcomes, -1 where unknown; one that is not listed is
    `elsewhere`."""
    is_target_Ck = listed.present_Ck & (listed.ids_Ck == targets_C[:, None])
    found_C, at_C = is_target_Ck.to(torch.uint8).max(dim=1)
    unlisted_C = torch.where(targets_C < 0, -1, elsewhere)
    return torch.where(found_C > 0, at_C, unlisted_C)


class SetApart:
    """A softmax of which some ids are looked at one by one, and the others together.

    ids_Ck repeat an id only where they are not present."""

    def __init__(
        self, logits_CV: Tensor, spare_CV: Tensor, ids_Ck: Tensor, present_Ck: Tensor
    ) -> None:
        self._ids_Ck, self._shares_CV = ids_Ck, spare_CV
        own_Ck = logits_CV.gather(1, ids_Ck).where(present_Ck, LEAST)
        log_rest_C1 = softmax(logits_CV.scatter_(1, ids_Ck, LEAST), spare_CV)
        self.has_rest_C1 = log_rest_C1 > LEAST / 2
        log_listed_C1 = own_Ck.logsumexp(dim=1, keepdim=True)
        self._log_sum_C1 = torch.logaddexp(log_listed_C1, log_rest_C1)
        self.log_within_Ck = own_Ck - log_listed_C1
        """log q of the listed ids over their sum."""
        self.log_q_Co = torch.cat((own_Ck, log_rest_C1), dim=1) - self._log_sum_C1
        """log q of k + 1 outcomes, the others last."""

    def renormalised(self, parts_Ck: Tensor, slopes_Ck: Tensor) -> Softened:
        """A sum over the listed ids, which as a whole move nothing."""
        push_Ck = slopes_Ck - self.log_within_Ck.exp() * slopes_Ck.sum(dim=1, keepdim=True)
        return self._softened(parts_Ck, push_Ck, torch.zeros_like(self._log_sum_C1))

    def with_tail(self, parts_Co: Tensor, slopes_Co: Tensor) -> Softened:
        """A sum over k + 1 outcomes; what moves the last one is shared as its mass is."""
        push_Co = slopes_Co - self.log_q_Co.exp() * slopes_Co.sum(dim=1, keepdim=True)
        return self._softened(parts_Co, push_Co[:, :-1], push_Co[:, -1:])

    def _softened(self, parts: Tensor, push_Ck: Tensor, slope_C1: Tensor) -> Softened:
        q_Co = self.log_q_Co.exp()
        return Softened(
            divergence_C=parts.sum(dim=1),
            log_sum_C1=self._log_sum_C1,
            shares_CV=self._shares_CV,
            rest_C1=q_Co[:, -1:],
            slope_C1=slope_C1,
            push=push_Ck,
            ids_Ck=self._ids_Ck,
            mass_Ck=q_Co[:, :-1],
        )


# --- Samples from the teacher: estimates whose mean over samples is the divergence.
#
# forward KL   Weights w_i = 1/K: the value is KL of the drawn tokens' frequencies to the student,
#              the gradient that of Σ w_i·(-log q_i), unbiased. At another temperature than the
#              samples', w_i ∝ p_i^(1/T - 1), self-normalised: consistent as K grows, not unbiased.
# others       Σ p·h(q/p) is estimated by the mean of h(r_i) - h'(1)·(r_i - 1), r_i = q_i/p_i. What
#              is taken off has mean 0, for Σ p·(q/p - 1) = 0, provided that no token that the
#              student uses has the probability 0: value and gradient then are unbiased. The value
#              is never negative, and where q = p neither has any variance.
# Source of samples for forward KL: arXiv 2503.16870.


def soften_samples(
    logits_CV: Tensor,
    spare_CV: Tensor,
    answers: Answers,
    answered_C: Tensor,
    targets_C: Tensor,
    *,
    measure: Measure | None,
    temperature: float,
) -> Softened:
    """The estimate from K samples; no measure: forward KL."""
    assert isinstance(answers, SampledAnswers)
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


def _log_probs(answers: SampledAnswers, answered_C: Tensor, like: Tensor) -> Tensor:
    """Log-probabilities of the sampled tokens; zeros if they are neither cached nor needed."""
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
    samples = log_r_CK.shape[1]
    parts_CK, slopes_CK = measure(torch.zeros_like(log_r_CK), log_r_CK)
    _, at_one_CK = measure(torch.zeros_like(log_r_CK), torch.zeros_like(log_r_CK))
    parts_CK = parts_CK - at_one_CK * torch.expm1(log_r_CK)
    return parts_CK / samples, (slopes_CK - at_one_CK * log_r_CK.exp()) / samples
