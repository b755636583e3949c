"""Options of objectives that compare queries with passages, and texts in pairs."""

from typing import Annotated

from pydantic import Field

from .base import MayMove, ObjectiveOptions
from .contrast import ContrastOptions
from .features import ProjectorOptions
from .relations import SimilarityOptions

_TEACHERS = "temperature of the teacher's scores or cosines"


class ContrastiveOptions(ObjectiveOptions):
    """Options of the objective contrastive."""

    similarity_temperature: float = Field(
        default=0.05, gt=0, description="softmax temperature of cosine similarities"
    )
    symmetric: bool = Field(
        default=False,
        description="also tell each positive's own query from the other queries of the batch",
    )


class GuidedContrastiveOptions(ContrastiveOptions):
    """Options of the objective guided_contrastive."""

    margin: float = Field(
        default=0.0,
        ge=-2,
        le=2,
        description="negatives whose cosine to the query is, for the teacher, above that of the "
        "positive less this are left out",
    )


class CosentOptions(ObjectiveOptions):
    """Options of the objective cosent."""

    similarity_temperature: float = Field(
        default=0.05, gt=0, description="temperature of cosine similarities"
    )


class ScoresOptions(ObjectiveOptions):
    """Options of an objective that meets a teacher's scores of a query's candidates."""

    beta: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0, description="weight of the teacher's term"
    )


class MarginMSEOptions(ScoresOptions):
    """Options of the objective margin_mse."""

    score_scale: float = Field(
        default=1.0,
        gt=0,
        description="factor of the teacher's scores: margins of cosines are at most 2, those of a "
        "cross-encoder's logits about 20",
    )


class ListwiseKLOptions(ScoresOptions):
    """Options of the objective listwise_kl."""

    similarity_temperature: float = Field(
        default=0.05, gt=0, description="softmax temperature of the student's cosines"
    )
    teacher_temperature: float | None = Field(
        default=None,
        gt=0,
        description=f"{_TEACHERS}; default: 1 for scores, the student's for cosines",
    )


class SimilarityBankOptions(ContrastOptions, SimilarityOptions, ProjectorOptions):
    """Options of the objective similarity_bank."""

    teacher_temperature: float | None = Field(
        default=None, gt=0, description=f"{_TEACHERS}; default: the student's"
    )
