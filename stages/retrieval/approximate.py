"""Approximate search: an inverted file of FAISS, which compares a query with some passages only.

Passages are divided among about 4 √P cells, by the nearest of as many centres (k-means of a sample,
by a seed), and a query is compared with those of a sixteenth of the cells, at least 8: for many
queries that costs about a sixteenth of exact search, and finds fewer of the nearest. The same
passages and seed give the same results, whatever the number of threads. Memory: all passages as
float32, and their numbers. Source: Sivic and Zisserman, "Video Google", ICCV 2003; Johnson, Douze
and Jégou, arXiv 1702.08734. Shapes: as in `search.py`.
"""

import math
from typing import Any

import numpy as np

from ...cache_schemas.errors import InputError
from .metrics import Similarity
from .search import BLOCK_PASSAGES, NONE, Array, Found, Pairs, Vectors

_TRAINING_ROWS = 64
"""Passages of the sample, for each cell."""
_ROWS_OF_CELL = 39
_SHARE, _LEAST = 16, 8


class InvertedFile:
    """Passages to search in, on the CPU."""

    def __init__(self, passages: Vectors, similarity: Similarity = "cosine", seed: int = 0) -> None:
        """Raises InputError for vectors that are not finite."""
        import faiss

        self._similarity = similarity
        count, width = len(passages), passages[0:1].shape[1]
        cells = max(1, min(round(4 * math.sqrt(count)), count // _ROWS_OF_CELL))
        metric = faiss.METRIC_L2 if similarity == "euclid" else faiss.METRIC_INNER_PRODUCT
        flat = faiss.IndexFlat(width, metric)
        self._index: Any = faiss.IndexIVFFlat(flat, width, cells, metric)
        self._flat = flat  # which the index does not keep alive
        self._index.cp.seed = seed % 2**31
        self._index.cp.min_points_per_centroid = 1
        self._index.nprobe = min(cells, max(_LEAST, cells // _SHARE))
        self._index.train(self._sample(passages, min(count, cells * _TRAINING_ROWS)))
        for start in range(0, count, BLOCK_PASSAGES):
            self._index.add(self._comparable(passages[start : start + BLOCK_PASSAGES]))

    def search(self, queries_QH: Array, k: int, exclude: Pairs | None = None) -> Found:
        """At most k passages near each query, but for the pairs of `exclude`, the best first; NONE
        where the cells of a query hold fewer. Raises InputError for k below 1."""
        if k < 1:
            raise InputError(f"k {k}: search for at least 1 passage")
        exclude = exclude or Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
        counts_Q = np.bincount(exclude.queries, minlength=len(queries_QH))
        wanted = min(k + int(counts_Q.max(initial=0)), self._index.ntotal)
        scores_QM, rows_QM = self._index.search(self._comparable(queries_QH), wanted)
        if self._similarity == "euclid":
            scores_QM = -scores_QM
        left_out = np.sort(exclude.queries * self._index.ntotal + exclude.passages)
        pairs_QM = np.arange(len(rows_QM))[:, None] * self._index.ntotal + rows_QM
        gone_QM = (rows_QM < 0) | np.isin(pairs_QM, left_out)
        scores_QM = np.where(gone_QM, -np.inf, scores_QM)
        rows_QM = np.where(gone_QM, NONE, rows_QM)
        order_QM = np.lexsort((rows_QM, -scores_QM), axis=1)[:, :k]
        found = Found(
            np.full((len(rows_QM), k), NONE, dtype=np.int64),
            np.full((len(rows_QM), k), -np.inf, dtype=np.float32),
        )
        width = order_QM.shape[1]
        found.rows_QK[:, :width] = np.take_along_axis(rows_QM, order_QM, axis=1)
        found.scores_QK[:, :width] = np.take_along_axis(scores_QM, order_QM, axis=1)
        return found

    def _sample(self, passages: Vectors, count: int) -> Array:
        """So many passages of all blocks, evenly spaced."""
        rows = np.linspace(0, len(passages) - 1, count).round().astype(np.int64)
        parts = []
        for start in range(0, len(passages), BLOCK_PASSAGES):
            own = rows[(rows >= start) & (rows < start + BLOCK_PASSAGES)] - start
            parts.append(self._comparable(passages[start : start + BLOCK_PASSAGES][own]))
        return np.concatenate(parts)

    def _comparable(self, vectors_NH: Array) -> Array:
        vectors_NH = np.ascontiguousarray(vectors_NH, dtype=np.float32)
        if not np.isfinite(vectors_NH).all():
            raise InputError("embeddings: some are not finite; compute them again")
        if self._similarity != "cosine":
            return vectors_NH
        lengths_N1 = np.linalg.norm(vectors_NH.astype(np.float64), axis=1, keepdims=True)
        scaled_NH = np.divide(
            vectors_NH, lengths_N1, out=np.zeros(vectors_NH.shape), where=lengths_N1 > 0
        )
        found_NH: Array = scaled_NH.astype(np.float32)
        return found_NH


def recall_of(found: Found, exact: Found) -> float:
    """The share of exact search's results that were found, 0 to 1; NaN if it has none."""
    shared = sum(
        len(np.intersect1d(one[one != NONE], other[other != NONE]))
        for one, other in zip(found.rows_QK, exact.rows_QK, strict=True)
    )
    there = int((exact.rows_QK != NONE).sum())
    return shared / there if there else float("nan")
