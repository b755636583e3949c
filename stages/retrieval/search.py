"""Exact search: the k passages nearest to each query, among any number of passages.

In: queries in memory, passages in memory or block by block from a reader. Out: rows and scores. A
block of scores is one matrix product; of it only groups of passages are looked at whose largest
score is above a query's k-th best so far, which after the first blocks are few: the whole costs
little more than its matrix products, and less than a top-k of each block.

Memory: the queries as float32, 12 bytes for each query and result, a block of 8,192 passages, and
at most 256 MiB, with 0.2 MiB more for each of the k results (measured: 160 MiB for k = 10, 200 more
for 1,000, whatever the number of passages).

Shapes: Q queries, P passages, H numbers of an embedding, K results of a query; B queries and C
passages of a block, N candidates.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache_schemas.errors import InputError
from ...cache_schemas.keys import IntArray
from .metrics import Similarity

BLOCK_PASSAGES = 8192
"""Passages that are read and scored at a time."""

NONE = -1
"""Row of a result that is not there: there are fewer than K passages to find."""

_BLOCK_QUERIES = 1024
_GROUP = 32
_DENSE = 2
"""Blocks of which half of the groups have something to keep are left to topk."""
_FEW = 256
"""Candidates that a query may have in any block."""
_SORTED_ROWS = 64
"""Rows of a block that are sorted at a time: 12 bytes for each of their scores."""

Array = npt.NDArray[Any]


class Vectors(Protocol):
    """Embeddings [P, H] read by slices: an array, a mapped file, a cached feature."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a query and a passage, by row."""

    queries: IntArray
    passages: IntArray


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of passages [Q, K], the best first, and their scores; NONE and -inf where there are
    fewer. Of equal scores the lower row comes first."""

    rows_QK: IntArray
    scores_QK: npt.NDArray[np.float32]


def search(
    queries_QH: Array,
    passages: Vectors,
    k: int,
    similarity: Similarity = "cosine",
    exclude: Pairs | None = None,
    device: str | torch.device = "cpu",
) -> Found:
    """The k best passages of each query, but for the pairs of `exclude`.

    Raises InputError for k below 1, another width of the passages, and vectors that are not
    finite."""
    best = BestPassages(queries_QH, k, similarity, exclude, device)
    for start in range(0, len(passages), BLOCK_PASSAGES):
        best.add(passages[start : start + BLOCK_PASSAGES])
    return best.found()


class BestPassages:
    """The best passages of those that were added so far: `search` over passages that are made one
    block after another. Rows count the passages in the order in which they were added."""

    def __init__(
        self,
        queries_QH: Array,
        k: int,
        similarity: Similarity = "cosine",
        exclude: Pairs | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if k < 1:
            raise InputError(f"k {k}: search for at least 1 passage")
        self._similarity = similarity
        self._queries_QH = self._comparable(_as_float32(queries_QH, "query", 0).to(device))
        size = (len(queries_QH), k)
        self._scores_QK = torch.full(size, -torch.inf, device=device)
        self._rows_QK = torch.full(size, NONE, dtype=torch.int64, device=device)
        self._count = 0
        exclude = exclude or Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
        order = np.lexsort((exclude.queries, exclude.passages))
        self._exclude = Pairs(exclude.queries[order], exclude.passages[order])

    def add(self, passages_PH: Array) -> None:
        """Compare the next passages with all queries."""
        if passages_PH.ndim != 2 or passages_PH.shape[1] != self._queries_QH.shape[1]:
            raise InputError(
                f"passages {list(passages_PH.shape)}: queries have {self._queries_QH.shape[1]} "
                "numbers; compare embeddings of one model"
            )
        for start in range(0, len(passages_PH), BLOCK_PASSAGES):
            self._add_block(passages_PH[start : start + BLOCK_PASSAGES])

    def found(self) -> Found:
        """The best so far."""
        scores_QK = self._scores_QK
        return Found(self._rows_QK.cpu().numpy(), scores_QK.cpu().numpy())

    def _comparable(self, vectors_NH: Tensor) -> Tensor:
        if self._similarity != "cosine":
            return vectors_NH
        # Zero stays zero; any other length, however small or large, becomes 1.
        largest_N1 = vectors_NH.abs().amax(dim=1, keepdim=True)
        scaled_NH = torch.where(largest_N1 > 0, vectors_NH / largest_N1, 0.0)
        return scaled_NH.div_(scaled_NH.norm(dim=1, keepdim=True).clamp_(min=1))

    def _scores(self, queries: slice, passages: Tensor) -> Tensor:
        """The similarities [B, C] of some queries with a block of passages."""
        queries_BH, block_CH = self._queries_QH[queries], passages
        scores_BC = queries_BH @ block_CH.T
        if self._similarity == "euclid":
            squares_C = block_CH.square().sum(dim=1)
            scores_BC.mul_(2).sub_(squares_C).sub_(queries_BH.square().sum(dim=1)[:, None])
            scores_BC.clamp_(max=0)
        return scores_BC

    def _add_block(self, passages_CH: Array) -> None:
        first, device = self._count, self._queries_QH.device
        block_CH = self._comparable(_as_float32(passages_CH, "passage", first).to(device))
        excluded = self._excluded(first, first + len(block_CH))
        for start in range(0, len(self._queries_QH), _BLOCK_QUERIES):
            rows = slice(start, min(start + _BLOCK_QUERIES, len(self._queries_QH)))
            scores_BC = self._scores(rows, block_CH)
            begin, end = np.searchsorted(excluded.queries, [rows.start, rows.stop])
            if begin < end:
                at = torch.from_numpy(excluded.queries[begin:end] - start).to(device)
                passages = torch.from_numpy(excluded.passages[begin:end] - first).to(device)
                scores_BC[at, passages] = -torch.inf
            self._keep(rows, scores_BC, first)
        self._count += len(block_CH)

    def _excluded(self, first: int, end: int) -> Pairs:
        """Pairs with passages first to end - 1, by query."""
        at = slice(*np.searchsorted(self._exclude.passages, [first, end]))
        order = np.argsort(self._exclude.queries[at], kind="stable")
        return Pairs(self._exclude.queries[at][order], self._exclude.passages[at][order])

    def _keep(self, queries: slice, scores_BC: Tensor, first: int) -> None:
        """Merge a block of scores into the best of its queries."""
        best_BK, k = self._scores_QK[queries], self._scores_QK.shape[1]
        owner_N, passage_N = _above(scores_BC, best_BK[:, -1], k)
        if not len(owner_N):
            return
        owners_A, counts_A = torch.unique_consecutive(owner_N, return_counts=True)
        starts_A = counts_A.cumsum(0) - counts_A
        row_N = torch.arange(len(owners_A), device=owner_N.device).repeat_interleave(counts_A)
        place_N = torch.arange(len(owner_N), device=owner_N.device) - starts_A[row_N] + k
        size = (len(owners_A), k + int(counts_A.max()))
        # Earlier rows stand first, and a stable sort leaves equal scores in that order.
        scores_AM = torch.full(size, -torch.inf, device=owner_N.device)
        rows_AM = torch.full(size, NONE, dtype=torch.int64, device=owner_N.device)
        scores_AM[:, :k], rows_AM[:, :k] = best_BK[owners_A], self._rows_QK[queries][owners_A]
        scores_AM[row_N, place_N] = scores_BC[owner_N, passage_N]
        rows_AM[row_N, place_N] = passage_N + first
        sorted_AM, order_AM = scores_AM.sort(dim=1, descending=True, stable=True)
        self._scores_QK[queries.start + owners_A] = sorted_AM[:, :k]
        self._rows_QK[queries.start + owners_A] = rows_AM.gather(1, order_AM[:, :k])


def _above(scores_BC: Tensor, least_B: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Query and passage of all scores above `least_B` that may be among the k best of the block, in
    the order of queries, then of passages."""
    size = _GROUP if scores_BC.shape[1] % _GROUP == 0 else 1
    groups_BGS = scores_BC.view(len(scores_BC), -1, size)
    above_BG = groups_BGS.amax(dim=2) > least_B[:, None]
    if int(above_BG.count_nonzero()) * _DENSE <= above_BG.numel():
        owner_N, group_N = above_BG.nonzero(as_tuple=True)
        higher_NS = groups_BGS[owner_N, group_N] > least_B[owner_N, None]
        at_N, within_N = higher_NS.nonzero(as_tuple=True)
        owner_N, group_N = owner_N[at_N], group_N[at_N]
        if int(torch.bincount(owner_N, minlength=1).max()) <= max(2 * k, _FEW):
            return owner_N, group_N * size + within_N
    best_BK = _best_of_block(scores_BC, k)
    owner_N, place_N = (scores_BC.gather(1, best_BK) > least_B[:, None]).nonzero(as_tuple=True)
    return owner_N, best_BK[owner_N, place_N]


