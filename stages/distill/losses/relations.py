"""Losses that compare how the rows of a batch relate to each other, to the teacher and the student.

Teacher and student need no common width, so that nothing is projected. Shapes: B rows; student
[B, D], teacher [B, H], in the precision of sums, the teacher's without a graph. Rows are compared
within a batch (of all processes together), so that such a loss depends on its size and on which
rows meet in it. With too few rows for a relation it is 0, with a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.options import Kernel
from .distances import products, unit
from .logits import NOTHING


def rkd_distance_loss(student_BD: Tensor, teacher_BH: Tensor) -> Tensor:
    """Distances of all pairs of rows, each relative to the mean distance:
    mean over pairs i ≠ j of huber(|s_i - s_j| / μ_s - |t_i - t_j| / μ_t).

    μ is the mean over the same pairs, and huber(x) is x²/2 up to 1 and |x| - 1/2 beyond. Edges: 0
    for fewer than two rows; where all rows are equal, their relative distances are 0.
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068.
    """
    pairs_BB = ~torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    compared_BB = F.smooth_l1_loss(
        _relative_distances(student_BD, pairs_BB),
        _relative_distances(teacher_BH, pairs_BB),
        reduction="none",
    )
    return _mean(compared_BB, pairs_BB)


def rkd_angle_loss(student_BD: Tensor, teacher_BH: Tensor) -> Tensor:
    """Cosines of the angles at row j of all triples of rows:
    mean over triples of distinct i, j, k of huber(cos s_ijk - cos t_ijk).

    Holds the B·B·(D + H) differences of all pairs. Edges: 0 for fewer than three rows; equal rows
    have the cosine 0.
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068.
    """
    pairs_BB = ~torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    triples_BBB = pairs_BB[:, :, None] & pairs_BB[:, None, :] & pairs_BB[None, :, :]
    compared_BBB = F.smooth_l1_loss(_cosines(student_BD), _cosines(teacher_BH), reduction="none")
    return _mean(compared_BBB, triples_BBB)


def similarity_preserving_loss(student_BD: Tensor, teacher_BH: Tensor) -> Tensor:
    """Products of all pairs of rows, those of one row scaled to length 1:
    1/B² · Σ (ĝ_s - ĝ_t)², with ĝ(i) = X·x_i / |X·x_i| for rows X.

    Edges: where a row is zero, or has the product 0 with all, its products stay 0.
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv 1907.09682.
    """
    student_BB, teacher_BB = (unit(products(rows, rows)) for rows in (student_BD, teacher_BH))
    return (student_BB - teacher_BB).square().mean()


def in_batch_loss(
    student_BD: Tensor,
    teacher_BH: Tensor,
    temperature: float,
    masked_BB: Tensor | None = None,
) -> Tensor:
    """Distributions of each row over the others of the batch:
    mean over i of KL(p_t(i) ‖ p_s(i)), with p(i) = softmax over j ≠ i of cos(x_i, x_j) / τ.

    No factor τ²: gradients grow as 1/τ, as they do in a contrastive loss. `masked_BB` is true where
    a row is none of another's others, symmetric. Edges: 0 for fewer than three rows, which have one
    other at most, and for a row without others; a zero row has the cosine 0 to all.
    Source: Sun et al., LEAD, arXiv 2212.05225, where queries are compared with passages.
    """
    both = []
    for rows in (unit(student_BD), unit(teacher_BH)):
        cosines_BC = _off_diagonal(products(rows, rows)) / temperature
        if masked_BB is not None:
            # A finite logarithm of 0, so that 0 times it is 0.
            cosines_BC = cosines_BC.masked_fill(_off_diagonal(masked_BB), NOTHING)
        both.append(F.log_softmax(cosines_BC, dim=-1))
    student_BC, teacher_BC = both
    return F.kl_div(student_BC, teacher_BC, reduction="sum", log_target=True) / len(student_BD)


def cka_loss(student_BD: Tensor, teacher_BH: Tensor, debiased: bool) -> Tensor:
    """One minus the linear centred kernel alignment of student and teacher:
    1 - <K, L> / (|K|·|L|), with K, L the centred products of all pairs of rows.

    Centred: the mean of each row and column is 0. Debiased: as sums without the diagonal have it
    (U-centred: 0 on the diagonal), so that K and L of independent rows are at right angles whatever
    the widths, while the plain one rises with width / B. It takes four rows; the plain one is
    constant for two. Edges: equal rows align with nothing, so the loss is 1.
    Source: Kornblith et al., arXiv 1905.00414; debiased: Nguyen, Raghu and Kornblith, arXiv
    2010.15327.
    """
    student_BB, teacher_BB = (_centred(rows, debiased) for rows in (student_BD, teacher_BH))
    return 1 - (unit(student_BB.flatten()) * unit(teacher_BB.flatten())).sum()


def mmd_loss(student_BD: Tensor, teacher_BH: Tensor, kernel: Kernel) -> Tensor:
    """Maximum mean discrepancy of the student's neurons and the teacher's, each neuron a vector of
    its numbers for the rows of the batch, scaled to length 1:
    mean of k(s, s') - 2 · mean of k(s, t) + mean of k(t, t') over all pairs of neurons.

    linear: k(x, y) = x·y, the distance of the mean neurons; poly: (x·y)²; gaussian:
    exp(-|x - y|² / 2σ²), σ² the mean of |t - t'|² over all pairs of the teacher's. The first two
    cost B²·(D + H), gaussian (D + H)²·B. Edges: a neuron that is 0 for all rows stays a zero
    vector.
    Source: Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
    arXiv 1707.01219, with rows in the place of positions in an image.
    """
    student_DB, teacher_HB = unit(student_BD.mT), unit(teacher_BH.mT)
    if kernel == "linear":
        return (student_DB.mean(dim=0) - teacher_HB.mean(dim=0)).square().sum()
    if kernel == "poly":
        # The mean of (x·y)² is the product of the mean outer products.
        outer_BB = products(student_DB.mT, student_DB.mT) / len(student_DB)
        theirs_BB = products(teacher_HB.mT, teacher_HB.mT) / len(teacher_HB)
        return (outer_BB - theirs_BB).square().sum()
    scale = _squared_distances(teacher_HB, teacher_HB).mean()
    scale = torch.where(scale > 0, scale, 1)
    pairs = ((student_DB, student_DB), (student_DB, teacher_HB), (teacher_HB, teacher_HB))
    own, between, theirs = (
        (-_squared_distances(x, y) / (2 * scale)).exp().mean() for x, y in pairs
    )
    return own - 2 * between + theirs


def prototype_loss(
    student_BD: Tensor,
    prototypes_CD: Tensor,
    teacher_BC: Tensor,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Soft assignments of rows to prototypes: mean over i of KL(p(i) ‖ q(i)), with
    p(i) = softmax over c of the teacher's similarity t_ic / τ_t and q(i) = softmax over c of
    cos(s_i, prototype c) / τ.

    Edges: a zero row has the cosine 0 to all prototypes; a single prototype has the loss 0.
    Source: the cluster discrimination of CLIP-CID, arXiv 2408.09441, with the soft assignments of
    SwAV, arXiv 2006.09882, in place of hard ones.
    """
    cosines_BC = products(unit(student_BD), unit(prototypes_CD))
    student_BC = F.log_softmax(cosines_BC / temperature, dim=-1)
    teacher_BC = F.log_softmax(teacher_BC / teacher_temperature, dim=-1)
    return F.kl_div(student_BC, teacher_BC, reduction="batchmean", log_target=True)


