"""Late interaction: similarities of texts that have a vector for each token, and search by them.

    maxsim(q, p) = mean over tokens i of q of max over tokens j of p of cos(q_i, p_j), -1 to 1

The mean and not the sum, so that queries of any length have similarities like cosines; a query's
passages rank alike by both. Vectors of zeros are no tokens: texts of several lengths stand in one
array. Shapes: B queries of S tokens, M passages of T tokens, N candidates of each query or texts, E
numbers.

Source: ColBERT, Khattab and Zaharia, arXiv 2004.12832, equation 3.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...cache_schemas.errors import InputError
from .search import BestPassages, Pairs

Array = npt.NDArray[Any]

BLOCK_TEXTS = 512
"""Passages that are read and scored at a time."""

_MOST = 2**24
"""Similarities of tokens that are held at a time, unless a single pair of texts has more."""

_NOTHING = -2.0
"""Below any cosine."""


def maxsim(query_BSE: Tensor, passage_MTE: Tensor) -> Tensor:
    """The similarity of each query with each passage [B, M].

    Edges: 0 for a query without tokens, and below -1 for any other with a passage without."""
    query_BSE, there_BS1 = _unit(_trimmed(query_BSE))
    passage_MTE, there_MT1 = _unit(_trimmed(passage_MTE))
    absent_MT = ~there_MT1.squeeze(-1)
    of_pair = query_BSE.shape[1] * passage_MTE.shape[1]
    columns = max(1, min(len(passage_MTE), _MOST // of_pair))
    rows = max(1, _MOST // (of_pair * columns))
    found = [
        torch.cat(
            [
                _best_of_all(queries, passages, absent)
                for passages, absent in zip(
                    _parts(passage_MTE, columns), _parts(absent_MT, columns), strict=True
                )
            ],
            dim=-1,
        )
        for queries in _parts(query_BSE, rows)
    ]
    return _mean(torch.cat(found), there_BS1)


def _best_of_all(query_RSE: Tensor, passage_MTE: Tensor, absent_MT: Tensor) -> Tensor:
    """The best token of each passage for each of a query's [R, S, M]."""
    cosine = _products(query_RSE.flatten(0, 1), passage_MTE.flatten(0, 1))
    return _best(cosine.view(*query_RSE.shape[:2], *absent_MT.shape), absent_MT)


def maxsim_of_pairs(query_BSE: Tensor, candidates_BNTE: Tensor) -> Tensor:
    """The similarity of each query with candidates of its own [B, N]; edges as in `maxsim`."""
    query_BSE, candidates_BNTE = _trimmed(query_BSE), _trimmed(candidates_BNTE)
    _, candidates, tokens, _ = candidates_BNTE.shape
    rows = max(1, _MOST // max(1, query_BSE.shape[1] * candidates * tokens))
    parts = zip(_parts(query_BSE, rows), _parts(candidates_BNTE, rows), strict=True)
    return torch.cat([_of_own(*part) for part in parts])


def _of_own(query_BSE: Tensor, candidates_BNTE: Tensor) -> Tensor:
    query_BSE, there_BS1 = _unit(query_BSE)
    candidates_BNTE, there_BNT1 = _unit(candidates_BNTE)
    cosine_BNST = _products(query_BSE.unsqueeze(1), candidates_BNTE)
    return _mean(_best(cosine_BNST, ~there_BNT1.mT).mT, there_BS1)


def _trimmed(vectors: Tensor) -> Tensor:
    """Without the last columns, where no text has a token: queries are read beside passages, and
    have fewer. Not on a GPU, which would have to be waited for."""
    if vectors.device.type != "cpu" or not vectors.numel():
        return vectors
    used = vectors.detach().any(dim=-1).flatten(0, -2).any(dim=0).nonzero()
    return vectors[..., : int(used[-1]) + 1 if len(used) else 1, :]


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of length 1, and which [..., 1] are there."""
    return F.normalize(vectors, dim=-1), vectors.detach().any(dim=-1, keepdim=True)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """x·yᵀ over the last two axes; autocast would round cosines close to 1."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.mT


def _best(cosine: Tensor, absent: Tensor) -> Tensor:
    """The largest along the last axis, of what is there; of a graph, it keeps which ones alone."""
    return cosine.masked_fill(absent, _NOTHING).max(dim=-1).values


def _mean(best_BSM: Tensor, there_BS1: Tensor) -> Tensor:
    """The mean over a query's tokens [B, M]."""
    sums_BM = best_BSM.masked_fill(~there_BS1, 0.0).sum(dim=1)
    return sums_BM / there_BS1.sum(dim=1).clamp(min=1)


def pairs_of_tokens(one_NSE: Array, other_NTE: Array) -> npt.NDArray[np.float64]:
    """The similarity [N] of row n of one array and row n of the other."""
    one, other = (torch.from_numpy(np.ascontiguousarray(each)) for each in (one_NSE, other_NTE))
    return maxsim_of_pairs(one, other.unsqueeze(1))[:, 0].double().numpy()


def _parts(texts: Tensor, rows: int) -> list[Tensor]:
    """Texts in parts of so many; one part of none."""
    return [texts[start : start + rows] for start in range(0, max(1, len(texts)), rows)]


class BestByTokens(BestPassages):
    """As `BestPassages`, of texts with a vector for each token: queries [Q, S, E], blocks of
    passages [P, T, E]."""

    def __init__(
        self,
        queries_QSE: Array,
        k: int,
        exclude: Pairs | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(queries_QSE.reshape(len(queries_QSE), -1), k, "dot", exclude, device)
        self._queries_QSE = self._queries_QH.reshape(queries_QSE.shape)

    def add(self, passages_PTE: Array) -> None:
        """Compare the next passages with all queries."""
        if passages_PTE.ndim != 3 or passages_PTE.shape[2] != self._queries_QSE.shape[2]:
            raise InputError(
                f"passages {list(passages_PTE.shape)}: queries have vectors of "
                f"{self._queries_QSE.shape[2]} numbers for each token; compare those of one model"
            )
        for start in range(0, len(passages_PTE), BLOCK_TEXTS):
            self._add_block(passages_PTE[start : start + BLOCK_TEXTS])

    def _scores(self, queries: slice, passages: Tensor) -> Tensor:
        return maxsim(self._queries_QSE[queries], passages)
