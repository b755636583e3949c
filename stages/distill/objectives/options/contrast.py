"""Options of objectives that tell a text's teacher feature from those of others."""

from pydantic import Field

from .base import BetaOptions
from .features import ProjectorOptions
from .relations import SimilarityOptions


class ContrastOptions(BetaOptions):
    """Options of an objective with negatives."""

    negatives: int = Field(
        default=0,
        ge=0,
        description="texts drawn from the cache for each batch, as negatives beside those of the "
        "batch",
    )
    mask_same_label: bool = Field(
        default=False, description="texts with a row's own label are no negatives of it"
    )


class InfoNCEOptions(ContrastOptions, SimilarityOptions, ProjectorOptions):
    """Options of the objective infonce."""

    symmetric: bool = Field(
        default=False,
        description="also each teacher feature among the texts of the batch, half of the loss, as "
        "in CLIP: for features that are to find texts, as pictures of classes do",
    )


class CRDOptions(ContrastOptions, SimilarityOptions):
    """Options of the objective crd."""

    embedding_size: int = Field(default=128, ge=1, description="width of the critic's embeddings")


class WCoRDOptions(ContrastOptions):
    """Options of the objective wcord."""

    embedding_size: int = Field(default=128, ge=1, description="width of the critic's embeddings")
    global_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the critic's distance"
    )
    local_weight: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of transport in the batch"
    )
    transport_epsilon: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="entropy of the transport plan"
    )
    transport_iterations: int = Field(
        default=20, ge=1, description="iterations that work out the transport plan"
    )
