"""Options of objectives that branch off the student's layers."""

from typing import Annotated

from pydantic import Field

from ....pooling import StatePooling
from .base import BetaOptions, MayMove


class OFAOptions(BetaOptions):
    """Options of the objective ofa."""

    layers: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        default=(1, -1),
        description="student layers that branch into logits: 1 is the first, -1 the last",
    )
    enhancement: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0,
        description="exponent of 1 + the teacher's probability of the label, at least 0; 1: cross "
        "entropy and KL, larger: the label counts more where the teacher is certain of it",
    )
    layer_pooling: StatePooling = Field(
        default="mean",
        description="how the states of a layer become one vector: mean, cls, last, max, "
        "mean_sqrt_len_tokens or weightedmean",
    )
