"""Losses that compare how the rows of a batch relate to each other, to the teacher and the student.

Teacher and student need no common width, so that nothing is projected. Shapes: B rows; student
[B, D], teacher [B, H], in the precision of sums, the teacher's without a graph. Rows are compared
within a batch (of all processes together), so that such a loss depends on its size and on which
rows meet in it. With too few rows for a relation it is 0, with a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rkd_distance_loss(student_BD: Tensor, teacher_BH: Tensor) -> Tensor:
    """Distances of all pairs of rows, each relative to the mean distance:
    mean over pairs i ≠ j of huber(|s_i - s_j| / μ_s - |t_i - t_j| / μ_t).

    μ is the mean over the same pairs, and huber(x) is x²/2 up to 1 and |x| - 1/2 beyond. Edges: 0
    for fewer than two rows; where all rows are equal, their relative distances are 0.
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068, equations 4 to 7.
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
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068, equations 8 to 10.
    """
    pairs_BB = ~torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    triples_BBB = pairs_BB[:, :, None] & pairs_BB[:, None, :] & pairs_BB[None, :, :]
    compared_BBB = F.smooth_l1_loss(_cosines(student_BD), _cosines(teacher_BH), reduction="none")
    return _mean(compared_BBB, triples_BBB)


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
    return directions_BBD @ directions_BBD.mT


def _distances(rows_BD: Tensor) -> Tensor:
    """Euclidean distances of all pairs, from differences: products lose digits of close rows. Equal
    rows have the gradient 0."""
    return torch.cdist(rows_BD, rows_BD, compute_mode="donot_use_mm_for_euclid_dist")
