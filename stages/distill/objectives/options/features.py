"""Options of objectives that compare features."""

from typing import Literal

from pydantic import Field

from .armada import OrthogonalMap
from .base import BetaOptions

Distance = Literal["mse", "mae", "cosine"]


class FeatureOptions(BetaOptions):
    """Options of the objective feature."""

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
