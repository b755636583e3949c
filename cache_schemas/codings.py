"""Codings of a teacher's prediction of one token as a row of bytes of fixed width.

A coding is all that a reader needs beside the bytes. Two kinds: the most probable ids with their
log-probabilities (`TopKCoding`), and sampled ids (`SamplesCoding`; Anshumann et al. 2025, arXiv
2503.16870). The bytes themselves are the matter of `stages/store/codec`. What a coding kept of the
answers, measured on a sample of tokens, is its `Fidelity`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import fsum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from . import names
from .names import either, of_version_1

MAX_ENTRIES = 2**16
"""Most ids of one token: more than any teacher's head is worth, few enough to allocate blindly."""

MAX_VOCAB_SIZE = 2**31
"""Ids are signed 32-bit numbers once decoded."""

MAX_TEMPERATURES = 16
TAIL_BYTES = 2
RANGE_BYTES = 1

MIN_TEMPERATURE, MAX_TEMPERATURE = 2.0**-10, 2.0**10
"""Wider than any distillation needs, and far from overflow in 32 bits."""

Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False)]


def id_bits(vocab_size: int) -> int:
    """Bits of one id: ceil(log2 vocab_size)."""
    return (vocab_size - 1).bit_length()


@dataclass(frozen=True, slots=True)
class EliasFano:
    """Split of `count` non-decreasing numbers below `universe` into two parts.

    Each number gives its `low_bits` lowest bits as they are. The rest, `number >> low_bits`, is a
    string of `high_bits` bits that holds `count` ones: the i-th one stands at i + the i-th rest.
    Elias (1974), Journal of the ACM 21(2); Fano (1971), MIT Project MAC memorandum 61.
    """

    universe: int
    count: int

    @property
    def low_bits(self) -> int:
        """The split that takes the fewest bits; the fewest low bits where two are equal."""
        return _low_bits(self.universe, self.count)

    @property
    def high_bits(self) -> int:
        """Ones, and a zero for every step up to the greatest rest."""
        return self.count + ((self.universe - 1) >> self.low_bits)


@lru_cache(maxsize=64)
def _low_bits(universe: int, count: int) -> int:
    # Called for every block of tokens.
    splits = range(id_bits(universe) + 1)
    return min(splits, key=lambda low: count * low + ((universe - 1) >> low))


def _columns_bytes(count: int, widths: tuple[int, ...], more_bits: int = 0) -> int:
    """Bytes of `count` numbers of each of some widths, whose loose bits share one last section."""
    loose = sum(count * (width % 8) for width in widths) + more_bits
    return sum(count * (width // 8) for width in widths) + -(-loose // 8)


class _Coding(BaseModel):
    """Base of both kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(
        ge=1,
        le=MAX_VOCAB_SIZE,
        validation_alias=either("vocab_size", names.CODING),
        description="ids are below this",
    )

    def identity(self) -> dict[str, Any]:
        """Its hashed fields, by their names in version 1."""
        document = of_version_1(self.model_dump(mode="json"), names.CODING)
        kind = str(document["kind"])
        return document | {"kind": names.CODING_KINDS.get(kind, kind)}


class TopKCoding(_Coding):
    """The `k` most probable ids, their log-probabilities, and the mass of all others."""

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1, le=MAX_ENTRIES, description="ids kept of each token")
    bits: Literal[5, 6, 8, 16] = Field(
        default=8,
        description="resolution of log-probabilities: 30, 62 or 254 steps of a token's own range, "
        "or steps of 1/1024 nat",
    )
    temperatures: tuple[Temperature, ...] = Field(
        default=(1.0,),
        min_length=1,
        max_length=MAX_TEMPERATURES,
        description="temperatures at which the mass of all other ids is known, ascending",
    )

    @model_validator(mode="after")
    def _holds_together(self) -> "TopKCoding":
        if self.k > self.vocab_size:
            raise ValueError(
                f"k: {self.k} is above the vocabulary of {self.vocab_size}; "
                f"keep at most {self.vocab_size}"
            )
        if list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(
                f"temperatures: {list(self.temperatures)} are not ascending; "
                "sort them and give each once"
            )
        if 1.0 not in self.temperatures:
            raise ValueError(f"temperatures: {list(self.temperatures)} lack 1.0; add it")
        return self

    @property
    def levels(self) -> EliasFano:
        """The split of log-probabilities: non-decreasing numbers of steps below the first."""
        return EliasFano(2**self.bits, self.k)

    @property
    def header_bytes(self) -> int:
        """The range, where steps are of a token's own range, and a tail for each temperature."""
        own_range = RANGE_BYTES if self.bits < 16 else 0
        return own_range + TAIL_BYTES * len(self.temperatures)

    @property
    def row_bytes(self) -> int:
        """Bytes per token."""
        widths = (id_bits(self.vocab_size), self.levels.low_bits)
        return self.header_bytes + _columns_bytes(self.k, widths, self.levels.high_bits)


class SamplesCoding(_Coding):
    """Ids drawn with replacement from the teacher's distribution at `temperature`."""

    kind: Literal["samples"] = "samples"
    samples: int = Field(
        ge=1,
        le=MAX_ENTRIES,
        validation_alias=either("samples", names.CODING),
        description="ids sampled for each token",
    )
    temperature: Temperature = Field(default=1.0, description="temperature they were drawn at")
    log_prob_bits: Literal[0, 16] = Field(
        default=0, description="bits of each draw's log-probability; 0: not kept"
    )

    @property
    def ids(self) -> EliasFano:
        """The split of ids, ascending."""
        return EliasFano(self.vocab_size, self.samples)

    @property
    def ids_bytes(self) -> int:
        """Bytes of the ids of one token."""
        return _columns_bytes(self.samples, (self.ids.low_bits,), self.ids.high_bits)

    @property
    def row_bytes(self) -> int:
        """Bytes per token."""
        return self.ids_bytes + self.samples * self.log_prob_bits // 8


def _kind_of_today(document: Any) -> Any:
    if isinstance(document, Mapping) and document.get("kind") in names.CODING_KINDS.values():
        return {**document, "kind": "samples"}
    return document


Coding = Annotated[
    Annotated[TopKCoding | SamplesCoding, Field(discriminator="kind")],
    BeforeValidator(_kind_of_today),
]


MAX_COUNT = 2**60
MAX_ROW_BYTES = 2.0**30
MAX_NATS = 1e6
"""Far beyond whatever is measured, so that sums and means of what a document claims are finite."""


class Fidelity(BaseModel):
    """Error of decoded predictions, in nats; of top-k at temperature 1, of samples at the
    temperature they were drawn at. Values that a coding does not keep are None: samples have no
    tail and no divergence, and may have no log-probabilities."""

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
