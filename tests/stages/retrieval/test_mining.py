"""Negatives chosen among candidates."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.retrieval.mining import MiningRules, Negatives, choose_negatives
from armada.stages.retrieval.search import NONE, Found

ROWS = np.array([[4, 2, 7, 1, 0], [3, 5, 6, NONE, NONE]])
SCORES = np.array([[0.9, 0.8, 0.7, 0.4, 0.1], [0.9, 0.2, 0.1, -np.inf, -np.inf]], np.float32)
RULES = MiningRules(negatives=2)
PASSAGE_KEYS = keys_to_array(example_key((f"passage {n}",)) for n in range(8))
ROW_KEYS = keys_to_array(example_key((f"row {n}",)) for n in range(2))


def chosen(rules: MiningRules = RULES, positives: Any = (0.85, 0.85)) -> Negatives:
    return choose_negatives(Found(ROWS, SCORES), np.array(positives), ROW_KEYS, PASSAGE_KEYS, rules)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [[4, 2], [3, 5]]),
        ({"negatives": 1}, [[4], [3]]),
        ({"negatives": 4}, [[4, 2, 7, 1], [3, 5, 6, NONE]]),
        ({"negatives": 9}, [[4, 2, 7, 1, 0, *[NONE] * 4], [3, 5, 6, *[NONE] * 6]]),
        ({"range_min": 2}, [[7, 1], [6, NONE]]),
        ({"range_max": 1}, [[4, NONE], [3, NONE]]),
        ({"max_score": 0.75}, [[7, 1], [5, 6]]),
        ({"margin": 0.1}, [[7, 1], [5, 6]]),
        ({"margin": 0.0}, [[2, 7], [5, 6]]),
        ({"relative_margin": 0.5}, [[1, 0], [5, 6]]),
        ({"relative_margin": 0.05}, [[2, 7], [5, 6]]),
    ],
)
def test_the_nearest_that_the_rules_leave(changes: dict[str, Any], wanted: Any) -> None:
    found = chosen(replace(RULES, **changes))
    np.testing.assert_array_equal(found.rows_RN, wanted)
    where = dict(zip(ROWS[0].tolist(), SCORES[0].tolist(), strict=True))
    for passage, score in zip(found.rows_RN[0], found.scores_RN[0], strict=True):
        if passage == NONE:
            assert np.isnan(score)
        else:
            assert score == np.float32(where[passage])


def test_what_is_left_out_is_counted() -> None:
    found = chosen(replace(RULES, max_score=0.75, margin=0.3))
    # Above 0.75: 0.9, 0.8; 0.9. Of the others above 0.55: 0.7.
    assert (found.too_high, found.too_near) == (3, 1)


def test_a_margin_of_a_positive_with_a_score_below_zero_is_a_distance() -> None:
    found = chosen(replace(RULES, relative_margin=0.5), (-0.2, 0.1))
    assert (found.rows_RN == NONE).sum() == 4  # nothing is below -0.3, nor below 0.05
    assert chosen(RULES, (-0.2, -0.2)).rows_RN.tolist() == [[4, 2], [3, 5]]  # no margin: no limit


def test_a_random_choice_follows_from_seed_and_keys() -> None:
    rules = replace(RULES, sampling="random")
    found = chosen(rules)
    np.testing.assert_array_equal(found.rows_RN, chosen(rules).rows_RN)
    assert (np.diff(found.scores_RN, axis=1) <= 0).all()  # the nearest first
    # The same whatever the numbers of the passages are.
    order = np.random.default_rng(0).permutation(8)
    moved = np.argsort(order)
    rows = np.where(ROWS == NONE, NONE, moved[np.maximum(ROWS, 0)])
    again = choose_negatives(
        Found(rows, SCORES), np.array([0.85, 0.85]), ROW_KEYS, PASSAGE_KEYS[order], rules
    )
    np.testing.assert_array_equal(order[again.rows_RN], found.rows_RN)
    drawn = [chosen(replace(rules, seed=seed)).rows_RN[0] for seed in range(300)]
    counts = np.bincount(np.concatenate(drawn), minlength=8)[ROWS[0]]
    assert (np.abs(counts - 120) < 40).all()  # each of five as often


def test_a_random_choice_takes_only_what_the_rules_leave() -> None:
    rules = replace(RULES, sampling="random", negatives=3, max_score=0.75)
    found = chosen(rules)
    np.testing.assert_array_equal(found.rows_RN, [[7, 1, 0], [5, 6, NONE]])
