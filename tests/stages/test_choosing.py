"""Orders in which a budget takes examples, by plain loops in float64 beside them."""

import hashlib
import math

import numpy as np
import pytest
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.choosing import (
    balanced,
    in_random_order,
    k_center,
    k_means_pp,
    most_uncertain,
)
from armada.stages.corpus.labels import MISSING

COUNT = 60
KEYS = keys_to_array(example_key((f"text {n}",)) for n in range(COUNT))
ORDER = in_random_order(KEYS, 0)
POINTS = np.random.default_rng(0).normal(size=(COUNT, 7))


def test_a_random_order_is_one_of_keys() -> None:
    def hashed(row: int) -> int:
        salt = (0).to_bytes(8, "little")
        digest = hashlib.blake2b(KEYS[row].tobytes(), digest_size=8, salt=salt).digest()
        return int.from_bytes(digest, "little")

    assert ORDER.tolist() == sorted(range(COUNT), key=hashed)
    assert ORDER.tolist() != in_random_order(KEYS, 1).tolist()
    # The order of two examples depends on no others, nor on where they stand.
    some = np.array([50, 3, 20, 4])
    found = some[in_random_order(KEYS[some], 0)]
    assert found.tolist() == [row for row in ORDER if row in some]


def test_a_balanced_order_takes_a_class_in_turn() -> None:
    classes = np.array([2] * 5 + [0] * 40 + [1] * 10 + [MISSING] * 5)
    order = balanced(classes, ORDER, MISSING)
    assert sorted(order) == list(range(COUNT))
    left = {name: [row for row in ORDER if classes[row] == name] for name in (0, 1, 2)}
    expected: list[int] = []
    while any(left.values()):
        expected += [rows.pop(0) for rows in left.values() if rows]
    expected += [row for row in ORDER if classes[row] == MISSING]
    assert order.tolist() == expected


def test_the_most_uncertain_come_first() -> None:
    random = np.random.default_rng(2)
    probabilities = random.dirichlet([0.5] * 4, COUNT).astype(np.float32)
    probabilities[10:13] = [[1, 0, 0, 0]]  # equal ones, and zeros
    order = most_uncertain(probabilities, ORDER)
    entropy = [-sum(p * math.log(p) for p in map(float, row) if p) for row in probabilities]
    assert sorted(order) == list(range(COUNT))
    assert np.all(np.diff([entropy[row] for row in order]) <= 1e-9)
    assert order[-3:].tolist() == [row for row in ORDER if row in (10, 11, 12)]


def farthest_first(points: np.ndarray, first: int, count: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        apart = [min(math.dist(point, points[other]) for other in chosen) for point in points]
        chosen.append(int(np.argmax(apart)))
    return chosen


@pytest.mark.parametrize("moved", [0.0, 1000.0], ids=["centred", "far off"])
def test_k_center_takes_what_is_farthest(moved: float) -> None:
    expected = farthest_first(POINTS, int(ORDER[0]), 20)
    assert k_center((POINTS + moved), 20, ORDER).tolist() == expected


def test_k_means_pp_draws_by_squared_distance() -> None:
    """Of a tight cloud and two points far off, both are almost always among the first three; of
    many draws, the second point is chosen as often as its squared distance says."""
    points = np.concatenate([np.zeros((8, 2)), [[3.0, 0.0], [0.0, 4.0]]])
    shuffled = np.arange(10)
    second = [int(k_means_pp(points, 2, shuffled, seed)[1]) for seed in range(2000)]
    assert set(second) == {8, 9}
    assert abs(np.mean(np.array(second) == 8) - 9 / 25) < 4 * math.sqrt(0.36 * 0.64 / 2000)


@pytest.mark.parametrize("rule", ["k-center", "k-means++"])
def test_a_larger_budget_contains_a_smaller_one(rule: str) -> None:
    def chosen(points: np.ndarray, count: int) -> list[int]:
        if rule == "k-center":
            return k_center(points, count, ORDER).tolist()
        return k_means_pp(points, count, ORDER, 5).tolist()

    for points in (POINTS, np.repeat(POINTS[:4], COUNT // 4, axis=0)):
        whole = chosen(points, COUNT)
        assert sorted(whole) == list(range(COUNT))
        for count in (1, 3, 4, 5, 30):
            assert chosen(points, count) == whole[:count]
    # Copies come when nothing else is left.
    copies = np.repeat(POINTS[:4], COUNT // 4, axis=0)
    assert {row // (COUNT // 4) for row in chosen(copies, 4)} == {0, 1, 2, 3}
