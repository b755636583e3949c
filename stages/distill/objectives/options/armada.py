"""Options of ARMADA."""

from typing import Literal

from pydantic import Field

from .base import ObjectiveOptions

Manifold = Literal["cosine", "euclid", "pointwise"]


OrthogonalMap = Literal["matrix_exp", "cayley"]


class ArmadaOptions(ObjectiveOptions):
    """Options of the objective armada."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the aligner's output term; the task loss has 1 - alpha",
    )
    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the manifold term"
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the auxiliary heads on the projections",
    )
    temperature: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="softmax temperature of the class outputs",
    )
    manifold: Manifold = Field(
        default="cosine",
        description="how projections are compared: cosine or euclid of the batch means, or "
        "pointwise",
    )
    aligner_hidden_size: int = Field(
        default=768, ge=1, description="width of the aligner's hidden layers"
    )
    orthogonal_map: OrthogonalMap = Field(
        default="matrix_exp",
        description="parametrization of orthogonal maps: matrix_exp, as the reference, or cayley",
    )
    orthogonal_projection: bool = Field(
        default=False, description="keep the student's projection orthogonal as well"
    )
