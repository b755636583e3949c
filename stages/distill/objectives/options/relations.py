"""Options of objectives that compare the rows of a batch with each other."""

from typing import Literal

from pydantic import Field

from .base import BetaOptions

Kernel = Literal["linear", "poly", "gaussian"]


class SimilarityOptions(BetaOptions):
    """Options of an objective that takes softmaxes of cosine similarities."""

    similarity_temperature: float = Field(
        default=0.05,
        gt=0,
        allow_inf_nan=False,
        description="softmax temperature of cosine similarities",
    )


class RKDOptions(BetaOptions):
    """Options of the objective rkd."""

    distance_weight: float = Field(
        default=1.0, ge=0, description="weight of the distances of pairs"
    )
    angle_weight: float = Field(default=2.0, ge=0, description="weight of the angles of triples")


class SimilarityPreservingOptions(BetaOptions):
    """Options of the objective similarity_preserving."""


class InBatchOptions(SimilarityOptions):
    """Options of the objective in_batch."""


class CKAOptions(BetaOptions):
    """Options of the objective cka."""

    debiased: bool = Field(
        default=False,
        description="unbiased alignment: that of independent texts is 0 for any width and batch",
    )


class MMDOptions(BetaOptions):
    """Options of the objective mmd."""

    kernel: Kernel = Field(
        default="poly",
        description="kernel that compares neurons: linear, poly (squared product) or gaussian",
    )


class PrototypesOptions(SimilarityOptions):
    """Options of the objective prototypes."""

    prototype_temperature: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="softmax temperature of the teacher's similarities to its prototypes",
    )
