"""Objectives that compare how the rows of a batch relate to each other, to teacher and student.

Widths need not be equal: all but `prototypes`, which learns some, own nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..aligner import WEIGHT_STD
from ..losses import accumulated, relations
from .base import Reads, Sizes, Sources, StudentSide
from .one_loss import BetaObjective, FeatureLossObjective
from .options import (
    CKAOptions,
    InBatchOptions,
    MMDOptions,
    PrototypesOptions,
    RKDOptions,
    SimilarityPreservingOptions,
)


class RKDObjective(FeatureLossObjective):
    """Distances and angles between the texts of a batch, as the teacher has them.

    Formula: task + beta · (distance_weight · huber of relative distances + angle_weight · huber of
    cosines of angles)
    Source: Park et al., Relational Knowledge Distillation, arXiv 1904.05068.
    """

    Options = RKDOptions
    options: RKDOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=3)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The weighted sum; reports distance and angle. Angles of weight 0 are not computed, and 0:
        those of all triples of a large batch take longer than its student."""
        distance = relations.rkd_distance_loss(pooled_BD, feature_BH)
        angle = torch.zeros_like(distance)
        if self.options.angle_weight:
            angle = relations.rkd_angle_loss(pooled_BD, feature_BH)
        total = self.options.distance_weight * distance + self.options.angle_weight * angle
        return total, {"distance": distance, "angle": angle}


class SimilarityPreservingObjective(FeatureLossObjective):
    """Texts that are similar to the teacher, by products of their vectors, are so to the student.

    Formula: task + beta · 1/B² · |rows of S·Sᵀ of length 1 - rows of T·Tᵀ of length 1|²
    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv 1907.09682.
    """

    Options = SimilarityPreservingOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=2)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports similarity_preserving."""
        loss = relations.similarity_preserving_loss(pooled_BD, feature_BH)
        return loss, {"similarity_preserving": loss}


class InBatchObjective(BetaObjective):
    """The distribution of each text over the others of the batch, as the teacher has it.

    Formula: task + beta · mean of KL(softmax(cos(t, t')/τ) ‖ softmax(cos(s, s')/τ)) over the others
    Source: Sun et al., LEAD: Liberal Feature-based Distillation for Dense Retrieval, arXiv
    2212.05225.
    """

    Options = InBatchOptions
    options: InBatchOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=3)

    def __init__(self, options: InBatchOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.feature_dim = sizes.feature_dim
        """H, how many numbers a feature has."""

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, task and in_batch. Without output or labels, the task's is 0."""
        assert side.pooled_BD is not None
        pooled_BD = accumulated(side.pooled_BD)
        feature_BH = self._feature(self.teacher_side(sources)).detach().to(pooled_BD.dtype)
        temperature, same_BB = self.options.similarity_temperature, self.same_text(side)
        loss = relations.in_batch_loss(pooled_BD, feature_BH, temperature, same_BB)
        return self.beside_task(loss, side.output_BK, labels_B, in_batch=loss)


class CKAObjective(FeatureLossObjective):
    """Centred kernel alignment of student and teacher over the texts of a batch.

    Formula: task + beta · (1 - <K, L> / (|K|·|L|)), K and L the centred S·Sᵀ and T·Tᵀ
    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv
    1905.00414; debiased: arXiv 2010.15327.
    """

    Options = CKAOptions
    options: CKAOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=4)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports cka, which is one minus the alignment."""
        loss = relations.cka_loss(pooled_BD, feature_BH, self.options.debiased)
        return loss, {"cka": loss}


class MMDObjective(FeatureLossObjective):
    """Maximum mean discrepancy: the student's neurons are distributed as the teacher's.

    Formula: task + beta · (mean k(s, s') - 2·mean k(s, t) + mean k(t, t')) over neurons, each a
    vector of its numbers for the texts of the batch, of length 1
    Source: Huang and Wang, Neuron Selectivity Transfer, arXiv 1707.01219.
    """

    Options = MMDOptions
    options: MMDOptions
    reads = Reads(labels=False, headless=True, task=False, least_rows=2)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports mmd."""
        loss = relations.mmd_loss(pooled_BD, feature_BH, self.options.kernel)
        return loss, {"mmd": loss}


class PrototypesObjective(FeatureLossObjective):
    """Each text is as similar to the student's prototypes as to the teacher's.

    Formula: task + beta · mean of KL(softmax(t/prototype_temperature) ‖ softmax(cos(s, c')/τ)), t
    the similarities to C prototypes that the teacher has, c' as many that the student learns
    Source: CLIP-CID, arXiv 2408.09441; soft assignments: SwAV, arXiv 2006.09882.

    Reads `logits` of C numbers, as `armada cache derive --rule clusters` makes them: minus the
    squared distances to cluster centres. Owns `prototypes` [C, D].
    """

    Options = PrototypesOptions
    options: PrototypesOptions
    reads = Reads(default_feature="logits", labels=False, headless=True, task=False)

    def __init__(self, options: PrototypesOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        drawn_CD = WEIGHT_STD * torch.randn(sizes.feature_dim, sizes.pooled_dim)
        self.prototypes = nn.Parameter(drawn_CD)

    def loss(self, pooled_BD: Tensor, feature_BH: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports prototypes."""
        loss = relations.prototype_loss(
            pooled_BD,
            self.prototypes.to(pooled_BD.dtype),
            feature_BH,
            self.options.similarity_temperature,
            self.options.prototype_temperature,
        )
        return loss, {"prototypes": loss}
