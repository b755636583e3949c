"""Regression onto a cached feature: the student's pooled text, mapped linearly, has to meet it."""

from pydantic import Field
from torch import Tensor

from .. import closed_forms
from ..aligner import ProjectionHead
from ..losses import Distance
from ..rotations import OrthogonalMap
from .base import Objective, ObjectiveOptions, Reads, Sizes, TeacherSide, named_terms


class FeatureOptions(ObjectiveOptions):
    """Options of the objective feature."""

    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the feature term"
    )
    distance: Distance = Field(
        default="mse", description="distance to the feature: mse, mae or cosine"
    )
    orthogonal_map: OrthogonalMap = Field(
        default="matrix_exp",
        description="parametrization of an orthogonal projection: matrix_exp or cayley",
    )
    orthogonal_projection: bool = Field(
        default=False, description="keep the student's projection orthogonal"
    )


class FeatureObjective(Objective):
    """Owns `projection`, D -> H, with a bias, for features are rarely centred."""

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
