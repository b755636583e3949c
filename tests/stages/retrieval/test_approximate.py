"""An inverted file of FAISS beside exact search."""

import numpy as np
import pytest
from armada.cache_schemas.errors import InputError
from armada.stages.retrieval.approximate import InvertedFile, recall_of
from armada.stages.retrieval.metrics import Similarity
from armada.stages.retrieval.search import NONE, Found, Pairs, search

faiss = pytest.importorskip("faiss", reason="the extra faiss is not installed")


def vectors(count: int, seed: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclid"])
def test_with_one_cell_it_is_exact(similarity: Similarity) -> None:
    queries, passages = vectors(9, 0), vectors(70, 1)
    exclude = Pairs(np.array([0, 0, 4]), np.array([3, 7, 69]))
    exact = search(queries, passages, 12, similarity, exclude)
    found = InvertedFile(passages, similarity).search(queries, 12, exclude)
    np.testing.assert_array_equal(found.rows_QK, exact.rows_QK)
    np.testing.assert_allclose(found.scores_QK, exact.scores_QK, rtol=1e-4, atol=1e-5)
    assert recall_of(found, exact) == 1.0


def test_with_many_cells_most_are_found_and_always_the_same() -> None:
    queries, passages = vectors(40, 2), vectors(4000, 3)
    exclude = Pairs(np.arange(40), search(queries, passages, 1).rows_QK[:, 0])
    first = InvertedFile(passages, seed=5).search(queries, 10, exclude)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        again = InvertedFile(passages, seed=5).search(queries, 10, exclude)
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(first.rows_QK, again.rows_QK)
    exact = search(queries, passages, 10, exclude=exclude)
    recall = recall_of(first, exact)
    shared = [len({*a} & {*b}) / 10 for a, b in zip(first.rows_QK, exact.rows_QK, strict=True)]
    assert recall == pytest.approx(np.mean(shared))
    assert 0.5 < recall < 1
    assert not (first.rows_QK == exclude.passages[:, None]).any()
    assert (np.diff(first.scores_QK, axis=1) <= 0).all()


def test_fewer_passages_than_results_and_what_is_refused() -> None:
    found = InvertedFile(vectors(3, 4)).search(
        vectors(2, 5), 5, Pairs(np.array([1]), np.array([0]))
    )
    assert ((found.rows_QK == NONE).sum(axis=1) == [2, 3]).all()
    assert np.isneginf(found.scores_QK[found.rows_QK == NONE]).all()
    nothing = Found(np.full((1, 2), NONE), np.full((1, 2), -np.inf, np.float32))
    assert np.isnan(recall_of(nothing, nothing))
    with pytest.raises(InputError, match="k 0: search for at least 1"):
        InvertedFile(vectors(3, 4)).search(vectors(2, 5), 0)
    with pytest.raises(InputError, match="some are not finite"):
        InvertedFile(np.full((3, 2), np.nan, np.float32))
