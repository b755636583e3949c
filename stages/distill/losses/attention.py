"""Losses that compare relations between the tokens of a text in attention layers.

Shapes: B texts, T tokens of the longest, R relation heads, D and H numbers of a query, key or value
of student and teacher; both sides [B, T, 3, D or H]: queries, keys, values.
"""

import torch
from torch import Tensor

from .distances import products


def attention_relations_loss(
    student_BT3D: Tensor, teacher_BT3H: Tensor, mask_BT: Tensor, heads: int
) -> Tensor:
    """The sum over queries, keys and values a of the mean over texts, heads and tokens i of
    KL(teacher ‖ student) between the relations softmax_j(a_i · a_j / √d) of each.

    D and H are divided into R = `heads` parts of d = D/R and H/R numbers, whatever the models'
    own heads: so that widths may differ. Padding has no part in it; without any token the loss is
    0, with a graph.
    Source: Wang et al., MiniLMv2, arXiv 2012.15828, all weights 1.
    """
    mask_BT = mask_BT != 0
    lengths_B = mask_BT.sum(dim=1)
    losses = []
    for student_BTD, teacher_BTH in zip(
        student_BT3D.unbind(2), teacher_BT3H.unbind(2), strict=True
    ):
        student_BRTT = _log_relations(student_BTD, mask_BT, heads)
        teacher_BRTT = _log_relations(teacher_BTH, mask_BT, heads)
        divergence_BT = (teacher_BRTT.exp() * (teacher_BRTT - student_BRTT)).sum(-1).mean(1)
        of_texts_B = divergence_BT.masked_fill(~mask_BT, 0).sum(1) / lengths_B.clamp(min=1)
        losses.append(of_texts_B.sum() / (lengths_B > 0).sum().clamp(min=1))
    return torch.stack(losses).sum()


def _log_relations(states_BTD: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Log-probabilities [B, R, T, T] over the tokens of the text; those of padding have no
    meaning."""
    states_BTD = states_BTD.masked_fill(~mask_BT.unsqueeze(-1), 0)
    heads_BRTd = states_BTD.view(*states_BTD.shape[:2], heads, -1).transpose(1, 2)
    scores_BRTT = products(heads_BRTd, heads_BRTd) / heads_BRTd.shape[-1] ** 0.5
    padding_B11T = ~mask_BT[:, None, None, :]
    least = torch.finfo(scores_BRTT.dtype).min / 4
    found: Tensor = scores_BRTT.masked_fill(padding_B11T, least).log_softmax(dim=-1)
    return found
