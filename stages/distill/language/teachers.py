"""Cached predictions of tokens, decoded for a batch of texts and matched to the student's.

CachedAnswers   from rows of the cache to tensors with a row for each prediction, text after text
TeacherTokens   one tokenizer: the i-th prediction of a text is the teacher's i-th
MatchedTokens   two tokenizers: predictions at equal character offsets

No Python object per token. Shapes: P predictions, k entries or K samples, V tokens.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.codings import SamplesCoding, TopKCoding
from ....cache_schemas.errors import CacheError, JobError
from ...language.tokens import INSIDE, TokenTexts, read_before_predicted
from ...ragged import arange_each, positions_of
from ...store.codec.answers import TopK
from ...store.codec.samples import decode_samples
from ...store.codec.top_k import decode_top_k
from ...store.format.rows import Rows
from ...store.reading.feature_array import RaggedArray
from ..objectives.options import Tail
from ..token_loss.answers import Answers, DenseAnswers, SampledAnswers, SparseAnswers, check_samples
from ..token_loss.divergences import LEAST
from ..token_loss.settings import TokenLossSettings

Ints = npt.NDArray[np.int64]

Floats = npt.NDArray[np.float32]

Tensors = dict[str, torch.Tensor]

_NO_OFFSETS = np.empty(0, dtype=np.uint32)

_BLOCK = 4096
"""Texts that are matched at once."""


@dataclass(frozen=True, slots=True)
class CachedAnswers:
    """A feature of predicted tokens, and how to read it.

    With `temperatures` T_1 .. T_n each position has its own: T_i if the teacher's certainty
    1 - H(p) / log o, of its o outcomes at temperature 1, lies in the i-th of n equal parts of 0 to
    1. Outcomes are the listed tokens and, with a tail, all others as one more; or all tokens.
    """

    feature: RaggedArray
    temperature: float
    tail: Tail
    temperatures: tuple[float, ...] = ()

    def check(self, settings: TokenLossSettings, by_rank: bool, vocab_size: int) -> None:
        """Raise an InputError for predictions that cannot be compared this way, or have another
        vocabulary size: caches may come from strangers."""
        spec, coding = self.feature.spec, self.feature.spec.coding
        width = coding.vocab_size if coding is not None else math.prod(spec.shape)
        if spec.axis != "predictions" or width != vocab_size or (coding is None and spec.whole):
            raise CacheError(
                f"feature {spec.name!r}: {spec.shown} of {width} tokens is not what a teacher of "
                f"{vocab_size} tokens says of predictions; use another cache"
            )
        if isinstance(coding, SamplesCoding):
            self._check_samples(coding, settings, by_rank)
        nothing = np.empty(0, dtype=np.int64)
        self.read(nothing, nothing, nothing)

    def _check_samples(
        self, coding: SamplesCoding, settings: TokenLossSettings, by_rank: bool
    ) -> None:
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
        if self.temperatures:
            raise JobError(
                "token_temperatures: need all of a distribution, and samples are a part of it; "
                "leave it out, or cache top_k or dense"
            )
        check_samples(settings, self.temperature, bool(coding.log_prob_bits))

    def read(self, rows: Rows, positions: Rows, counts: Rows) -> Tensors:
        """The predictions of cache rows `rows[i]`, `counts[i]` each, text after text; `positions`
        are theirs within the text. A row of which none is read may be -1."""
        rows, counts = rows[counts > 0], counts[counts > 0]
        self.feature.require_whole(rows)
        values = self.feature.gather_at(rows, positions, counts)
        coding = self.feature.spec.coding
        if isinstance(coding, TopKCoding):
            return self._top_k(coding, values)
        if isinstance(coding, SamplesCoding):
            samples = decode_samples(coding, values)
            return _tensors(drawn=samples.ids_NK, log_probs=samples.log_probs_NK)
        if not self.temperatures:
            return _tensors(dense=values)
        log_p = torch.from_numpy(values).float().log_softmax(dim=1).numpy()
        return _tensors(dense=values, temperatures=self._temperatures_by(_certainty(log_p)))

    def _top_k(self, coding: TopKCoding, values: npt.NDArray[np.uint8]) -> Tensors:
        if not self.temperatures:
            return _of_top_k(self._decoded(coding, values, self.temperature))
        found = self._decoded(coding, values, 1.0)
        outcomes = found.log_probs_Nk
        if found.log_tail_N is not None:
            outcomes = np.concatenate([outcomes, found.log_tail_N[:, None]], axis=1)
        temperatures = self._temperatures_by(_certainty(outcomes))
        for temperature in set(self.temperatures):
            at = np.flatnonzero(temperatures == np.float32(temperature))
            own = self._decoded(coding, values[at], temperature)
            found.log_probs_Nk[at] = own.log_probs_Nk
            if found.log_tail_N is not None:
                found.log_tail_N[at] = own.log_tail_N
        return _of_top_k(found) | _tensors(temperatures=temperatures)

    def _decoded(
        self, coding: TopKCoding, values: npt.NDArray[np.uint8], temperature: float
    ) -> TopK:
        return decode_top_k(coding, values, temperature, renormalised=self.tail == "renormalised")

    def _temperatures_by(self, certainty_N: Floats) -> Floats:
        parts = len(self.temperatures)
        chosen = np.clip(certainty_N * parts, 0, parts - 1).astype(np.int64)
        return np.array(self.temperatures, dtype=np.float32).take(chosen)


def _of_top_k(found: TopK) -> Tensors:
    return _tensors(ids=found.ids_Nk, log_probs=found.log_probs_Nk, tail=found.log_tail_N)


def _certainty(log_p_No: Floats) -> Floats:
    """1 - H(p) / log o of each row, as `token_weights` has it; -inf is a probability of 0."""
    log_p_No = np.maximum(log_p_No, np.float32(LEAST))
    entropy_N: Floats = -(np.exp(log_p_No) * log_p_No).sum(axis=1)
    return 1 - entropy_N / np.float32(math.log(max(2, log_p_No.shape[1])))


def _tensors(**arrays: npt.NDArray[Any] | None) -> Tensors:
    return {name: torch.from_numpy(each) for name, each in arrays.items() if each is not None}


def as_answers(tensors: Tensors) -> Answers:
    """The tensors of `CachedAnswers.read`, as the loss takes them."""
    if "dense" in tensors:
        return DenseAnswers(tensors["dense"], tensors.get("temperatures"))
    if "drawn" in tensors:
        return SampledAnswers(tensors["drawn"], tensors.get("log_probs"))
    tail, temperatures = tensors.get("tail"), tensors.get("temperatures")
    return SparseAnswers(tensors["ids"], tensors["log_probs"], tail, temperatures)


# --- Which of them belongs to which prediction of the student


class Answering(Protocol):
    """Predictions for N texts."""

    def counts(self, texts: Ints, predicted: Ints) -> Ints:
        """Number of cached predictions of each of some texts, given their lengths."""

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        """A row for each prediction of some texts, and a mask of cached ones; None: all."""


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """Text i has the predictions of row `rows[i]` of the cache, none if that is -1; it may be
    longer or shorter here than for the teacher. `first` [N] says how many of the row's predictions
    come before the text's; None: none, of any text."""

    answers: CachedAnswers
    rows: Rows
    first: Ints | None = None

    def counts(self, texts: Ints, predicted: Ints) -> Ints:
        known = _lengths(self.answers.feature, self.rows[texts])
        if self.first is not None:
            known = np.maximum(known - self.first[texts], 0)
        return np.minimum(predicted, known)

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        wanted = self.counts(texts, predicted)
        positions = arange_each(wanted)
        if self.first is not None:
            positions += np.repeat(self.first[texts], wanted)
        found = self.answers.read(self.rows[texts], positions, wanted)
        if np.array_equal(wanted, predicted):
            return found, None
        return _spread(found, arange_each(predicted) < np.repeat(wanted, predicted))


