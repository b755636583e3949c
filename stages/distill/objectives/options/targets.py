"""Options of objectives whose targets are made from the teacher's logits."""

from pydantic import Field

from ...divergence_options import MovingTargetOptions
from .base import AlphaOptions
from .divergences import SoftenedOptions


class TAIDOptions(MovingTargetOptions, SoftenedOptions):
    """Options of the objective taid."""

    taid_step: float = Field(
        default=5e-4,
        ge=0,
        le=1,
        description="how fast the share may run ahead of the straight line while the loss falls; 0 "
        "keeps it on the line",
    )
    taid_momentum: float = Field(
        default=0.99, ge=0, lt=1, description="momentum of the loss's relative change"
    )


class FirstOptions(AlphaOptions):
    """Options of the objective first."""

    kept_classes: int = Field(
        default=5, ge=1, description="number of the teacher's most probable classes in the target"
    )
    calibration_temperature: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="temperature of the target alone: one that calibrates the teacher on held-out "
        "labels",
    )
    smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability that the first class gives to the other kept ones",
    )


class SmoothedLabelsOptions(SoftenedOptions):
    """Options of the objective smoothed_labels."""


class PESFOptions(SoftenedOptions):
    """Options of the objective pesf."""

    adapter_hidden_size: int = Field(
        default=64, ge=1, description="width of the adapter's hidden layer"
    )


class FusedLabelsOptions(SoftenedOptions):
    """Options of the objective fused_labels."""

    strictness: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="how strictly the weights of rows keep to alpha; the less, the more they "
        "follow the smaller loss",
    )
