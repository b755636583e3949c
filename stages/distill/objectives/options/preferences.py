"""Options of objectives that compare two responses to each prompt."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .base import MayMove, ObjectiveOptions

PreferenceLoss = Literal["sigmoid", "hinge", "ipo"]

_SFT = "weight of the preferred responses' own loss: the mean cross entropy of their tokens"


class DPOOptions(ObjectiveOptions):
    """Options of the objective dpo."""

    beta: Annotated[float, Field(gt=0), MayMove()] = Field(
        default=0.1,
        description="scale of the log-ratios: the smaller, the farther from the reference",
    )
    preference_loss: PreferenceLoss = Field(
        default="sigmoid", description="loss of a margin of log-ratios: sigmoid, hinge or ipo"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="share of preferences taken to be the wrong way round (conservative DPO)",
    )
    length_normalised: bool = Field(
        default=False,
        description="divide the log-ratio of each response by its number of tokens",
    )
    sft_weight: Annotated[float, Field(ge=0), MayMove()] = Field(default=0.0, description=_SFT)

    @model_validator(mode="after")
    def _smooths_a_probability(self) -> Self:
        if self.label_smoothing and self.preference_loss != "sigmoid":
            raise ValueError(
                f"label_smoothing {self.label_smoothing:g}: is for preference_loss=sigmoid; "
                f"{self.preference_loss} has no probability to smooth; leave it out"
            )
        return self


class PLaDOptions(ObjectiveOptions):
    """Options of the objective plad."""

    beta: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0, description="weight of the calibration loss"
    )
    margin: Annotated[float, Field(ge=0), MayMove()] = Field(
        default=1.0,
        description="how much likelier the preferred response is to be, in nats (per token, if "
        "length_normalised)",
    )
    length_normalised: bool = Field(
        default=True,
        description="compare log-probabilities divided by the number of tokens",
    )
    sft_weight: Annotated[float, Field(ge=0), MayMove()] = Field(default=1.0, description=_SFT)

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.beta == 0 == self.sft_weight:
            raise ValueError("beta=0 and sft_weight=0: nothing is left to learn; raise one of them")
        return self
