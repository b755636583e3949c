"""Alignment of teachers' predictions with a student's predicted tokens.

TeacherTokens   one tokenizer: the i-th prediction of a text is the teacher's i-th
MatchedTokens   two tokenizers: predictions at equal character offsets
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...language.tokens import INSIDE, TokenTexts, read_before_predicted
from ...store.format.rows import Rows, arange_each, places_of
from ...store.reading.feature_array import RaggedArray
from .cached_answers import CachedAnswers, Tensors

Ints = npt.NDArray[np.int64]

_BLOCK = 4096
"""Texts that are matched at once."""


class Answering(Protocol):
    """Predictions for N texts."""

    def count(self, texts: Ints, predicted: Ints) -> int:
        """Number of cached predictions of some texts, given their lengths."""

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        """A row for each prediction of some texts, and a mask of cached ones; None: all."""


@dataclass(frozen=True, slots=True)
class TeacherTokens:
    """Text i has the predictions of row `rows[i]` of the cache; it may be longer or shorter here
    than for the teacher."""

    answers: CachedAnswers
    rows: Rows

    def count(self, texts: Ints, predicted: Ints) -> int:
        return int(self._wanted(texts, predicted).sum())

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        wanted = self._wanted(texts, predicted)
        found = self.answers.read(self.rows[texts], arange_each(wanted), wanted)
        if np.array_equal(wanted, predicted):
            return found, None
        return _spread(found, arange_each(predicted) < np.repeat(wanted, predicted))

    def _wanted(self, texts: Ints, predicted: Ints) -> Ints:
        return np.minimum(predicted, self.answers.feature.lengths(self.rows[texts]))


@dataclass(frozen=True, slots=True)
class MatchedTokens:
    """Pairs of predictions, those of text i at `offsets[i]:offsets[i + 1]`: the student's
    `ours[p]`-th of the text, and the teacher's `theirs[p]`-th."""

    answers: CachedAnswers
    rows: Rows
    ours: Ints
    theirs: Ints
    offsets: Ints

    def count(self, texts: Ints, predicted: Ints) -> int:
        return int(self._pairs(texts).sum())

    def read(self, texts: Ints, predicted: Ints) -> tuple[Tensors, torch.Tensor | None]:
        pairs, at = self._pairs(texts), places_of(texts, self.offsets)
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
        theirs = characters_read.gather(rows[start : start + _BLOCK]).parts()
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
