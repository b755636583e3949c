"""Objectives that compare how the rows of a batch relate to each other, to teacher and student."""

from collections.abc import Mapping

from torch import Tensor

from ..losses import relations
from .base import Reads
from .one_loss import FeatureLossObjective
from .options import RKDOptions


class RKDObjective(FeatureLossObjective):
    """Distances and angles between the texts of a batch, as the teacher has them.

    Formula: task + beta · (distance_weight · huber of relative distances + angle_weight · huber of
    cosines of angles)
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068.

    Owns nothing: widths need not be equal.
    """

    Options = RKDOptions
    options: RKDOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=3)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum; reports distance and angle."""
        distance = relations.rkd_distance_loss(pooled_BD, feature_BH)
        angle = relations.rkd_angle_loss(pooled_BD, feature_BH)
        total = self.options.distance_weight * distance + self.options.angle_weight * angle
        return total, {"distance": distance, "angle": angle}
