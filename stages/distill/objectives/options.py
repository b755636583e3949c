"""Options of the objectives, and other keys of an objective.

Nothing here imports torch: a job is parsed, and refused, before a run loads anything heavy.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from ..token_loss.settings import TokenLossSettings

SOURCE = "teacher"
"""The name of the source in a run that has one."""

Manifold = Literal["cosine", "euclid", "pointwise"]
Distance = Literal["mse", "mae", "cosine"]
OrthogonalMap = Literal["matrix_exp", "cayley"]


class ObjectiveOptions(BaseModel):
    """Base of the options of an objective: keys of a job, each with one line of description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class KDOptions(ObjectiveOptions):
    """Options of the objective kd."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's logits; the task loss has 1 - alpha",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["learned"] = Field(
        default=5.0, description="softmax temperature of the logits, or 'learned'"
    )


class FeatureOptions(ObjectiveOptions):
    """Options of the objective feature."""

    beta: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="weight of the feature term"
    )
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


Tail = Literal["bucket", "renormalised"]

"""What becomes of the tokens outside of a teacher's top k."""


class TokensOptions(ObjectiveOptions, TokenLossSettings):
    """Options of the objective tokens."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's distribution; the corpus's tokens have 1 - alpha",
    )
    token_temperature: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="softmax temperature of teacher's and student's token probabilities; for "
        "top_k, one of tail_temperatures",
    )
    tail: Tail = Field(
        default="bucket",
        description="tokens outside top_k: bucket (merged into one more token) or renormalised "
        "(dropped on both sides)",
    )
    cross_tokenizer: bool = Field(
        default=False,
        description="teacher with another tokenizer: compare sorted probabilities at equal "
        "character offsets (universal logit distillation, arXiv 2402.12030)",
    )

    @model_validator(mode="after")
    def _goes_with_sorted_probabilities(self) -> Self:
        if not self.cross_tokenizer:
            return self
        if self.divergence != "forward_kl":
            raise ValueError(
                f"divergence {self.divergence}: cross_tokenizer compares sorted probabilities, by "
                "the sum of their differences; leave divergence out"
            )
        if self.token_temperature != 1:
            raise ValueError(
                f"token_temperature {self.token_temperature:g}: probabilities of two tokenizers "
                "are compared at temperature 1; leave it out"
            )
        if self.tail != "bucket":
            raise ValueError("tail=renormalised: cross_tokenizer compares tails too; leave it out")
        return self


class WeightSchedule(BaseModel):
    """A weight that changes from one value to another during a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    begin: float = Field(alias="from", ge=0, allow_inf_nan=False, description="weight at the start")
    end: float = Field(alias="to", ge=0, allow_inf_nan=False, description="weight at the end")
    until: float = Field(
        default=1.0, gt=0, le=1, description="share of the steps after which `to` is reached"
    )
    shape: Literal["linear", "cosine"] = Field(
        default="linear", description="course: linear, or cosine (slow at both ends)"
    )

    @model_serializer
    def _as_written(self) -> dict[str, float | str]:
        return {"from": self.begin, "to": self.end, "until": self.until, "shape": self.shape}

    def at(self, progress: float) -> float:
        """The weight when a share of the steps, 0 to 1, is made."""
        passed = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            passed = (1 - math.cos(math.pi * passed)) / 2
        return self.begin + passed * (self.end - self.begin)
