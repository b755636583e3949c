"""Losses that compare the states of single tokens, of teacher and student, who read the same ones.

Shapes: B texts, T tokens of the longest, D numbers of a student's state, H of a teacher's. The mask
[B, T] is 1 for tokens and 0 for padding, where states have no part in a loss. Without any token a
loss is 0, with a graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.options import Distance
from .distances import products
from .layers import SMALLEST_NORM, hidden_layers_loss


def token_states_loss(
    projection_BTH: Tensor,
    teacher_BTH: Tensor,
    mask_BT: Tensor,
    distance: Distance = "mse",
    normalize: bool = False,
) -> Tensor:
    """The mean over all tokens of d(t, p), as in `hidden_layers_loss`.

    Source: Jiao et al., TinyBERT, arXiv 1909.10351, equation 8.
    """
    # At padding both sides are the same vector, whose distance is 0.
    padding_BT1 = mask_BT.unsqueeze(-1) == 0
    pair = (each.masked_fill(padding_BT1, 1) for each in (projection_BTH, teacher_BTH))
    projection_NH, teacher_NH = (each.flatten(0, 1) for each in pair)
    of_all = hidden_layers_loss([projection_NH], [teacher_NH], distance, normalize)
    return of_all * mask_BT.numel() / (mask_BT != 0).sum().clamp(min=1)


def token_relations_loss(student_BTD: Tensor, teacher_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over texts of the mean over pairs of tokens j ≠ k of
    (cos(s_j, s_k) - cos(t_j, t_k))².

    Scale and rotation of either side change nothing. A zero vector has cosine 0 with all others.
    Texts of one token have no pairs, and do not count.
    Source: relations inside one example, as in Zhang et al., TRG, arXiv 2306.12442.
    """
    mask_BT = mask_BT != 0
    pairs_BTT = mask_BT[:, :, None] & mask_BT[:, None, :]
    pairs_BTT = pairs_BTT & ~torch.eye(mask_BT.shape[1], dtype=torch.bool, device=mask_BT.device)
    student_BTT, teacher_BTT = (_cosines(each, mask_BT) for each in (student_BTD, teacher_BTH))
    squared_BTT = (student_BTT - teacher_BTT).square().masked_fill(~pairs_BTT, 0)
    counts_B = pairs_BTT.sum(dim=(1, 2))
    means_B = squared_BTT.sum(dim=(1, 2)) / counts_B.clamp(min=1)
    return means_B.sum() / (counts_B > 0).sum().clamp(min=1)


def _cosines(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    states_BTD = states_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0)
    directions_BTD = F.normalize(states_BTD, dim=-1, eps=SMALLEST_NORM)
    return products(directions_BTD, directions_BTD)
