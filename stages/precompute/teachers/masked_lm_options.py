"""Options of the teacher `masked_lm`, and its features."""

from typing import Self

from pydantic import Field, model_validator

from ....cache_schemas.features import TOKEN_IDS, TOKENS, FeatureSpec, StoredDtype
from ...language.masking import MaskSettings
from .options import PaddingOptions
from .prediction_options import PREDICTIONS, DistributionOptions, dense_feature, spec_of

POSITIONS, READ = "masked_positions", "masked_ids"
"""Features: where predicted tokens are in their text, and what the teacher read there."""


class MaskedLMOptions(PaddingOptions, DistributionOptions, MaskSettings):
    """Options of the teacher `masked_lm`."""

    revision: str | None = Field(
        default=None, description="branch, tag or commit of a hub id; none is the main branch"
    )
    max_length: int | None = Field(
        default=None,
        ge=3,
        description="maximum tokens per text, longer ones are truncated; default 128, or the "
        "model's maximum if that is less",
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if not (self.top_k or self.dense):
            raise ValueError("top_k, dense: set at least one of them")
        return self

    @property
    def masks(self) -> MaskSettings:
        """How texts are masked."""
        return MaskSettings(**{name: getattr(self, name) for name in MaskSettings.model_fields})

    def features(self, vocab_size: int, max_length: int, stored: StoredDtype) -> list[FeatureSpec]:
        """The features, for a vocabulary size. Raises JobError."""
        most = max_length * self.masks_per_text
        of_tokens = {"axis": TOKENS, "max_length": max_length}
        of_predictions = {"axis": PREDICTIONS, "max_length": most}
        which = "predicted tokens, mask after mask"
        found = [
            spec_of(TOKEN_IDS, (), "uint32", "token ids of the text", **of_tokens),
            spec_of(POSITIONS, (), "uint32", f"positions of {which}", **of_predictions),
            spec_of(READ, (), "uint32", f"token ids read in place of {which}", **of_predictions),
            *self.coded_features(vocab_size, most),
        ]
        return found + ([dense_feature(vocab_size, stored, most)] if self.dense else [])
