"""Options of objectives that compare the rows of a batch with each other."""

from pydantic import Field

from .base import BetaOptions


class RKDOptions(BetaOptions):
    """Options of the objective rkd."""

    distance_weight: float = Field(
        default=1.0, ge=0, description="weight of the distances of pairs"
    )
    angle_weight: float = Field(default=2.0, ge=0, description="weight of the angles of triples")
