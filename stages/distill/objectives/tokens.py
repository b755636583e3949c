"""The objective of language students that learn tokens from a teacher of tokens, and nothing else.

Their loss is taken at every predicted token, by the language model itself (`../token_loss`): what
is here owns nothing, and says which options it has.
"""

from pydantic import Field

from .base import ObjectiveOptions
from .undistilled import UndistilledObjective


class TokensOptions(ObjectiveOptions):
    """Options of the objective tokens."""

    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of the teacher's tokens; those of the corpus have 1 - alpha",
    )


class TokensObjective(UndistilledObjective):
    """Owns nothing: the language model takes the loss."""

    Options = TokensOptions
