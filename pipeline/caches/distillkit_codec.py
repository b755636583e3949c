"""The compressed log-probabilities of DistillKit (Goddard and Atkins 2024, github.com/arcee-ai/
DistillKit, `distillkit/compression`): its settings, and how bytes are decoded.

In place of a token are the k most probable ones, most probable first. Bytes of their ids: b bits
each, b = ceil(log2 d), highest bit first, end to end; zeros up to a whole byte. Bytes of their
values v_1 .. v_k, little-endian, one part behind another:

    e = exact_k values in exact_dtype                v_1 .. v_e
    a coefficient c_j in term_dtype for each term    v_(e+1+t) = sum_j c_j f_j(t) + r_t, t = 0, 1 ..
    for each residual bin a scale s in scale_dtype,  r_t = s (q_t - 2^(m-1)) for the next n of t,
    and n numbers q of m bits, packed as ids are     s (2 q_t - 1) if m is 1; behind the bins 0

f_j(t): t to a power, sqrt or exp; with normalize_t, of t / (k - e - 1). With delta_encoding, the
log-probabilities are the running sum of v, else v itself. Arithmetic and rounding are in the types
of the settings, as in DistillKit, so numbers are the same. `error_diffusion` only changes what was
encoded. A curve may overstate; `bounded` holds it to what is certain.

Shapes: P places, B bytes of a place, K tokens.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...cache_schemas.keys import IntArray
from ...cache_schemas.teachers import SettingValue

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Count = Annotated[int, Field(strict=True, ge=0, le=2**16)]
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
LEAST_LEFT = 1e-4
"""Probability that exact values leave to others, where their rounding exceeds 1."""
MOST_BITS = 32
"""Most bits of a residual; DistillKit would take 64, of which float32 keeps 24."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ResidualBin(_Settings):
    """Residuals with a common scale."""

    scale_dtype: Dtype = Field(description="type of the scale")
    element_bits: int = Field(strict=True, ge=1, le=MOST_BITS, description="bits of a residual")
    num_elements: Count = Field(ge=1, description="residuals of the bin")

    @property
    def packed_bytes(self) -> int:
        """Bytes of the residuals."""
        return -(-self.num_elements * self.element_bits // 8)


class CompressionSettings(_Settings):
    """compression_config.yaml."""

    d: int = Field(strict=True, ge=2, le=2**31, description="ids of the vocabulary")
    k: Count = Field(ge=1, description="tokens of each place")
    exact_k: Count = Field(description="tokens whose values are stored as they are")
    exact_dtype: Dtype = Field(default="float32", description="type of these values")
    polynomial_terms: (
        tuple[Literal["sqrt", "exp"] | Annotated[int, Field(strict=True, ge=-64, le=64)], ...]
        | None
    ) = Field(default=None, description="terms of the curve through the other values")
    term_dtype: Dtype = Field(default="float32", description="type of the coefficients")
    residual_bins: tuple[ResidualBin, ...] = Field(description="differences from the curve")
    delta_encoding: bool = Field(default=True, strict=True, description="values are differences")
    error_diffusion: bool = Field(default=False, strict=True, description="only of the encoder")
    normalize_t: bool = Field(default=False, strict=True, description="t is 0 to 1")

    @model_validator(mode="after")
    def _holds_together(self) -> "CompressionSettings":
        rest = self.k - self.exact_k
        if rest < 0:
            raise ValueError(f"exact_k: {self.exact_k} is above k, {self.k}")
        if rest and not self.polynomial_terms and not self.residual_bins:
            raise ValueError(
                f"exact_k: {self.exact_k} is below k, {self.k}, and there are neither "
                "polynomial_terms nor residual_bins for the others"
            )
        residuals = sum(each.num_elements for each in self.residual_bins)
        if residuals > rest:
            raise ValueError(f"residual_bins: {residuals} residuals are above k - exact_k, {rest}")
        return self

    @property
    def approximates(self) -> bool:
        """Whether some values come of a curve or of residuals."""
        return self.exact_k < self.k

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return (self.d - 1).bit_length()

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids in place of one token."""
        return -(-self.k * self.id_bits // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of their values."""
        terms = len(self.polynomial_terms or ()) * BYTES[self.term_dtype]
        bins = (BYTES[each.scale_dtype] + each.packed_bytes for each in self.residual_bins)
        return self.exact_k * BYTES[self.exact_dtype] + terms + sum(bins)

    def listed(self) -> dict[str, SettingValue]:
        """As settings of a teacher."""
        found: dict[str, SettingValue] = self.model_dump(
            exclude={"polynomial_terms", "residual_bins"}
        )
        found["polynomial_terms"] = tuple(str(term) for term in self.polynomial_terms or ())
        found["residual_bins"] = tuple(
            f"{each.num_elements}x{each.element_bits}:{each.scale_dtype}"
            for each in self.residual_bins
        )
        return {f"compression.{name}": value for name, value in found.items()}


def unpacked(packed_PB: Bytes, bits: int, count: int) -> IntArray:
    """The first `count` numbers [P, count] of so many bits each."""
    bits_PKb = np.unpackbits(packed_PB, axis=1, count=bits * count).reshape(-1, count, bits)
    numbers = np.zeros(bits_PKb.shape[:2], np.int64)
    for at in range(bits):
        numbers = numbers << 1 | bits_PKb[:, :, at]
    return numbers


def decoded(settings: CompressionSettings, bytes_PB: Bytes) -> npt.NDArray[np.float32]:
    """Log-probabilities [P, K] of bytes [P, `value_bytes`]; NaN and infinity where the bytes say
    so."""
    import torch

    exact_dtype = getattr(torch, settings.exact_dtype)
    end = settings.exact_k * BYTES[settings.exact_dtype]
    values_PK = _numbers(bytes_PB[:, :end], settings.exact_dtype)
    if settings.approximates:
        curve_PR, end = _curve(settings, bytes_PB, end)
        residuals_PR = _residuals(settings, bytes_PB, end).to(exact_dtype)
        rest_PR = residuals_PR if curve_PR is None else curve_PR + residuals_PR
        values_PK = torch.cat([values_PK, rest_PR], dim=1)
    if settings.delta_encoding:
        values_PK = values_PK.float().cumsum(dim=1).to(exact_dtype)
    log_probs: npt.NDArray[np.float32] = values_PK.float().numpy()
    return log_probs


def bounded(log_probs_PK: npt.NDArray[np.float32], exact_k: int) -> npt.NDArray[np.float32]:
    """Log-probabilities [P, K] of which the first `exact_k` are as stored, and the others at most
    the last of these, and together at most what these leave of 1."""
    exact, others = np.split(log_probs_PK.astype(np.float64), [exact_k], axis=1)
    highest = exact[:, -1:] if exact_k else np.zeros((len(exact), 1))
    others = np.minimum(others, highest)
    left = np.maximum(1 - np.exp(exact).sum(axis=1, keepdims=True), LEAST_LEFT)
    too_much = np.maximum(np.exp(others).sum(axis=1, keepdims=True) / left, 1)
    return np.hstack([exact, others - np.log(too_much)]).astype(np.float32)


def _curve(
    settings: CompressionSettings, bytes_PB: Bytes, start: int
) -> tuple["torch.Tensor | None", int]:
    """The curve through the values that are not exact [P, R], and the byte behind it."""
    import torch

    terms = settings.polynomial_terms
    if not terms:
        return None, start
    end = start + len(terms) * BYTES[settings.term_dtype]
    coefficients_PJ = _numbers(bytes_PB[:, start:end], settings.term_dtype)
    count, dtype = settings.k - settings.exact_k, coefficients_PJ.dtype
    t_R = torch.linspace(0, 1, count, dtype=dtype) if settings.normalize_t else torch.arange(count)
    t_R = t_R.to(dtype)
    columns = [t_R**term if isinstance(term, int) else getattr(t_R, term)() for term in terms]
    terms_RJ = torch.stack(columns, dim=1)
    return (terms_RJ * coefficients_PJ[:, None]).sum(dim=2), end


def _residuals(settings: CompressionSettings, bytes_PB: Bytes, start: int) -> "torch.Tensor":
    """What is added to the curve [P, R]."""
    import torch

    count = settings.k - settings.exact_k
    parts = []
    for each in settings.residual_bins:
        middle = start + BYTES[each.scale_dtype]
        scale_P1 = _numbers(bytes_PB[:, start:middle], each.scale_dtype)
        start = middle + each.packed_bytes
        packed = bytes_PB[:, middle:start]
        numbers = torch.from_numpy(unpacked(packed, each.element_bits, each.num_elements))
        one_bit = each.element_bits == 1
        steps = 2 * numbers - 1 if one_bit else numbers - 2 ** (each.element_bits - 1)
        parts.append(steps.float() * scale_P1)
    known = sum(each.num_elements for each in settings.residual_bins)
    return torch.cat([*parts, torch.zeros(len(bytes_PB), count - known)], dim=1)


def _numbers(bytes_PB: Bytes, dtype: Dtype) -> "torch.Tensor":
    """Bytes as numbers."""
    import torch

    whole = torch.from_numpy(bytes_PB.copy())
    shape = (len(bytes_PB), bytes_PB.shape[1] // BYTES[dtype])
    return whole.flatten().view(getattr(torch, dtype)).reshape(shape)
