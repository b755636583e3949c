"""Hard negatives: of the passages that a teacher finds near to a query, those to learn from.

In: the nearest passages of each query, its positives left out (`search.py`), and the teacher's
score of each positive. Out: negatives, the nearest first. What scores nearly as high as a positive
is more likely an answer that was not judged than a negative (Moreira et al., NV-Retriever, arXiv
2407.15831, section 3: "TopK-MarginPos", "TopK-PercPos").

Shapes: R rows, pairs of a query and a positive; K candidates of a query; N negatives.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache_schemas.keys import IntArray, KeyArray, key_words
from .search import NONE, Found

Sampling = Literal["top", "random"]
"""top: the nearest that are left; random: any of them, by the seed and the keys of the texts."""

_UINT64 = np.uint64


@dataclass(frozen=True, slots=True)
class MiningRules:
    """Which candidates are negatives; ranks count from 0 among the candidates of a query.

    n negatives are sampled from candidates of ranks range_min to range_max - 1 whose score is at
    most max_score, at most s - margin, and at most s - relative_margin·|s|, where s is the score of
    the row's positive."""

    negatives: int
    sampling: Sampling = "top"
    range_min: int = 0
    range_max: int = 100
    max_score: float | None = None
    margin: float | None = None
    relative_margin: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Negatives:
    """Passages [R, N], the nearest first, and their scores; NONE and NaN where there are fewer.
    `too_high`: candidates above max_score, `too_near`: of the others, those too near to the
    positive."""

    rows_RN: IntArray
    scores_RN: npt.NDArray[np.float32]
    too_high: int
    too_near: int


def choose_negatives(
    found: Found,
    positives_R: npt.NDArray[Any],
    row_keys: KeyArray,
    passage_keys: KeyArray,
    rules: MiningRules,
) -> Negatives:
    """The negatives of R rows. `found`: candidates [R, K] of each row's query; `positives_R`: the
    score of each row's positive; `row_keys`: the key of each row, and `passage_keys` that of each
    passage, which a random choice follows from."""
    rows_RK, scores_RK = found.rows_QK[:, : rules.range_max], found.scores_QK[:, : rules.range_max]
    there_RK = rows_RK != NONE
    there_RK[:, : rules.range_min] = False
    low_RK = np.ones_like(there_RK) if rules.max_score is None else scores_RK <= rules.max_score
    far_RK = scores_RK <= _limits(positives_R, rules)[:, None]
    left_RK = there_RK & low_RK & far_RK
    order_RN = _order(left_RK, rows_RK, row_keys, passage_keys, rules)
    kept_RN = np.take_along_axis(left_RK, order_RN, axis=1)
    rows_RN = np.full((len(rows_RK), rules.negatives), NONE, dtype=np.int64)
    chosen_RN = np.full(rows_RN.shape, np.nan, dtype=np.float32)
    width = order_RN.shape[1]
    rows_RN[:, :width] = np.where(kept_RN, np.take_along_axis(rows_RK, order_RN, axis=1), NONE)
    chosen_RN[:, :width] = np.where(
        kept_RN, np.take_along_axis(scores_RK, order_RN, axis=1), np.nan
    )
    return Negatives(
        rows_RN,
        chosen_RN,
        too_high=int((there_RK & ~low_RK).sum()),
        too_near=int((there_RK & low_RK & ~far_RK).sum()),
    )


def _limits(positives_R: npt.NDArray[Any], rules: MiningRules) -> npt.NDArray[np.float64]:
    """The highest score of a negative of each row."""
    scores_R = positives_R.astype(np.float64)
    limits_R = np.full(len(scores_R), np.inf)
    if rules.margin is not None:
        limits_R = np.minimum(limits_R, scores_R - rules.margin)
    if rules.relative_margin is not None:
        limits_R = np.minimum(limits_R, scores_R - rules.relative_margin * np.abs(scores_R))
    return limits_R


def _order(
    left_RK: npt.NDArray[np.bool_],
    rows_RK: IntArray,
    row_keys: KeyArray,
    passage_keys: KeyArray,
    rules: MiningRules,
) -> IntArray:
    """Places of the chosen candidates [R, N or K, whichever is less] in their order; those that are
    not left come last."""
    if rules.sampling == "random":
        first_RK = _draws(rows_RK, row_keys, passage_keys, rules.seed)
        first_RK = np.where(left_RK, first_RK, np.iinfo(_UINT64).max)
        order_RK = np.argsort(first_RK, axis=1, kind="stable")
        chosen_RN = np.sort(order_RK[:, : rules.negatives], axis=1)
        kept_RN = np.take_along_axis(left_RK, chosen_RN, axis=1)
        last_first = np.argsort(~kept_RN, axis=1, kind="stable")
        return np.take_along_axis(chosen_RN, last_first, axis=1)
    return np.argsort(~left_RK, axis=1, kind="stable")[:, : rules.negatives]


def _draws(
    rows_RK: IntArray, row_keys: KeyArray, passage_keys: KeyArray, seed: int
) -> npt.NDArray[np.uint64]:
    """A number for each row and candidate that follows from the seed and their keys alone."""
    of_rows_R = _mixed(key_words(row_keys)[0] + _mixed(np.array([seed], dtype=_UINT64)))
    of_passages = _mixed(key_words(passage_keys)[0])
    return _mixed(of_rows_R[:, None] ^ of_passages[np.maximum(rows_RK, 0)])


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): nearby words go far."""
    words = words + _UINT64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> _UINT64(30))) * _UINT64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> _UINT64(27))) * _UINT64(0x94D049BB133111EB)
    return words ^ (words >> _UINT64(31))
