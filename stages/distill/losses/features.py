"""Losses that compare a projection of the student's text with a feature of the teacher.

Shapes: B rows, H numbers of a feature; projection, feature [B, H].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.options import Distance
from .distances import DISTANCES, choose, unit
from .task import accumulated, task_loss


@dataclass(frozen=True, slots=True)
class FeatureTerms:
    """`total` to backpropagate; `task` and `feature` before the weight beta."""

    total: Tensor
    task: Tensor
    feature: Tensor


def feature_loss(
    *,
    projection: Tensor,
    feature: Tensor,
    output: Tensor | None,
    labels: Tensor | None,
    beta: float,
    distance: Distance,
    regression: bool,
) -> FeatureTerms:
    """Regression onto a feature: task + beta·d(projection, feature).

    d is mse, mae or smooth_l1 (mean over all elements), or cosine: the mean over rows of 1 - cos.
    The feature is detached. Without output or labels there is no task, and its term is 0.
    Source: the hint loss of FitNets (arXiv 1412.6550), on cached features.
    """
    measure = choose(DISTANCES, "distance", distance)
    aligned = measure(accumulated(feature.detach()), accumulated(projection))
    if output is None or labels is None:
        task = torch.zeros_like(aligned)
    else:
        task = task_loss(output, labels, regression)
    return FeatureTerms(task + beta * aligned, task, aligned)


def norm_direction_loss(projection_BH: Tensor, feature_BH: Tensor, mean_BH: Tensor) -> Tensor:
    """Norm and direction: mean over rows of 1 - s·c / max(|s|, |t|), with c the direction of the
    mean of the teacher's features of the row's class.

    A text that is shorter than the teacher's is pulled along c; a longer one is turned to it. 0
    where s points along c and is at least as long as t. Edges: a zero mean, or s and t both zero,
    have the loss 1.
    Source: Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and
    Direction, arXiv 2305.17007, the ND loss.
    """
    lengths_B = torch.maximum(
        torch.linalg.vector_norm(projection_BH, dim=-1),
        torch.linalg.vector_norm(feature_BH, dim=-1),
    )
    along_B = (projection_BH * unit(mean_BH)).sum(dim=-1)
    return (1 - along_B / torch.where(lengths_B > 0, lengths_B, 1)).mean()
