"""Options of objectives that fuse several teachers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import AlphaOptions, MayMove

Fusion = Literal["fixed", "confidence", "entropy", "agreement", "gate"]


class MultiKDOptions(AlphaOptions):
    """Options of the objective multi_kd."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False), MayMove()] = Field(
        default=5.0, description="softmax temperature of the logits"
    )
    fusion: Fusion = Field(
        default="fixed",
        description="weights of the teachers: fixed, or of each example: confidence (by cross "
        "entropy with the label), entropy, agreement with the others, or a learned gate",
    )
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        default=(), description="weights of the teachers in their order (fusion=fixed); default 1"
    )
    fused: Literal["probabilities", "logits"] = Field(
        default="probabilities", description="what is averaged: probabilities, or logits"
    )
    standardize: bool = Field(
        default=False,
        description="logits of each example, of the teachers and the student, with mean 0 and "
        "deviation 1; of three classes or more",
    )
    gate_hidden_size: int = Field(
        default=64, ge=1, description="width of the hidden layer of the gate (fusion=gate)"
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.weights and self.fusion != "fixed":
            raise ValueError(
                f"weights: are of fusion=fixed, and fusion={self.fusion} works out its own; leave "
                "them out"
            )
        if self.weights and not sum(self.weights) > 0:
            raise ValueError("weights: sum to 0; give some teacher a weight")
        return self
