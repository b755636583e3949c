"""What embeddings of validation texts are worth: pure functions of arrays.

Shapes: N examples, T different texts, C texts of an example, E numbers of an embedding, R targets
(embeddings of pictures by a teacher, say), P pairs of a text and its target.

    pairs with scores        spearman, pearson of the cosines
    queries with passages    ndcg@10, mrr@10, recall@1, recall@10: each query among all passages
    texts with pictures      the same: each text among the pictures of all

Where a text has a vector for each token, E stands for S tokens of E numbers, and the cosine for the
similarity of late interaction.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import IntArray
from ...corpus.labels import LabelValues, is_missing
from ...retrieval.late_interaction import BestByTokens, pairs_of_tokens
from ...retrieval.metrics import Judgements, depth_of, retrieval_metrics
from ...retrieval.search import Pairs, search
from ..label_metrics import correlations
from ..measures import cosines
from .groups import Places

Array = npt.NDArray[np.float32]

SCORE_METRICS = ("spearman", "pearson")
RETRIEVAL_METRICS = ("ndcg@10", "mrr@10", "recall@1", "recall@10")


def score_metrics(embeddings_TE: Array, places: Places, scores_N: LabelValues) -> dict[str, float]:
    """Correlations of the cosines of pairs of texts with their scores; pairs without one are left
    out. 0 where one side is the same for all."""
    given = ~is_missing(scores_N)
    sides = [embeddings_TE[texts] for texts in places[given].T]
    alike_N = cosines(*sides) if embeddings_TE.ndim == 2 else pairs_of_tokens(*sides)
    found = correlations(alike_N, scores_N[given])
    return {name: found[name] for name in SCORE_METRICS}


def ranking_metrics(
    embeddings_TE: Array, places: Places, words_T: npt.NDArray[np.int64]
) -> dict[str, float]:
    """How high each query's positives rank by cosine among all passages of these examples, but for
    one with its own words that is no positive. A query that comes in several rows has all their
    positives; of equal cosines, the earlier passage is first."""
    queries, query_of = np.unique(places[:, 0], return_inverse=True)
    passages = np.unique(places[:, 1:])
    passages = passages[passages >= 0]
    positives = np.searchsorted(passages, places[:, 1])
    judged = np.unique(np.stack([query_of.reshape(-1), positives], axis=1), axis=0)
    judgements = Judgements(
        judged[:, 0], judged[:, 1], np.ones(len(judged), np.int64), len(queries)
    )
    depth = min(depth_of(RETRIEVAL_METRICS), len(passages))
    own = np.flatnonzero(np.isin(words_T[queries], words_T[passages]))
    order = np.argsort(words_T[passages], kind="stable")
    at = np.searchsorted(words_T[passages], words_T[queries[own]], sorter=order)
    same = Pairs(own, order[at])
    judged_keys = judged[:, 0] * len(passages) + judged[:, 1]
    answers = np.isin(same.queries * len(passages) + same.passages, judged_keys)
    excluded = Pairs(same.queries[~answers], same.passages[~answers])
    if embeddings_TE.ndim == 2:
        found = search(embeddings_TE[queries], embeddings_TE[passages], depth, exclude=excluded)
    else:
        best = BestByTokens(embeddings_TE[queries], depth, excluded)
        best.add(embeddings_TE[passages])
        found = best.found()
    return retrieval_metrics(found.rows_QK, judgements, RETRIEVAL_METRICS)


class Targets(Protocol):
    """A teacher's features [B, *shape] by their numbers [B]."""

    @property
    def rows(self) -> Sized:
        """One for each feature."""

    def __call__(self, indices: IntArray, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class _Searched:
    """All of some targets, as vectors that are read by slices."""

    targets: Targets

    def __len__(self) -> int:
        return len(self.targets.rows)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        numbers = np.arange(len(self))[rows]
        return self.targets(numbers).reshape(len(numbers), -1)


def target_metrics(
    embeddings_TE: Array, targets: Targets, texts_P: IntArray, targets_P: IntArray
) -> dict[str, float]:
    """How high its own targets rank by cosine for each text, among all R of them. `texts_P`,
    `targets_P`: which text has which target, each pair once; a text may have several."""
    judgements = Judgements(texts_P, targets_P, np.ones_like(texts_P), len(embeddings_TE))
    searched = _Searched(targets)
    depth = min(depth_of(RETRIEVAL_METRICS), len(searched))
    found = search(embeddings_TE, searched, depth)
    return retrieval_metrics(found.rows_QK, judgements, RETRIEVAL_METRICS)
