"""Options of teachers that predict tokens: what is kept of each predicted distribution, and its
features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field, ValidationError

from ....cache_schemas.codings import Coding, Temperature, TopKCoding
from ....cache_schemas.errors import JobError
from ....cache_schemas.features import TOKENS, FeatureSpec, StoredDtype
from .options import TeacherOptions

PREDICTIONS = "predictions"
"""Axis of the tokens of a text that are predicted."""


class TopKOptions(TeacherOptions):
    """The most probable tokens."""

    top_k: int | None = Field(
        default=64,
        ge=1,
        description="most probable tokens to keep of each predicted token, with the mass of all "
        "others; null: none",
    )
    top_k_bits: Literal[5, 6, 8, 16] = Field(
        default=8, description="bits per log-probability of top_k: 5, 6, 8 or 16"
    )

    @property
    def known_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the tail is kept, ascending: 1 is always among them."""
        return (1.0,)

    def codings(self, vocab_size: int) -> dict[str, Coding]:
        """Codings of the features for a vocabulary size. Raises JobError."""
        if self.top_k is None:
            return {}
        return {"top_k": self.top_k_coding("top_k", self.top_k, vocab_size)}

    def top_k_coding(self, option: str, k: int, vocab_size: int) -> TopKCoding:
        """The coding of the `k` most probable tokens, which `option` asks for. Raises JobError."""
        if k > vocab_size:
            raise JobError(
                f"{option}: {k} is above the tokenizer's vocabulary of {vocab_size}; use "
                f"at most {vocab_size}"
            )
        with within_limits(f"{option}, temperatures"):
            return TopKCoding(
                k=k,
                vocab_size=vocab_size,
                bits=self.top_k_bits,
                temperatures=self.known_temperatures,
            )

    def coded_features(self, vocab_size: int, max_length: int) -> list[FeatureSpec]:
        """The features that are coded, of at most so many predictions a text."""
        return [
            spec_of(
                name,
                (coding.row_bytes,),
                "uint8",
                _described(coding),
                coding=coding,
                axis=PREDICTIONS,
                max_length=max_length,
            )
            for name, coding in self.codings(vocab_size).items()
        ]


class DistributionOptions(TopKOptions):
    """The most probable tokens at several temperatures, or all tokens."""

    temperatures: tuple[Temperature, ...] = Field(
        default=(1.0,),
        description="temperatures at which the mass outside of top_k is kept: those that students "
        "will be trained at, and 1",
    )
    dense: bool = Field(
        default=False, description="keep the log-probabilities of all tokens (small vocabularies)"
    )

    @property
    def known_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the tail is kept, ascending: 1 is always among them."""
        return tuple(sorted({1.0, *self.temperatures}))


def dense_feature(vocab_size: int, stored: StoredDtype, max_length: int) -> FeatureSpec:
    """The feature of `dense`."""
    description = "log-probabilities of all tokens"
    return spec_of(
        "dense", (vocab_size,), stored, description, axis=PREDICTIONS, max_length=max_length
    )


def _described(coding: Coding) -> str:
    if isinstance(coding, TopKCoding):
        return (
            f"the {coding.k} most probable tokens, their log-probabilities, the mass of all others"
        )
    return f"{coding.samples} tokens sampled from the model's distribution"


def spec_of(
    name: str, shape: tuple[int, ...], dtype: Any, description: str, **more: Any
) -> FeatureSpec:
    """A feature. Raises JobError, of the options that it follows from, where it is too large."""
    of_text = more.get("axis") in (None, TOKENS, PREDICTIONS)
    option = f"{name}, max_length" if of_text else "max_new_tokens, responses_per_prompt"
    with within_limits(option):
        return FeatureSpec(name=name, shape=shape, dtype=dtype, description=description, **more)


@contextmanager
def within_limits(options: str) -> Iterator[None]:
    """Turns limits of a cache into errors of the options."""
    try:
        yield
    except ValidationError as cause:
        problem = cause.errors()[0]
        field = "".join(f"{part}: " for part in problem["loc"][:1])
        message = problem["msg"].removeprefix("Value error, ")
        raise JobError(f"{options}: {field}{message}; use less") from cause
