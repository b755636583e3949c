"""Scores that rows are chosen by, against hand-worked numbers and NumPy."""

import numpy as np
import pytest
from armada.stages.corpus.labels import MISSING
from armada.stages.distill.choosing import (
    agrees,
    at_most_of_each,
    confidence,
    domain_shares,
    entropy,
    largest,
    log_probs_of_labels,
    log_ratio,
    within,
)

RANDOM = np.random.default_rng(2)
LOGITS = (RANDOM.standard_normal((50, 4)) * 3).astype(np.float16)
LABELS = np.where(np.arange(50) % 7 == 0, MISSING, np.arange(50) % 4)
P = np.exp(LOGITS.astype(np.float64))
P /= P.sum(axis=1, keepdims=True)


def test_log_ratio_by_hand() -> None:
    # Two texts of 2 and 4 tokens: the larger model gains 1 nat on both, 0.5 and 0.25 a token.
    found = log_ratio(np.array([-3.0, -7, 0]), np.array([-4.0, -8, 0]), np.array([2, 4, 0]))
    np.testing.assert_array_equal(found, [0.5, 0.25, -np.inf])


def test_scores_of_logits() -> None:
    np.testing.assert_allclose(entropy(LOGITS), -(P * np.log(P)).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(confidence(LOGITS), P.max(axis=1), rtol=1e-12)
    known = LABELS != MISSING
    found = log_probs_of_labels(LOGITS, LABELS)
    np.testing.assert_allclose(found[known], np.log(P[known, LABELS[known]]), rtol=1e-10)
    assert np.isnan(found[~known]).all()
    expected = np.where(known, LOGITS.argmax(axis=1) == LABELS, 1)
    np.testing.assert_array_equal(agrees(LOGITS, LABELS), expected)
    far = np.array([[700.0, -700.0]])
    np.testing.assert_allclose([entropy(far)[0], confidence(far)[0]], [0, 1], atol=1e-200)


def test_the_largest_and_who_comes_first_of_equals() -> None:
    scores = np.array([1.0, 3, 2, 2, 2, -np.inf])
    shuffled = np.array([5, 4, 3, 2, 1, 0])
    assert largest(scores, 2, shuffled).tolist() == [1, 4]
    assert largest(scores, 4, shuffled).tolist() == [1, 2, 3, 4]
    assert largest(scores, 6, shuffled).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("least", "most", "kept"),
    [(2, None, [1, 2]), (None, 2, [0, 2]), (2, 2, [2]), (4, None, []), (None, None, [0, 1, 2])],
)
def test_within(least: float | None, most: float | None, kept: list[int]) -> None:
    assert within(np.array([1.0, 3, 2]), least, most).tolist() == kept


def test_at_most_of_each() -> None:
    clusters = np.array([0, 0, 0, 1, 2, 2])
    shuffled = np.array([2, 5, 4, 3, 1, 0])
    assert at_most_of_each(clusters, 1, shuffled).tolist() == [2, 3, 5]
    assert at_most_of_each(clusters, 2, shuffled).tolist() == [1, 2, 3, 4, 5]


def test_domain_shares_by_hand() -> None:
    # Per token the learner loses ln 2 more than the teacher in the second domain, nothing in the
    # first: ratios 1 and 2, a third and two thirds of the draws that go by the gap.
    learner = np.array([-1.0, -3, -2 - 4 * np.log(2)])
    teacher = np.array([-1.0, -3, -2])
    found = domain_shares(np.array([0, 0, 1]), learner, teacher, np.array([2, 1, 4]), 1.0)
    np.testing.assert_allclose(found, [1 / 3, 2 / 3], rtol=1e-12)
    half = domain_shares(np.array([0, 0, 1]), learner, teacher, np.array([2, 1, 4]), 0.5)
    np.testing.assert_allclose(half, [5 / 12, 7 / 12], rtol=1e-12)
    far = domain_shares(np.array([0, 1]), np.array([-9e4, 0]), np.zeros(2), np.array([1, 1]), 1.0)
    np.testing.assert_array_equal(far, [1, 0])
    none = domain_shares(np.array([0, 1]), np.zeros(2), np.zeros(2), np.array([0, 3]), 1.0)
    np.testing.assert_array_equal(none, [0.5, 0.5])
