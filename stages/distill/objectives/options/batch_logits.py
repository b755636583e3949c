"""Options of objectives that compare class logits of all rows of a batch."""

from typing import Self

from pydantic import Field, model_validator

from .divergences import SoftenedOptions


class SinkhornOptions(SoftenedOptions):
    """Options of the objective sinkhorn."""

    kl_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of forward KL, row by row"
    )
    sinkhorn_weight: float = Field(
        default=0.8, ge=0, allow_inf_nan=False, description="weight of the transport cost"
    )
    sinkhorn_epsilon: float = Field(
        default=0.1,
        ge=1e-3,
        allow_inf_nan=False,
        description="strength of the entropy of the transport, in units of the distances (0 to 2)",
    )
    sinkhorn_iterations: int = Field(
        default=20, ge=1, le=1000, description="normalisations of the transport plan"
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.kl_weight == 0 == self.sinkhorn_weight:
            raise ValueError(
                "kl_weight=0 and sinkhorn_weight=0: nothing is left of the teacher; raise one of "
                "them, or use undistilled"
            )
        return self


class LumiOptions(SoftenedOptions):
    """Options of the objective lumi."""
