"""Losses that compare class logits of all rows of a batch at once.

They depend on which rows meet in a batch, and on its size. Shapes: student and teacher logits
[B, K], in the precision of sums, the teacher's without a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .divergences import forward_kl_loss

LEAST_VARIANCE = 1e-5
"""Added to the variance of a class's logits, which is 0 in a batch of equal rows."""


def sinkhorn_loss(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, epsilon: float, iterations: int
) -> Tensor:
    """Cost of the entropic transport of the student's distributions of a batch onto the teacher's:
    1/B · Σ_ij W_ij·D_ij, D_ij = |q_i - p_j|_1.

    q = softmax(s/T), p = softmax(t/T). W begins as exp(-D/ε) and is divided by its rows' sums, then
    by its columns', so many times; gradients pass through all of it, in logarithms. Compares B²
    pairs. Edges: at q = p it is not 0 but close to it where ε is less than the distances of rows,
    for W spreads; one row is moved onto the other whatever W, at the cost D.
    Source: Cui et al., SinKD, arXiv 2402.17110, whose sum over rows is a mean here."""
    assert student_BK.shape == teacher_BK.shape, "broadcasting would hide a wrong number of classes"
    q_BK, p_BK = (F.softmax(each / temperature, dim=-1) for each in (student_BK, teacher_BK))
    cost_BB = torch.cdist(q_BK, p_BK, p=1)
    log_plan_BB = -cost_BB / epsilon
    for _ in range(iterations):
        log_plan_BB = log_plan_BB.log_softmax(dim=1).log_softmax(dim=0)
    return (log_plan_BB.exp() * cost_BB).sum() / len(cost_BB)


def lumi_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """T²·KL of softened perceptions, which are logits standardised class by class over the batch:

    h_ik = (z_ik - mean_k) / √(variance_k + 1e-5), of student and teacher each

    so that what counts is how a row differs from the batch; a factor and a constant of a class
    change (all but) nothing. Edges: 0 for one row, and for equal rows.
    Source: Hossain et al., LumiNet, arXiv 2310.03669."""
    student_BK, teacher_BK = (_perception(each) for each in (student_BK, teacher_BK))
    return forward_kl_loss(student_BK, teacher_BK, temperature)


def _perception(logits_BK: Tensor) -> Tensor:
    centred_BK = logits_BK - logits_BK.mean(dim=0)
    variance_K = centred_BK.square().mean(dim=0)
    return centred_BK * torch.rsqrt(variance_K + LEAST_VARIANCE)