def _lengths(feature: RaggedArray, rows: Rows) -> Ints:
    """How many values each row has; -1 has none."""
    lengths = np.zeros(len(rows), dtype=np.int64)
    lengths[rows >= 0] = feature.lengths(rows[rows >= 0])
    return lengths


@dataclass(frozen=True, slots=True)
class MatchedTokens:
    """Pairs of predictions, those of text i at `offsets[i]:offsets[i + 1]`: the student's
    `ours[p]`-th of the text, and the teacher's `theirs[p]`-th."""

    answers: CachedAnswers
    rows: Rows
    ours: Ints
    theirs: Ints
    offsets: Ints

    def counts(self, texts: Ints, predicted: Ints) -> Ints:
        return self._pairs(texts)

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        pairs, at = self._pairs(texts), positions_of(texts, self.offsets)
        found = self.answers.read(self.rows[texts], self.theirs[at], pairs)
        answered = np.zeros(int(predicted.sum()), dtype=bool)
        answered[np.repeat(np.cumsum(predicted) - predicted, pairs) + self.ours[at]] = True
        return _spread(found, answered)

    def _pairs(self, texts: Ints) -> Ints:
        return self.offsets[texts + 1] - self.offsets[texts]


def match(
    answers: CachedAnswers, rows: Rows, texts: TokenTexts, characters_read: RaggedArray
) -> MatchedTokens:
    """Pairs of all texts; `characters_read` is what the teacher had read before its predictions."""
    ours = read_before_predicted(texts)
    pairs: list[tuple[Ints, Ints]] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        known = iter(characters_read.gather(block[block >= 0]).parts())
        theirs = (next(known) if row >= 0 else _NO_OFFSETS for row in block)
        pairs += map(_same, ours[start : start + _BLOCK], theirs)
    none = np.empty(0, dtype=np.int64)
    return MatchedTokens(
        answers=answers,
        rows=rows,
        ours=np.concatenate([none, *(pair[0] for pair in pairs)]),
        theirs=np.concatenate([none, *(pair[1] for pair in pairs)]),
        offsets=np.concatenate([[0], np.cumsum([len(pair[0]) for pair in pairs])]).astype(np.int64),
    )


def _same(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> tuple[Ints, Ints]:
    """First positions at which the two have the same offset; not within a character."""
    common, ours, theirs = np.intersect1d(one, other, return_indices=True)
    whole = common != INSIDE
    return ours[whole], theirs[whole]


def _spread(found: Tensors, answered: npt.NDArray[np.bool_]) -> tuple[Tensors, torch.Tensor]:
    where = torch.from_numpy(answered)
    whole: dict[str, Any] = {}
    for name, rows in found.items():
        whole[name] = rows.new_zeros(len(where), *rows.shape[1:])
        whole[name][where] = rows
    return whole, where
