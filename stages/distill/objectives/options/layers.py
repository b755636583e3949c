"""Options of objectives that compare hidden layers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ....pooling import StatePooling
from .base import BetaOptions
from .features import Distance

LayerMap = Literal["uniform", "last", "learned"] | Annotated[tuple[int, ...], Field(min_length=1)]


class MappedLayersOptions(BetaOptions):
    """Options of an objective that reads a layer of the student for each feature."""

    map: LayerMap = Field(
        default="uniform",
        description="student layer of each feature: uniform (evenly spaced, up to the last), last "
        "(the last ones), learned (a softmax-weighted mean of all), or a list of layers: 1 is the "
        "first, -1 the last",
    )


class ProjectedLayersOptions(MappedLayersOptions):
    """Options of an objective that projects layers onto features."""

    distance: Distance = Field(
        default="mse", description="distance to the feature: mse, mae, cosine or smooth_l1"
    )
    normalize: bool = Field(
        default=False, description="scale projections and features to length 1 first, as PKD does"
    )

    @model_validator(mode="after")
    def _normalizes_lengths_that_count(self) -> Self:
        if self.normalize and self.distance == "cosine":
            raise ValueError("normalize: cosine compares directions alone; leave it out")
        return self


class HiddenLayersOptions(ProjectedLayersOptions):
    """Options of the objective hidden_layers."""

    layer_pooling: StatePooling = Field(
        default="mean",
        description="how the states of a layer become one vector, as the teacher's: mean, cls, "
        "last, max, mean_sqrt_len_tokens or weightedmean",
    )
