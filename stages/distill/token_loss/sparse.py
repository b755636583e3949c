"""Answers that list k tokens: the listed ids are set apart, so that the others' sum is exact.

The student's mass on all other tokens is a logsumexp of its own, never 1 minus the sum of the
listed ones, which has no correct digit where it is small.
"""

import torch
from torch import Tensor

from .answers import Answers, SparseAnswers, entries
from .divergences import LEAST, Measure
from .softened import Softened, softmax


def soften_sparse(
    logits_CV: Tensor, spare_CV: Tensor, answers: Answers, answered_C: Tensor, *, measure: Measure
) -> Softened:
    """The divergence over the listed tokens, and one more outcome for the others if they have a
    tail."""
    assert isinstance(answers, SparseAnswers)
    listed = entries(answers, answered_C, LEAST)
    log_p_Ck = listed.log_probs_Ck.to(logits_CV.dtype)
    apart = SetApart(logits_CV, spare_CV, listed.ids_Ck, listed.present_Ck)
    if answers.log_tail_P is None:
        log_p_Ck = log_p_Ck - log_p_Ck.logsumexp(dim=1, keepdim=True)
        return apart.renormalised(*measure(log_p_Ck, apart.log_within_Ck))
    log_tail_C1 = answers.log_tail_P.where(answered_C, 0).to(log_p_Ck)[:, None]
    # Where every id is listed there is no other token, whatever rounding has left in the tail.
    log_tail_C1 = log_tail_C1.where(apart.has_rest_C1, LEAST).clamp(min=LEAST)
    return apart.with_tail(*measure(torch.cat((log_p_Ck, log_tail_C1), 1), apart.log_q_Co))


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
