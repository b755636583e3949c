"""Losses that compare hidden layers of the student with those of the teacher, a vector per text.

Shapes: B rows, L layers of the student, D their width, H_i numbers of the i-th feature.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.options import Distance
from .distances import DISTANCES, choose

SMALLEST_NORM = 1e-8
"""Shorter vectors are divided by it instead of by their length: zero stays zero."""


def hidden_layers_loss(
    projections: Sequence[Tensor],
    features: Sequence[Tensor],
    distance: Distance = "mse",
    normalize: bool = False,
) -> Tensor:
    """The mean over layers i of d(t_i, p_i), of projections and features [B, H_i].

    d is one of `distances.py`. With `normalize`, both sides are scaled to length 1 first; PKD's sum
    of squares is then H_i times the mse.
    Sources: Sun et al., PKD, arXiv 1908.09355, equation 7 (normalised); Jiao et al., TinyBERT,
    arXiv 1909.10351, equation 8 (projected); Romero et al., FitNets, arXiv 1412.6550 (one layer).
    """
    measure = choose(DISTANCES, "distance", distance)
    losses = []
    for projection_BH, feature_BH in zip(projections, features, strict=True):
        if normalize:
            projection_BH = F.normalize(projection_BH, dim=-1, eps=SMALLEST_NORM)
            feature_BH = F.normalize(feature_BH, dim=-1, eps=SMALLEST_NORM)
        losses.append(measure(feature_BH, projection_BH))
    return torch.stack(losses).mean()


def mixed_layers(layers_LBD: Tensor, scores_L: Tensor) -> Tensor:
    """The layers' weighted mean [B, ..., D], Σ_l softmax(scores)_l · layer_l."""
    return torch.einsum("l,l...->...", scores_L.softmax(dim=0), layers_LBD)
