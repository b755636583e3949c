"""Losses of queries and the passages that they are compared with.

Shapes: B queries; N candidates of each, its positive first; M passages of a batch, all of them. All
in the precision of sums. Similarities are cosines, or of texts with a vector for each token those
of late interaction, unless a caller scales them; whatever stands where `present` is false has no
meaning, and is left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...retrieval.late_interaction import maxsim, maxsim_of_pairs
from .distances import products, unit


def similarities(query: Tensor, passage: Tensor) -> Tensor:
    """The similarity of each query [B, E] with each passage [M, E], as [B, M]; of texts with a
    vector for each token, [B, S, E] and [M, T, E]."""
    if query.ndim == 3:
        return maxsim(query, passage)
    return products(unit(query), unit(passage))


def similarities_of_first(texts: Tensor) -> Tensor:
    """The similarity of the first text of each example [B, C, E] with the others, as [B, C - 1]; of
    texts with a vector for each token, [B, C, T, E]."""
    if texts.ndim == 4:
        return maxsim_of_pairs(texts[:, 0], texts[:, 1:])
    texts = unit(texts)
    return (texts[:, :1] * texts[:, 1:]).sum(dim=-1)


def contrastive_loss(
    query: Tensor,
    passage: Tensor,
    own_B: Tensor,
    temperature: float,
    masked_BM: Tensor | None = None,
) -> Tensor:
    """Cross entropy of each query's own passage among all of the batch:
    mean over i of -log softmax_j(cos(q_i, p_j) / τ)[own_i], as `similarities` has them.

    `masked`: which passages are no negatives of which query. Edges: 0 for one query with one
    passage; a zero vector has the cosine 0 to all.
    Source: Henderson et al., arXiv 1705.00652, section 4; with a temperature and further negatives:
    Karpukhin et al., arXiv 2004.04906.
    """
    logits_BM = similarities(query, passage) / temperature
    if masked_BM is not None:
        logits_BM = logits_BM.masked_fill(masked_BM, -math.inf)
    return F.cross_entropy(logits_BM, own_B)


def cosent_loss(cosine_B: Tensor, score_B: Tensor, temperature: float) -> Tensor:
    """Pairs of texts in the order of their scores:
    log(1 + Σ over i, j with y_i > y_j of exp((c_j - c_i) / τ)), c the cosine of a pair's texts.

    Pairs without a score (NaN) are left out. Edges: 0 where no two scores differ.
    Source: Su, "CoSENT", kexue.fm/archives/8847, 2022, equation 5.
    """
    differences_BB = (cosine_B[None, :] - cosine_B[:, None]) / temperature
    ordered_BB = score_B[:, None] > score_B[None, :]
    kept_BB = differences_BB.masked_fill(~ordered_BB, -math.inf)
    return torch.logsumexp(F.pad(kept_BB.flatten(), (1, 0)), dim=0)


def margin_mse_loss(student_BN: Tensor, teacher_BN: Tensor, present_BN: Tensor | None) -> Tensor:
    """Mean squared difference of margins:
    mean over queries and their negatives of ((s_0 - s_n) - (t_0 - t_n))².

    Edges: 0 where no query has a negative.
    Source: Hofstätter et al., arXiv 2010.02666, equation 6.
    """
    student_BN = student_BN[:, :1] - student_BN[:, 1:]
    teacher_BN = teacher_BN[:, :1] - teacher_BN[:, 1:]
    squares_BN = (student_BN - teacher_BN).square()
    if present_BN is None:
        return squares_BN.mean() if squares_BN.numel() else squares_BN.sum()
    there_BN = present_BN[:, 1:]
    return torch.where(there_BN, squares_BN, 0).sum() / there_BN.sum().clamp(min=1)


def listwise_kl_loss(
    student_BN: Tensor,
    teacher_BN: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    present_BN: Tensor | None,
) -> Tensor:
    """Kullback-Leibler divergence of the distributions over a query's candidates:
    mean over queries of KL(softmax(t / τ_t) ‖ softmax(s / τ_s)), in nats.

    Edges: 0 for a query with one candidate.
    Source: Ren et al., RocketQAv2, arXiv 2110.07367, equation 4; Santhanam et al., ColBERTv2, arXiv
    2112.01488, section 3.2.
    """
    student_BN, teacher_BN = student_BN / student_temperature, teacher_BN / teacher_temperature
    if present_BN is None:
        p_BN, log_p_BN = teacher_BN.softmax(dim=1), teacher_BN.log_softmax(dim=1)
        return (p_BN * (log_p_BN - student_BN.log_softmax(dim=1))).sum(dim=1).mean()
    p_BN, log_p_BN = _softmax(teacher_BN, present_BN)
    _, log_q_BN = _softmax(student_BN, present_BN)
    return torch.where(present_BN, p_BN * (log_p_BN - log_q_BN), 0).sum(dim=1).mean()


def _softmax(logits_BN: Tensor, present_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms over what is present; 0 elsewhere, in both."""
    masked_BN = logits_BN.masked_fill(~present_BN, -math.inf)
    log_p_BN = masked_BN.log_softmax(dim=1).masked_fill(~present_BN, 0)
    return torch.where(present_BN, log_p_BN.exp(), 0), log_p_BN


def similarity_bank_loss(
    student_BD: Tensor,
    bank_MD: Tensor,
    teacher_MH: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    masked_BM: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the similarities to a bank of teacher embeddings:
    mean over i of KL(softmax_j(cos(t_i, t_j) / τ_t) ‖ softmax_j(cos(s_i, b_j) / τ_s)), in nats.

    The bank [M] is all of the teacher's rows, of which the first B are those of the texts; b is as
    the student meets it, t or the first D of its numbers. `masked`: what is left out of a row's
    bank. A row's own feature is part of it.
    Source: Fang et al., SEED, arXiv 2101.04731, equations 1 to 4 (as a cross entropy, which differs
    by the teacher's entropy); the same of anchor points: CompRess, arXiv 2010.14713.
    """
    teacher_MH = unit(teacher_MH)
    student_BM = products(unit(student_BD), unit(bank_MD))
    teacher_BM = products(teacher_MH[: len(student_BD)], teacher_MH)
    present_BM = None if masked_BM is None else ~masked_BM
    return listwise_kl_loss(
        student_BM, teacher_BM, student_temperature, teacher_temperature, present_BM
    )
