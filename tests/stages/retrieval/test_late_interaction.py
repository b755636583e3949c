"""Similarities of texts with a vector for each token, by hand, and search by them."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from armada.cache_schemas.errors import InputError
from armada.stages.retrieval import late_interaction
from armada.stages.retrieval.late_interaction import (
    BestByTokens,
    maxsim,
    maxsim_of_pairs,
    pairs_of_tokens,
)
from armada.stages.retrieval.search import Pairs

Array = npt.NDArray[np.float64]


def texts(count: int, most: int, width: int, seed: int) -> Array:
    """Vectors of 1 to `most` tokens a text, zeros behind the last."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(count, most, width))
    lengths = draw.integers(1, most + 1, size=count)
    found[np.arange(most) >= lengths[:, None]] = 0
    return found


def by_hand(query: Array, passage: Array) -> float:
    """ColBERT's equation 3, divided by the query's tokens."""
    best = [
        max(float(q @ p / np.linalg.norm(q) / np.linalg.norm(p)) for p in passage if p.any())
        for q in query
        if q.any()
    ]
    return sum(best) / len(best)


QUERIES, PASSAGES = texts(4, 3, 5, 0), texts(7, 6, 5, 1)
EXPECTED = np.array([[by_hand(q, p) for p in PASSAGES] for q in QUERIES])


@pytest.mark.parametrize("most", [1, 40, 2**24])
def test_similarities_are_those_by_hand(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """In however many parts."""
    monkeypatch.setattr(late_interaction, "_MOST", most)
    found = maxsim(torch.from_numpy(QUERIES), torch.from_numpy(PASSAGES))
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)


@pytest.mark.parametrize("most", [1, 40, 2**24])
def test_candidates_are_compared_with_their_own_query(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(late_interaction, "_MOST", most)
    own = np.stack([PASSAGES[[n, n + 1, n + 3]] for n in range(4)])
    found = maxsim_of_pairs(torch.from_numpy(QUERIES), torch.from_numpy(own))
    expected = [EXPECTED[n, [n, n + 1, n + 3]] for n in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(
        pairs_of_tokens(QUERIES, PASSAGES[:4]), EXPECTED.diagonal(), atol=1e-12
    )
    assert pairs_of_tokens(QUERIES[:0], PASSAGES[:0]).shape == (0,)


def test_further_padding_changes_nothing() -> None:
    wider = [np.pad(each, ((0, 0), (0, 2), (0, 0))) for each in (QUERIES, PASSAGES)]
    found = maxsim(*map(torch.from_numpy, wider))
    np.testing.assert_allclose(found, EXPECTED, atol=1e-12)


def test_gradients_are_those_of_the_similarities() -> None:
    """Those of padding are 0."""
    query, passage = (torch.tensor(each, requires_grad=True) for each in (QUERIES, PASSAGES))
    maxsim(query, passage).square().sum().backward()
    step, at = 1e-6, (2, 0, 3)
    for given, other in ((query, QUERIES), (passage, PASSAGES)):
        assert given.grad is not None
        assert not given.grad[torch.from_numpy(~other.any(axis=-1))].any()
        moved = []
        for sign in (1, -1):
            changed = other.copy()
            changed[at] += sign * step
            pair = (changed, PASSAGES) if other is QUERIES else (QUERIES, changed)
            moved.append(float(maxsim(*map(torch.from_numpy, pair)).square().sum()))
        assert float(given.grad[at]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-5)


def test_what_has_no_tokens() -> None:
    """A passage is below all others, and a query is like nothing."""
    nothing = np.zeros((1, 3, 5))
    found = maxsim(
        torch.from_numpy(QUERIES), torch.from_numpy(np.pad(nothing, ((0, 0), (0, 0), (0, 0))))
    )
    assert (found < -1).all()
    assert not maxsim(torch.from_numpy(nothing), torch.from_numpy(PASSAGES)).any()


def test_search_finds_the_best_of_all_blocks() -> None:
    best = BestByTokens(QUERIES, 3, Pairs(np.array([1]), np.array([int(EXPECTED[1].argmax())])))
    best.add(PASSAGES[:4])
    best.add(np.pad(PASSAGES[4:], ((0, 0), (0, 1), (0, 0))))
    found = best.found()
    scores = EXPECTED.copy()
    scores[1, EXPECTED[1].argmax()] = -np.inf
    order = np.argsort(-scores, axis=1)[:, :3]
    np.testing.assert_array_equal(found.rows_QK, order)
    np.testing.assert_allclose(found.scores_QK, np.take_along_axis(scores, order, 1), atol=1e-6)


def test_widths_have_to_be_the_same() -> None:
    with pytest.raises(InputError, match="queries have vectors of 5 numbers for each token"):
        BestByTokens(QUERIES, 3).add(PASSAGES[:, :, :4])
