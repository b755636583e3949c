"""Losses that compare a projection of the student's text with a feature of the teacher.

Shapes: B rows, H numbers of a feature; projection, feature [B, H].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..objectives.options import Distance
from .distances import DISTANCES, choose
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

    d is mse or mae (mean over all elements), or cosine: the mean over rows of 1 - cos. The feature
    is detached. Without output or labels there is no task, and its term is 0.
    Source: the hint loss of FitNets (arXiv 1412.6550), on cached features.
    """
    measure = choose(DISTANCES, "distance", distance)
    aligned = measure(accumulated(feature.detach()), accumulated(projection))
    if output is None or labels is None:
        task = torch.zeros_like(aligned)
    else:
        task = task_loss(output, labels, regression)
    return FeatureTerms(task + beta * aligned, task, aligned)