def _best_of_block(scores_BC: Tensor, k: int) -> Tensor:
    """The k best passages of each query in a block [B, k], or all, in their order."""
    if k >= scores_BC.shape[1]:
        return torch.arange(scores_BC.shape[1], device=scores_BC.device).expand_as(scores_BC)
    values_BL, passages_BL = scores_BC.topk(k + 1, dim=1)
    best_BK = passages_BL[:, :k].contiguous()
    # Which of the equal ones topk takes is not said.
    tied = (values_BL[:, k] == values_BL[:, k - 1]).nonzero()[:, 0]
    for start in range(0, len(tied), _SORTED_ROWS):
        rows = tied[start : start + _SORTED_ROWS]
        order_RC = scores_BC[rows].sort(dim=1, descending=True, stable=True).indices
        best_BK[rows] = order_RC[:, :k]
    return best_BK.sort(dim=1).values


def _as_float32(vectors_NH: Array, what: str, first: int) -> Tensor:
    """The vectors as a tensor; raises InputError for numbers that are not finite."""
    tensor_NH = torch.from_numpy(np.ascontiguousarray(vectors_NH, dtype=np.float32))
    if not bool(tensor_NH.sum().isfinite()):  # which is quick, and may overflow
        wrong = (~tensor_NH.isfinite().all(dim=1)).nonzero()[:, 0]
        if len(wrong):
            raise InputError(
                f"{what} {first + int(wrong[0])}: its embedding is not finite; compute it again"
            )
    return tensor_NH


def neighbour_overlap(one_NH: Array, other_NG: Array, k: int = 10, most: int = 1024) -> float:
    """The share of a text's k nearest neighbours in one space that are its neighbours in the other,
    0 to 1: the mean over at most `most` texts, evenly spaced, of |A ∩ B| / k.

    A and B: the k texts, of all N but the text itself, of the largest cosine in each space; k is at
    most N - 1. Widths may differ. NaN for fewer than 2 texts."""
    count = len(one_NH)
    k = min(k, count - 1)
    if k < 1:
        return float("nan")
    texts = np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)
    itself = Pairs(np.arange(len(texts)), texts)
    rows = [search(each[texts], each, k, exclude=itself).rows_QK for each in (one_NH, other_NG)]
    shared = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(*rows, strict=True)]
    return float(np.mean(shared)) / k
