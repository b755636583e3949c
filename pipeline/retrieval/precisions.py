"""Embeddings as an index may keep them, cut and quantised, measured beside the whole ones.

Queries and passages are treated alike. Ranges of int8 and uint8 are those of at most 8,192 texts to
search in, evenly spaced: numbers beyond them have the first or the last code. Memory: for
`rescore_multiplier`, the codes of all passages.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import IntArray
from ...stages.retrieval.metrics import pair_scores
from ...stages.retrieval.quantization import Quantizer, cut, needs_ranges, ranges_of
from ...stages.retrieval.search import BLOCK_PASSAGES, NONE, BestPassages, Pairs
from ..student_jobs import EvaluateJob

Array = npt.NDArray[Any]


def calibration_rows(count: int) -> IntArray:
    """The texts, of so many, that ranges are those of."""
    spaced = np.linspace(0, count - 1, min(count, BLOCK_PASSAGES)).round()
    return spaced.astype(np.int64)


def needs_calibration(job: EvaluateJob) -> bool:
    """Whether vectors of a sample of texts are needed before any others."""
    return any(map(needs_ranges, job.precision))


class Kept:
    """One way to keep vectors of `width` numbers. `name` is such as int8[384]."""

    def __init__(self, precision: Any, dim: int | None, width: int, sample: Array | None) -> None:
        self.dim = dim or width
        ranges = None
        if needs_ranges(precision):
            assert sample is not None
            ranges = ranges_of(cut(sample, dim))
        self._quantizer = Quantizer(precision, self.dim, ranges)
        self.name = f"{precision}[{self.dim}]"
        self.vector_bytes = self._quantizer.vector_bytes

    def codes(self, vectors_NH: Array) -> Array:
        """What is stored."""
        return self._quantizer.codes(cut(vectors_NH, self.dim))

    def compared(self, vectors_NH: Array) -> Array:
        """What an index compares."""
        return self._quantizer.compared(self.codes(vectors_NH))

    def numbers(self, codes_NB: Array) -> Array:
        """What codes stand for."""
        return self._quantizer.numbers(codes_NB)


def ways_to_keep(job: EvaluateJob, width: int, sample: Array | None) -> list[Kept]:
    """The precisions and cuts of a job, but for the whole embedding in float32. Raises JobError for
    a cut that is none."""
    for dim in job.truncate_dim:
        if dim >= width:
            raise JobError(f"truncate_dim {dim}: an embedding has {width} numbers; choose fewer")
    dims = [None, *sorted(job.truncate_dim, reverse=True)]
    precisions = dict.fromkeys(["float32", *job.precision])
    ways = [(precision, dim) for dim in dims for precision in precisions]
    return [Kept(*way, width, sample) for way in ways if way != ("float32", None)]


class KeptSearch:
    """A search among passages that are kept in one way; with `rescore`, so many times as many are
    found by their codes, and the best of them by whole queries."""

    def __init__(
        self,
        kept: Kept,
        queries_QH: Array,
        k: int,
        job: EvaluateJob,
        same_ids: Pairs,
        device: Any,
    ) -> None:
        self._kept, self._k = kept, k
        self._similarity = job.similarity
        self._whole_QD = cut(queries_QH, kept.dim)
        self._rescores = job.rescore_multiplier is not None and not kept.name.startswith("float32")
        found = k * (job.rescore_multiplier or 1) if self._rescores else k
        queries_QD = kept.compared(queries_QH)
        self._best = BestPassages(queries_QD, found, job.similarity, same_ids, device)
        self._codes: list[Array] = []

    @property
    def name(self) -> str:
        """Precision and width, and whether it rescores."""
        return f"{self._kept.name} rescored" if self._rescores else self._kept.name

    @property
    def vector_bytes(self) -> int:
        """Bytes of a passage."""
        return self._kept.vector_bytes

    def add(self, passages_PH: Array) -> None:
        """Compare the next passages with all queries."""
        self._best.add(self._kept.compared(passages_PH))
        if self._rescores:
            self._codes.append(self._kept.codes(passages_PH))

    def found(self) -> IntArray:
        """Rows of the best passages [Q, K]."""
        rows_QM = self._best.found().rows_QK
        if not self._rescores:
            return rows_QM
        codes_PB = np.concatenate(self._codes)
        best = np.full((len(rows_QM), self._k), NONE, dtype=np.int64)
        for query, rows_M in enumerate(rows_QM):
            rows = np.sort(rows_M[rows_M != NONE])
            numbers_MD = self._kept.numbers(codes_PB[rows])
            whole_MD = np.broadcast_to(self._whole_QD[query], numbers_MD.shape)
            scores_M = pair_scores(whole_MD, numbers_MD, self._similarity)
            order = np.argsort(-scores_M, kind="stable")[: self._k]
            best[query, : len(order)] = rows[order]
        return best


class PairScores:
    """Similarities of pairs whose vectors are kept in one way."""

    def __init__(self, kept: Kept, job: EvaluateJob) -> None:
        self.name, self.vector_bytes = kept.name, kept.vector_bytes
        self._kept, self._similarity = kept, job.similarity
        self._scores: list[npt.NDArray[np.float64]] = []

    def add(self, one_NH: Array, other_NH: Array) -> None:
        """Compare the next pairs."""
        one, other = (self._kept.compared(each) for each in (one_NH, other_NH))
        self._scores.append(pair_scores(one, other, self._similarity))

    def found(self) -> npt.NDArray[np.float64]:
        """The similarities of all pairs."""
        return np.concatenate(self._scores)


def by_precision(
    ways: Sequence[KeptSearch] | Sequence[PairScores],
    whole: Mapping[str, float],
    width: int,
    measure: Callable[[Any], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """The bytes of a vector that is kept in each way, its metrics, and how much these are above
    those of whole embeddings; `measure`: what was found -> metrics."""
    table: dict[str, dict[str, float]] = {}
    for way in ways:
        found = {name: value for name, value in measure(way.found()).items() if name in whole}
        gained = {f"{name}_difference": value - whole[name] for name, value in found.items()}
        table[way.name] = {"vector_bytes": way.vector_bytes, **found, **gained}
    own = {f"float32[{width}]": {"vector_bytes": 4 * width, **whole}}
    return own | table if table else {}
