"""Measures of rankings and of pairs: pure functions, arrays in, numbers out; no torch.

A ranking is rows of passages [Q, K], the best first (`search.py`), and a judgement the grade of a
passage for a query: above 0 it is relevant, and whatever is not judged is not. All measures are
those of trec_eval, which pytrec_eval and BEIR use:

    ndcg@k        Σ_{i≤k} g_i / log2(i + 1), divided by the same sum over the best order that there
                  is: grades above 0 of all judged passages, found or not
    recall@k      relevant passages among the first k, divided by all relevant ones
    precision@k   relevant passages among the first k, divided by k
    success@k     1 if a relevant passage is among the first k, else 0; what papers about CLIP call
                  R@k, also of a picture with several captions
    mrr@k         1 / rank of the first relevant passage; 0 if none is among the first k
    map@k         Σ of precision@i over ranks i ≤ k with a relevant passage, divided by the number
                  of all relevant ones

Means are over queries with a relevant passage; others are counted. A query for which nothing was
found counts as 0.

Sources: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002
(linear gains, as in trec_eval); Thakur et al., BEIR, arXiv 2104.08663.

Shapes: Q queries, K results of a query, J judgements, N pairs of texts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import InputError
from ...cache_schemas.keys import IntArray

Similarity = Literal["cosine", "dot", "euclid"]
"""cosine: q·p / (‖q‖ ‖p‖), 0 where one of them is zero; dot: q·p; euclid: -‖q - p‖²."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

USUAL_METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "map@100")
"""What is measured where nothing else is named."""

