"""Exact search by blocks, against all scores at once in float64."""

import numpy as np
import pytest
from armada.cache_schemas.errors import InputError
from armada.stages.retrieval import search as module
from armada.stages.retrieval.metrics import Similarity
from armada.stages.retrieval.search import (
    NONE,
    BestPassages,
    Pairs,
    neighbour_overlap,
    search,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_PASSAGES", 128)
    monkeypatch.setattr(module, "_BLOCK_QUERIES", 7)


def vectors(count: int, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def every_score(queries: np.ndarray, passages: np.ndarray, similarity: Similarity) -> np.ndarray:
    queries, passages = queries.astype(np.float64), passages.astype(np.float64)
    if similarity == "euclid":
        return -np.square(queries[:, None] - passages).sum(axis=2)
    if similarity == "cosine":
        queries, passages = (
            each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-300)
            for each in (queries, passages)
        )
    return queries @ passages.T


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize(("count", "k"), [(700, 5), (700, 100), (384, 10), (129, 128), (64, 3)])
def test_the_same_as_all_scores_sorted(similarity: Similarity, count: int, k: int) -> None:
    queries, passages = vectors(20, 0), vectors(count, 1)
    scores = every_score(queries, passages, similarity)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = search(queries, passages, k, similarity)
    np.testing.assert_array_equal(found.rows_QK, wanted)
    expected = np.take_along_axis(scores, wanted, axis=1)
    np.testing.assert_allclose(found.scores_QK, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("k", [1, 8, 40])
def test_of_equal_scores_the_lower_row_comes_first(k: int, ascending: bool) -> None:
    """Whole numbers have exact products, of which many are equal; sorted ones fill every block."""
    drawn = np.random.default_rng(2)
    queries = drawn.integers(-1, 2, (15, 4)).astype(np.float32)
    passages = drawn.integers(-1, 2, (900, 4)).astype(np.float32)
    if ascending:
        passages = passages[np.argsort(passages @ queries[0], kind="stable")]
    wanted = np.argsort(-(queries @ passages.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(search(queries, passages, k, "dot").rows_QK, wanted)


def test_passages_that_are_all_alike_are_found_in_their_order() -> None:
    found = search(vectors(9, 0), np.ones((1000, 16), np.float32), 20)
    np.testing.assert_array_equal(found.rows_QK, np.tile(np.arange(20), (9, 1)))


def test_fewer_passages_than_results() -> None:
    found = search(vectors(3, 0), vectors(2, 1), 4)
    assert (found.rows_QK[:, 2:] == NONE).all()
    assert np.isneginf(found.scores_QK[:, 2:]).all()
    assert sorted(found.rows_QK[0, :2]) == [0, 1]
    nothing = search(vectors(3, 0), vectors(0, 1), 4)
    assert (nothing.rows_QK == NONE).all()
    assert search(vectors(0, 0), vectors(5, 1), 4).rows_QK.shape == (0, 4)


@pytest.mark.parametrize("k", [3, 30])
def test_excluded_pairs_are_not_found(k: int) -> None:
    queries, passages = vectors(20, 0), vectors(500, 1)
    scores = every_score(queries, passages, "cosine")
    best = np.argsort(-scores, axis=1)[:, :5]
    pairs = Pairs(np.repeat(np.arange(20), 5), best.reshape(-1))
    np.put_along_axis(scores, best, -np.inf, axis=1)
    found = search(queries, passages, k, exclude=pairs)
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.rows_QK, wanted)


def test_passages_may_be_excluded_altogether() -> None:
    pairs = Pairs(np.zeros(3, dtype=np.int64), np.arange(3))
    found = search(vectors(2, 0), vectors(3, 1), 2, exclude=pairs)
    assert (found.rows_QK[0] == NONE).all()
    assert (found.rows_QK[1] != NONE).all()


def test_blocks_of_any_size_give_the_same() -> None:
    queries, passages = vectors(10, 0), vectors(300, 1).astype(np.float16)
    best = BestPassages(queries, 12)
    for start in range(0, 300, 37):
        best.add(passages[start : start + 37])
    np.testing.assert_array_equal(best.found().rows_QK, search(queries, passages, 12).rows_QK)


def test_cosines_of_very_short_long_and_zero_vectors() -> None:
    one = np.array([[1.0, 2.0]], np.float32)
    passages = np.array([[0, 0], [1e-30, 2e-30], [-1e30, -2e30], [2, -1]], np.float32)
    found = search(one, passages, 4)
    np.testing.assert_array_equal(found.rows_QK, [[1, 0, 3, 2]])
    np.testing.assert_allclose(found.scores_QK, [[1, 0, 0, -1]], atol=1e-6)


def test_the_arrays_that_are_given_stay_as_they_are() -> None:
    queries, passages = vectors(5, 0), vectors(200, 1)
    before = queries.copy(), passages.copy()
    search(queries, passages, 3)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(passages, before[1])


def test_what_cannot_be_searched_is_refused() -> None:
    passages = vectors(200, 1)
    with pytest.raises(InputError, match="k 0: search for at least 1"):
        search(vectors(2, 0), passages, 0)
    with pytest.raises(InputError, match=r"passages \[128, 16\]: queries have 8 numbers"):
        search(vectors(2, 0, width=8), passages, 1)
    passages[150, 3] = np.nan
    with pytest.raises(InputError, match="passage 150: its embedding is not finite"):
        search(vectors(2, 0), passages, 1)
    with pytest.raises(InputError, match="query 150: its embedding is not finite"):
        search(passages, vectors(5, 1), 1)


def test_neighbours_of_a_space_and_of_its_rotation_are_the_same() -> None:
    one = vectors(200, 0)
    rotation = np.linalg.qr(vectors(16, 1).astype(np.float64))[0]
    assert neighbour_overlap(one, one @ rotation) > 0.999
    assert neighbour_overlap(one, vectors(200, 3)) < 0.2
    assert np.isnan(neighbour_overlap(one[:1], one[:1]))
    assert neighbour_overlap(one[:4], -one[:4]) == 1.0  # all the others


def test_neighbours_by_hand() -> None:
    angles = np.deg2rad([0, 10, 30, 70])
    one = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    other = one[[0, 2, 1, 3]]  # the second text and the third have changed places
    # Nearest: one 1, 0, 1, 2; the other 2, 2, 0, 1.
    assert neighbour_overlap(one, other, k=1) == 0.0
    # Nearest two: {1, 2}, {0, 2}, {0, 1}, {1, 2} in both.
    assert neighbour_overlap(one, other, k=2) == 1.0
