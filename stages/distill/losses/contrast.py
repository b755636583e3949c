"""Losses that tell the student's own teacher feature from those of other texts.

Shapes: B rows; M rows of the teacher, the first B those of the batch, the others negatives that
were drawn from its cache; E numbers of an embedding. student [B, E], teacher [M, E], in the
precision of sums; the teacher's numbers have a graph where a part of the objective embeds them.
`masked` [B, M] is true where a row is no negative of another, or None. Rows are compared within a
batch (of all processes together) and with what was drawn for it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .distances import products, unit
from .task import MISSING_LABEL


def infonce_loss(
    student_BE: Tensor, teacher_ME: Tensor, temperature: float, masked_BM: Tensor | None = None
) -> Tensor:
    """Cross entropy of each row's own teacher feature among all:
    mean over i of -log softmax_j(cos(s_i, t_j) / τ)[i].

    Edges: 0 for one row without negatives; a zero vector has the cosine 0 to all.
    Source: van den Oord, Li and Vinyals, arXiv 1807.03748, equation 4; with a teacher's features:
    DistilCSE, arXiv 2112.05638.
    """
    logits_BM = products(unit(student_BE), unit(teacher_ME)) / temperature
    if masked_BM is not None:
        logits_BM = logits_BM.masked_fill(masked_BM, -math.inf)
    return F.cross_entropy(logits_BM, _own(logits_BM))


def crd_loss(
    student_BE: Tensor,
    teacher_ME: Tensor,
    temperature: float,
    examples: int,
    masked_BM: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of a critic that tells pairs of one text from pairs of two:
    mean over i of -log h(s_i, t_i) - Σ_j log(1 - h(s_i, t_j)), j ≠ i,
    h = exp(z) / (exp(z) + N/M), z = cos(s, t) / τ.

    N is the number of negatives of a row, M that of all `examples` of the training set, whether
    negatives are those of the batch alone or were drawn beside it. Edges: 0 vectors have the cosine
    0; without negatives only the first part is left.
    Source: Tian, Krishnan and Isola, Contrastive Representation Distillation, arXiv 1910.10699.
    """
    similarities_BM = products(unit(student_BE), unit(teacher_ME)) / temperature
    others_BM = torch.ones_like(similarities_BM, dtype=torch.bool)
    others_BM = others_BM.scatter(1, _own(similarities_BM)[:, None], False)
    if masked_BM is not None:
        others_BM = others_BM & ~masked_BM
    count_B1 = others_BM.sum(dim=1, keepdim=True).clamp(min=1).to(similarities_BM.dtype)
    logits_BM = similarities_BM - (count_B1 / examples).log()
    own_B = logits_BM.diagonal()
    against_B = torch.where(others_BM, F.logsigmoid(-logits_BM), 0).sum(dim=1)
    return -(F.logsigmoid(own_B) + against_B).mean()


def same_label(labels_B: Tensor, labels_M: Tensor) -> Tensor:
    """Which teacher rows [M] have the label of which rows [B], other than the row itself; rows
    without a label have that of none. The first B of the M rows are those of the batch."""
    equal_BM = (labels_B[:, None] == labels_M[None, :]) & (labels_B != MISSING_LABEL)[:, None]
    return equal_BM.scatter(1, _own(equal_BM)[:, None], False)


def _own(rows_BM: Tensor) -> Tensor:
    return torch.arange(len(rows_BM), device=rows_BM.device)


def wcord_global_loss(
    student_BE: Tensor, teacher_ME: Tensor, masked_BM: Tensor | None = None
) -> Tensor:
    """Dual Wasserstein distance of pairs of one text from pairs of two, negated:
    mean over i ≠ j of g(s_i, t_j) - mean over i of g(s_i, t_i), g(s, t) = s·t / √2.

    Critic and student both minimise it. g has a Lipschitz constant of at most 1 if the embeddings
    have: maps of spectral norm 1 of vectors of length 1. Edges: without negatives the first mean
    is 0.
    Source: Chen et al., Wasserstein Contrastive Representation Distillation, arXiv 2012.08674, the
    global contrastive transfer.
    """
    critic_BM = products(student_BE, teacher_ME) / math.sqrt(2)
    others_BM = torch.ones_like(critic_BM, dtype=torch.bool)
    others_BM = others_BM.scatter(1, _own(critic_BM)[:, None], False)
    if masked_BM is not None:
        others_BM = others_BM & ~masked_BM
    against = torch.where(others_BM, critic_BM, 0).sum() / others_BM.sum().clamp(min=1)
    return against - critic_BM.diagonal().mean()


def transport_loss(
    student_BH: Tensor, teacher_BH: Tensor, epsilon: float, iterations: int
) -> Tensor:
    """Entropic optimal transport from the student's rows to the teacher's: Σ P·C, with
    C_ij = 1 - cos(s_i, t_j), P = the plan exp(u_i + v_j - C_ij / ε) of rows and columns that sum to
    1/B.

    The plan is worked out by Sinkhorn's iterations from v = 0, in logarithms, and has a graph.
    Which rows are of one text is not used: distributions are compared. With ε > 0 the plan is
    blurred, so that equal rows have a loss above 0. Edges: a zero vector has the cost 1 to all.
    Source: Cuturi, arXiv 1306.0895, algorithm 1; in a batch: Chen et al., arXiv 2012.08674, the
    local contrastive transfer.
    """
    cost_BB = 1 - products(unit(student_BH), unit(teacher_BH))
    kernel_BB = -cost_BB / epsilon
    share = -math.log(len(cost_BB))
    v_B = torch.zeros_like(kernel_BB[0])
    u_B = share - torch.logsumexp(kernel_BB, dim=1)
    for _ in range(iterations):
        v_B = share - torch.logsumexp(kernel_BB + u_B[:, None], dim=0)
        u_B = share - torch.logsumexp(kernel_BB + v_B[None, :], dim=1)
    return ((kernel_BB + u_B[:, None] + v_B[None, :]).exp() * cost_BB).sum()
