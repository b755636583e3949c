"""Options of objectives that compare features."""

from typing import Literal, Self

from pydantic import Field, model_validator

from .armada import OrthogonalMap
from .base import BetaOptions

Distance = Literal["mse", "mae", "cosine", "smooth_l1"]


class ProjectorOptions(BetaOptions):
    """Options of an objective that maps the student's text into the teacher's space."""

    projector: Literal["linear", "mlp", "orthogonal", "none"] = Field(
        default="linear",
        description="map from the student's text to the feature: linear, mlp (two layers), "
        "orthogonal, or none, for widths that are equal; default of task=embedding: none",
    )
    orthogonal_map: OrthogonalMap = Field(
        default="matrix_exp",
        description="parametrization of an orthogonal projection: matrix_exp or cayley",
    )

    @property
    def is_orthogonal(self) -> bool:
        """Whether the map is kept orthogonal."""
        return self.projector == "orthogonal"


class FeatureOptions(ProjectorOptions):
    """Options of the objective feature."""

    distance: Distance = Field(
        default="mse", description="distance to the feature: mse, mae, cosine or smooth_l1"
    )
    orthogonal_projection: bool = Field(
        default=False,
        description="keep the student's projection orthogonal; the same as projector=orthogonal",
    )

    @model_validator(mode="after")
    def _has_one_projector(self) -> Self:
        if self.orthogonal_projection and self.projector in ("mlp", "none"):
            raise ValueError(
                f"orthogonal_projection: projector={self.projector} is no orthogonal map; leave "
                "one out"
            )
        return self

    @property
    def is_orthogonal(self) -> bool:
        """Whether the map is kept orthogonal."""
        return self.orthogonal_projection or super().is_orthogonal


class NormDirectionOptions(ProjectorOptions):
    """Options of the objective norm_direction."""