_NAME = re.compile(r"(ndcg|recall|precision|success|mrr|map)@([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Judgements:
    """J grades of (query, passage) pairs by row, each pair once, of Q queries."""

    queries_J: IntArray
    passages_J: IntArray
    grades_J: IntArray
    queries: int

    def relevant_Q(self) -> IntArray:
        """The number of relevant passages of each query."""
        relevant = self.queries_J[self.grades_J > 0]
        return np.bincount(relevant, minlength=self.queries).astype(np.int64)

    def grades_of(self, rows_QK: IntArray) -> IntArray:
        """The grade of each passage of a ranking [Q, K]; 0 where it is not judged, or -1 stands for
        none."""
        span = 1 + max(self.passages_J.max(initial=0), rows_QK.max(initial=0))
        keys_J = self.queries_J * span + self.passages_J
        order = np.argsort(keys_J)
        wanted_QK = np.arange(len(rows_QK))[:, None] * span + rows_QK
        at_QK = np.searchsorted(keys_J, wanted_QK, sorter=order)
        at_QK = order[np.minimum(at_QK, len(order) - 1)] if len(order) else np.zeros_like(at_QK)
        grades = np.zeros(rows_QK.shape, dtype=np.int64)
        if len(order):
            known = (keys_J[at_QK] == wanted_QK) & (rows_QK >= 0)
            grades[known] = self.grades_J[at_QK][known]
        return grades

    def best_grades(self, k: int) -> IntArray:
        """The k highest grades above 0 of each query [Q, k], the highest first, then 0."""
        order = np.lexsort((-self.grades_J, self.queries_J))
        queries, grades = self.queries_J[order], self.grades_J[order]
        place = np.arange(len(queries)) - np.searchsorted(queries, queries)
        taken = (place < k) & (grades > 0)
        best = np.zeros((self.queries, k), dtype=np.int64)
        best[queries[taken], place[taken]] = grades[taken]
        return best


def depth_of(names: Sequence[str]) -> int:
    """The number of results that metrics need, the largest k. Raises InputError for a name that is
    none."""
    return max(_parsed(name)[1] for name in names)


def query_metrics(
    rows_QK: IntArray, judged: Judgements, names: Sequence[str] = USUAL_METRICS
) -> dict[str, Floats]:
    """Metrics of each query [Q]; NaN for one without a relevant passage."""
    grades_QK, relevant_Q = judged.grades_of(rows_QK), judged.relevant_Q()
    found = {}
    for name in names:
        kind, k = _parsed(name)
        if kind == "ndcg":
            values_Q = ndcg(grades_QK[:, :k], judged.best_grades(k))
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                values_Q = _OF_FLAGS[kind](grades_QK[:, :k] > 0, relevant_Q, k)
        found[name] = np.where(relevant_Q > 0, values_Q, np.nan)
    return found


def retrieval_metrics(
    rows_QK: IntArray, judged: Judgements, names: Sequence[str] = USUAL_METRICS
) -> dict[str, float]:
    """The means over queries with a relevant passage. Raises InputError if no query has one."""
    counted = judged.relevant_Q() > 0
    if not counted.any():
        raise InputError("judgements: no query has a relevant passage; nothing to measure")
    each = query_metrics(rows_QK, judged, names)
    return {name: float(values_Q[counted].mean()) for name, values_Q in each.items()}


def ndcg(grades_QK: IntArray, best_QK: IntArray) -> Floats:
    """nDCG [Q] of the grades of rankings and those of the best order; 0 where no grade is above
    0."""
    gained_Q, most_Q = _discounted(grades_QK), _discounted(best_QK)
    return np.divide(gained_Q, most_Q, out=np.zeros_like(most_Q), where=most_Q > 0)


def _discounted(grades_QK: IntArray) -> Floats:
    discounts_K = np.log2(np.arange(grades_QK.shape[1]) + 2.0)
    found_Q: Floats = (np.maximum(grades_QK, 0) / discounts_K).sum(axis=1)
    return found_Q


def _recall(holds_QK: Flags, relevant_Q: IntArray, k: int) -> Floats:
    found_Q: Floats = holds_QK.sum(axis=1) / relevant_Q
    return found_Q


def _precision(holds_QK: Flags, relevant_Q: IntArray, k: int) -> Floats:
    found_Q: Floats = holds_QK.sum(axis=1) / k
    return found_Q


def _success(holds_QK: Flags, relevant_Q: IntArray, k: int) -> Floats:
    found_Q: Floats = np.asarray(holds_QK.any(axis=1), dtype=np.float64)
    return found_Q


def _reciprocal_rank(holds_QK: Flags, relevant_Q: IntArray, k: int) -> Floats:
    if not holds_QK.shape[1]:
        return np.zeros(len(holds_QK))
    return np.where(holds_QK.any(axis=1), 1.0 / (1 + holds_QK.argmax(axis=1)), 0.0)


def _mean_precision(holds_QK: Flags, relevant_Q: IntArray, k: int) -> Floats:
    ranks_K = np.arange(1, holds_QK.shape[1] + 1)
    found_Q: Floats = (holds_QK.cumsum(axis=1) / ranks_K * holds_QK).sum(axis=1) / relevant_Q
    return found_Q


_OF_FLAGS: dict[str, Callable[[Flags, IntArray, int], Floats]] = {
    "recall": _recall,
    "precision": _precision,
    "success": _success,
    "mrr": _reciprocal_rank,
    "map": _mean_precision,
}


def _parsed(name: str) -> tuple[str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"metric {name!r}: is not one of ndcg@k, recall@k, precision@k, success@k, mrr@k, "
            "map@k, such as ndcg@10"
        )
    return match[1], int(match[2])


def trec_order(scores_K: npt.NDArray[Any], names: Sequence[str]) -> IntArray:
    """The order in which trec_eval ranks results of a query: the highest score first, as float32,
    and of equal scores the name that comes last (compared byte by byte).

    `search` over passages that are sorted by name, the last name first, gives this order as it
    is."""
    last_first = sorted(range(len(names)), key=lambda at: names[at].encode(), reverse=True)
    by_name = np.array(last_first, dtype=np.int64)
    scores = np.asarray(scores_K, dtype=np.float32)
    return by_name[np.argsort(-scores[by_name], kind="stable")]


def pair_scores(
    one_NH: npt.NDArray[Any], other_NH: npt.NDArray[Any], similarity: Similarity = "cosine"
) -> Floats:
    """The similarity [N] of row n of one array and row n of the other, in float64."""
    one_NH, other_NH = one_NH.astype(np.float64), other_NH.astype(np.float64)
    if similarity == "euclid":
        distances_N: Floats = -np.square(one_NH - other_NH).sum(axis=1)
        return distances_N
    dots_N: Floats = (one_NH * other_NH).sum(axis=1)
    if similarity == "dot":
        return dots_N
    lengths_N = np.linalg.norm(one_NH, axis=1) * np.linalg.norm(other_NH, axis=1)
    cosines_N: Floats = np.zeros_like(dots_N)
    np.divide(dots_N, lengths_N, out=cosines_N, where=lengths_N > 0)
    return cosines_N


def average_precision(scores_N: npt.NDArray[Any], holds_N: Flags) -> float:
    """Σ over thresholds n of (recall_n - recall_{n-1})·precision_n, equal scores together, 0 to 1;
    NaN if none holds. As in scikit-learn."""
    if not holds_N.any():
        return float("nan")
    right, ends = _right_by_threshold(scores_N, holds_N)
    gains = np.diff(right / right[-1], prepend=0)
    return float((gains * right / (ends + 1)).sum())


def best_f1(scores_N: npt.NDArray[Any], holds_N: Flags) -> tuple[float, float]:
    """The highest F1 of any threshold, 2·tp / (2·tp + fp + fn), and that threshold: pairs with at
    least this score are predicted to hold. The threshold is halfway to the next lower score; of
    equal F1 the highest one. NaN twice if none holds."""
    if not holds_N.any():
        return float("nan"), float("nan")
    right, ends = _right_by_threshold(scores_N, holds_N)
    f1 = 2 * right / (ends + 1 + right[-1])
    best = int(f1.argmax())
    descending = -np.sort(-np.asarray(scores_N, dtype=np.float64))
    here, below = descending[ends[best]], descending[ends[best] + 1 : ends[best] + 2]
    return float(f1[best]), float((here + below[0]) / 2 if len(below) else here)


def _right_by_threshold(scores_N: npt.NDArray[Any], holds_N: Flags) -> tuple[Floats, IntArray]:
    """For each different score, from the highest: how many of those at least as high hold, and the
    index of the last of them in descending order."""
    order = np.argsort(-scores_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores_N[order])), len(scores_N) - 1)
    return np.cumsum(holds_N[order], dtype=np.float64)[ends], ends.astype(np.int64)
