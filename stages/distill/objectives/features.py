"""Regression onto a cached feature: the student's pooled text, mapped linearly, has to meet it."""

from torch import Tensor

from .. import closed_forms
from ..aligner import ProjectionHead
from .base import Objective, Reads, Sizes, Sources, TeacherSide, named_terms
from .options import FeatureOptions


class FeatureObjective(Objective):
    """Regression of the student's pooled text onto a feature of the teacher.

    Formula: task + beta · distance(projection(s), t)
    Source: the hint loss of Romero et al., FitNets, arXiv 1412.6550, on cached features.

    Owns `projection`, D -> H, with a bias, for features are rarely centred.
    """

    Options = FeatureOptions
    options: FeatureOptions
    reads = Reads(labels=False, headless=True, task=False)

    def __init__(self, options: FeatureOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projection = ProjectionHead(
            sizes.pooled_dim,
            sizes.feature_dim,
            options.orthogonal_projection,
            options.orthogonal_map,
            bias=True,
        )

    def forward(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        feature_BH: TeacherSide,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total, task, feature. Without output or labels the feature is all there is to learn."""
        terms = closed_forms.feature_loss(
            projection=self.projection(pooled_BD),
            feature=self._feature(feature_BH),
            output=output_BK,
            labels=labels_B,
            beta=self.options.beta,
            distance=self.options.distance,
            regression=self.sizes.regression,
        )
        return named_terms(terms.total, task=terms.task, feature=terms.feature)

    def task_weight(self, sources: Sources) -> float:
        """1."""
        return 1.0