def _off_diagonal(square_BB: Tensor) -> Tensor:
    """Each row without its number on the diagonal: [B, B - 1]."""
    rows = len(square_BB)
    return square_BB.flatten()[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def _centred(rows_BD: Tensor, debiased: bool) -> Tensor:
    """The centred products of all pairs of rows."""
    # Before the products, which would lose digits of rows far from 0.
    rows_BD = rows_BD - rows_BD.mean(dim=0)
    products_BB = products(rows_BD, rows_BD)
    if not debiased:
        return products_BB
    count = len(rows_BD)
    products_BB = products_BB - torch.diag(products_BB.diagonal())
    sums_B = products_BB.sum(dim=0) / max(1, count - 2)
    total = products_BB.sum() / max(1, (count - 1) * (count - 2))
    centred_BB = products_BB - sums_B[:, None] - sums_B[None, :] + total
    return centred_BB - torch.diag(centred_BB.diagonal())


def _squared_distances(x_MB: Tensor, y_NB: Tensor) -> Tensor:
    """Squared distances of vectors of length 1 or 0, from products: exact enough for a kernel."""
    squares = (each.square().sum(dim=-1) for each in (x_MB, y_NB))
    x_M, y_N = squares
    return (x_M[:, None] + y_N[None, :] - 2 * products(x_MB, y_NB)).clamp(min=0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def _relative_distances(rows_BD: Tensor, pairs_BB: Tensor) -> Tensor:
    distances_BB = _distances(rows_BD)
    mean = _mean(distances_BB, pairs_BB)
    return distances_BB / torch.where(mean > 0, mean, 1)


def _cosines(rows_BD: Tensor) -> Tensor:
    """[j, i, k]: the cosine of the angle at j between the directions to i and k."""
    lengths_BB = _distances(rows_BD)
    from_j_BBD = rows_BD[None, :, :] - rows_BD[:, None, :]
    directions_BBD = from_j_BBD / torch.where(lengths_BB > 0, lengths_BB, 1)[:, :, None]
    return products(directions_BBD, directions_BBD)


def _distances(rows_BD: Tensor) -> Tensor:
    """Euclidean distances of all pairs, from differences: products lose digits of close rows. Equal
    rows have the gradient 0."""
    return torch.cdist(rows_BD, rows_BD, compute_mode="donot_use_mm_for_euclid_dist")
