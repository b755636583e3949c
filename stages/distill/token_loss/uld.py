"""Universal logit distillation: a teacher with another tokenizer, compared rank by rank.

    Σ_i |p_(i) - q_(i)|,  p_(1) >= p_(2) >= ... the teacher's probabilities, q_(i) the student's

over all ranks, the smaller vocabulary filled up with zeros. Only dense predictions have all ranks.
From the k greatest and the mass of the others the sum over k ranks plus |tail p - tail q| is taken,
and that is a lower bound of the sum over all ranks: by the triangle inequality

    Σ_{i>k} |p_(i) - q_(i)|  >=  |Σ_{i>k} p_(i) - Σ_{i>k} q_(i)|  =  |tail p - tail q|

The caller chooses the positions of two texts that are compared: see `../language/teachers.py`.
Source: Boizard et al., arXiv 2402.12030.
"""

import torch
from torch import Tensor

from ....cache_schemas.errors import JobError
from .answers import Answers, DenseAnswers, SparseAnswers, entries
from .divergences import LEAST, SetApart, Softened, padded, softmax, tempered, total_variation
from .loss import Tokens, TokenTerms, chunked


def uld_loss(
    tokens: Tokens, answers: Answers, *, alpha: float, chunk: int | None = None
) -> TokenTerms:
    """alpha · Σ_i |p_(i) - q_(i)| + (1 - alpha) · cross entropy, each a mean over its tokens, at
    temperature 1. The ids of sparse predictions are ignored: their k tokens have to be the most
    probable.

    Everything else is as in `token_loss`. Raises JobError for predictions without the mass of all
    tokens: samples, or sparse ones without a tail."""
    match answers:
        case DenseAnswers():
            soften = _all_ranks
        case SparseAnswers(log_tail_P=Tensor()):
            _check_ranks(answers.ids_Pk.shape[1], len(tokens.weight_VH))
            soften = _first_ranks
        case _:
            raise JobError("uld needs sorted probabilities; cache top_k with its tail, or dense")
    return chunked(tokens, answers, soften, alpha=alpha, temperature=1.0, chunk=chunk)


def _check_ranks(listed: int, vocab_size: int) -> None:
    if listed > vocab_size:
        raise JobError(
            f"the teacher's predictions list {listed} tokens, the student's vocabulary has "
            f"{vocab_size}; cache fewer"
        )


def _distance(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """|p - q|, twice what total variation has."""
    parts, slopes = total_variation(log_p, log_q)
    return parts.mul_(2), slopes.mul_(2)


def _first_ranks(
    logits_CV: Tensor, spare_CV: Tensor, answers: Answers, answered_C: Tensor, targets_C: Tensor
) -> Softened:
    assert isinstance(answers, SparseAnswers)
    assert answers.log_tail_P is not None
    listed = entries(answers, answered_C, LEAST)
    log_p_Ck, order_Ck = listed.log_probs_Ck.to(logits_CV.dtype).sort(dim=1, descending=True)
    present_Ck = listed.present_Ck.gather(1, order_Ck)
    # As many ranks of the student as the teacher has; its others are in the tail.
    ids_Ck = logits_CV.topk(order_Ck.shape[1], dim=1).indices
    apart = SetApart(logits_CV, spare_CV, ids_Ck.where(present_Ck, ids_Ck[:, :1]), present_Ck)
    log_tail_C1 = answers.log_tail_P.where(answered_C, 0).to(log_p_Ck).clamp(min=LEAST)[:, None]
    return apart.with_tail(*_distance(torch.cat((log_p_Ck, log_tail_C1), 1), apart.log_q_Co))


def _all_ranks(
    logits_CV: Tensor, spare_CV: Tensor, answers: Answers, answered_C: Tensor, targets_C: Tensor
) -> Softened:
    assert isinstance(answers, DenseAnswers)
    vocab_size = logits_CV.shape[1]
    log_sum_C1 = softmax(logits_CV, spare_CV)
    log_q_CV, order_CV = logits_CV.sub_(log_sum_C1).sort(dim=1, descending=True)
    log_p = padded(tempered(answers, answered_C, logits_CV, 1.0), vocab_size)
    log_p = log_p.sort(dim=1, descending=True).values
    parts_CV, slopes_CV = _distance(log_p[:, :vocab_size], log_q_CV)
    beyond_C = log_p[:, vocab_size:].exp().sum(dim=1)
    return Softened(
        divergence_C=parts_CV.sum(dim=1) + beyond_C,
        log_sum_C1=log_sum_C1,
        shares_CV=spare_CV,
        rest_C1=torch.ones_like(log_sum_C1),
        slope_C1=-slopes_CV.sum(dim=1, keepdim=True),
        push=slopes_CV,
        ids_Ck=order_CV,
    )
