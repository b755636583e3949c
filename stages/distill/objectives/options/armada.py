"""Options of ARMADA."""

from typing import Annotated, Literal

from pydantic import Field

from .base import MayMove, ObjectiveOptions

Manifold = Literal["cosine", "euclid", "pointwise"]


OrthogonalMap = Literal["matrix_exp", "cayley"]


class ArmadaOptions(ObjectiveOptions):
    """Options of the objective armada."""

    alpha: Annotated[float, Field(ge=0, le=1), MayMove()] = Field(
        default=0.5,
        description="weight of the aligner's output term; the task loss has 1 - alpha",
    )
    beta: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0, description="weight of the manifold term"
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the auxiliary heads on the projections",
    )
    temperature: Annotated[float, Field(gt=0), MayMove()] = Field(
        default=5.0,
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
