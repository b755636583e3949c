"""Cached predictions of tokens, decoded for a batch of texts.

In: rows of the cache and the number of predictions for each text. Out: tensors with a row for each
of these, in the order of the texts; no Python object per token. Shapes: P predictions, k entries or
K samples, V tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.codings import SamplesCoding, TopKCoding
from ....cache_schemas.errors import CacheError, JobError
from ...store.codec.samples import decode_samples
from ...store.codec.top_k import decode_top_k
from ...store.format.rows import Rows
from ...store.reading.feature_array import RaggedArray
from ..objectives.tokens import Tail
from ..token_loss.answers import (
    Answers,
    DenseAnswers,
    SampledAnswers,
    SparseAnswers,
    check_samples,
)
from ..token_loss.settings import Divergence

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class CachedAnswers:
    """A feature of predicted tokens, and how to read it."""

    feature: RaggedArray
    temperature: float
    tail: Tail

    def check(self, divergence: Divergence, by_rank: bool, vocab_size: int) -> None:
        """Raise an InputError for predictions that cannot be compared this way, or have another
        vocabulary size: caches may come from strangers."""
        spec, coding = self.feature.spec, self.feature.spec.coding
        said = coding.vocab_size if coding is not None else math.prod(spec.shape)
        if spec.axis != "predictions" or said != vocab_size or (coding is None and spec.whole):
            raise CacheError(
                f"feature {spec.name!r}: {spec.shown} of {said} tokens is not what a teacher of "
                f"{vocab_size} tokens says of predictions; use another cache"
            )
        if isinstance(coding, SamplesCoding):
            self._check_samples(coding, divergence, by_rank)
        nothing = np.empty(0, dtype=np.int64)
        self.read(nothing, nothing, nothing)

    def _check_samples(self, coding: SamplesCoding, divergence: Divergence, by_rank: bool) -> None:
        if by_rank:
            raise JobError(
                "cross_tokenizer: needs sorted probabilities, which samples do not give; cache "
                "top_k or dense"
            )
        if self.tail != "bucket":
            raise JobError("tail=renormalised: is for top_k; samples have no tail; leave it out")
        if coding.temperature != 1:
            raise CacheError(
                f"feature {self.feature.spec.name!r}: was sampled at temperature "
                f"{coding.temperature:g}; training needs samples at temperature 1"
            )
        check_samples(divergence, self.temperature, bool(coding.log_prob_bits))

    def read(self, rows: Rows, places: Rows, counts: Rows) -> Tensors:
        """The predictions of cache rows `rows[i]`, `counts[i]` each, text after text; `places` are
        their indices within the text."""
        self.feature.require_whole(rows)
        values = self.feature.gather_at(rows, places, counts)
        coding = self.feature.spec.coding
        if isinstance(coding, TopKCoding):
            renormalised = self.tail == "renormalised"
            found = decode_top_k(coding, values, self.temperature, renormalised=renormalised)
            return _tensors(ids=found.ids_Nk, log_probs=found.log_probs_Nk, tail=found.log_tail_N)
        if isinstance(coding, SamplesCoding):
            samples = decode_samples(coding, values)
            return _tensors(drawn=samples.ids_NK, log_probs=samples.log_probs_NK)
        return _tensors(dense=values)


def _tensors(**arrays: npt.NDArray[Any] | None) -> Tensors:
    return {name: torch.from_numpy(each) for name, each in arrays.items() if each is not None}


def as_answers(tensors: Tensors) -> Answers:
    """The tensors of `CachedAnswers.read`, as the loss takes them."""
    if "dense" in tensors:
        return DenseAnswers(tensors["dense"])
    if "drawn" in tensors:
        return SampledAnswers(tensors["drawn"], tensors.get("log_probs"))
    return SparseAnswers(tensors["ids"], tensors["log_probs"], tensors.get("tail"))
