"""What a coding kept of the teacher's answers, measured on a sample of tokens."""

from collections.abc import Iterable, Sequence
from math import fsum

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 2**60
MAX_ROW_BYTES = 2.0**30
MAX_NATS = 1e6
"""Far beyond whatever is measured, so that sums and means of what a document claims are finite."""


class Fidelity(BaseModel):
    """How far decoded answers are from the teacher's, in nats; of top-k at temperature 1, of draws
    at the temperature they were drawn at.

    What a coding does not keep has no figure (None): draws have no tail and no divergence, and may
    have no log-probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(ge=1, le=MAX_COUNT, description="tokens measured")
    entries: int = Field(ge=0, le=MAX_COUNT, description="log-probabilities that were compared")
    bytes_per_token: float = Field(gt=0, le=MAX_ROW_BYTES, description="bytes of a row")
    mean_error: float | None = Field(
        default=None, ge=0, le=MAX_NATS, description="mean |difference| of an entry"
    )
    max_error: float | None = Field(
        default=None, ge=0, le=MAX_NATS, description="greatest |difference| of an entry"
    )
    mean_tail: float | None = Field(
        default=None, ge=0, le=1, description="mean of the teacher's mass outside of the kept ids"
    )
    divergence: float | None = Field(
        default=None,
        ge=0,
        le=MAX_NATS,
        description="mean KL(teacher || decoded); outcomes are the kept ids, and all others as one",
    )


def combined(parts: Iterable[Fidelity]) -> Fidelity:
    """The fidelity of several samples together; at least one, all of the same kind of coding."""
    samples = list(parts)
    tokens = [sample.tokens for sample in samples]
    entries = [sample.entries for sample in samples]
    greatest = [sample.max_error for sample in samples if sample.max_error is not None]
    return Fidelity(
        tokens=min(sum(tokens), MAX_COUNT),
        entries=min(sum(entries), MAX_COUNT),
        bytes_per_token=_mean([sample.bytes_per_token for sample in samples], tokens) or 0.0,
        mean_error=_mean([sample.mean_error for sample in samples], entries),
        max_error=max(greatest, default=None),
        mean_tail=_mean([sample.mean_tail for sample in samples], tokens),
        divergence=_mean([sample.divergence for sample in samples], tokens),
    )


def _mean(figures: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """Weighted by how many each figure is the mean of; None where nothing was measured."""
    known = [
        (figure, weight)
        for figure, weight in zip(figures, weights, strict=True)
        if figure is not None and weight
    ]
    if not known:
        return None
    mean = fsum(figure * weight for figure, weight in known) / sum(weight for _, weight in known)
    # Not beyond them by rounding.
    return min(max(mean, min(known)[0]), max(known)[0])
