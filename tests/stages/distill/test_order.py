"""The order of examples: batches of like length, and each process's share of a batch."""

from collections import Counter

import numpy as np
import pytest
from armada.stages.distill import order
from armada.stages.distill.order import epoch_order, grouped_by_length, weighted_order
from armada.stages.distill.processes import ALONE, Processes, processes

LENGTHS = np.random.default_rng(0).integers(3, 128, size=1003)


def grouped(epoch: int, seed: int = 0) -> list[np.ndarray]:
    places = epoch_order(len(LENGTHS), seed, epoch)
    batches = np.split(places, range(10, len(places), 10))
    return list(grouped_by_length(iter(batches), LENGTHS, seed, epoch))


def test_groups_hold_every_example_once_in_batches_of_the_same_sizes():
    batches = grouped(0)
    assert Counter(np.concatenate(batches).tolist()) == Counter(range(1003))
    assert Counter(map(len, batches)) == {10: 100, 3: 1}


def test_groups_need_little_padding():
    def padding(batches: list[np.ndarray]) -> int:
        return sum(int((LENGTHS[b].max() - LENGTHS[b]).sum()) for b in batches)

    random = list(np.split(epoch_order(len(LENGTHS), 0, 0)[:1000], 100))
    assert padding(grouped(0)) < padding(random) / 5


def test_groups_follow_from_seed_and_epoch_and_do_not_go_by_length():
    def orders(epoch: int, seed: int = 0) -> list[list[int]]:
        return [batch.tolist() for batch in grouped(epoch, seed)]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert orders(0) != orders(0, seed=1)
    longest = [int(LENGTHS[batch].max()) for batch in grouped(0)]
    assert longest[: order.GROUPED_BATCHES] != sorted(longest[: order.GROUPED_BATCHES])


def test_a_group_is_made_of_the_examples_that_came_together():
    """So features that are streamed in blocks are still read block by block."""
    first = order.GROUPED_BATCHES * 10
    expected = epoch_order(len(LENGTHS), 0, 0)[:first]
    found = np.concatenate(grouped(0)[: order.GROUPED_BATCHES])
    assert sorted(found.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 8, 24])
def test_shares_are_of_one_size_and_make_up_the_batch(rows, count):
    batch = np.arange(100, 100 + rows)
    shares = [Processes(rank, count, rank).share(batch) for rank in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert np.concatenate(shares)[:rows].tolist() == batch.tolist()
    assert set(np.concatenate(shares)[rows:]) <= {batch[-1]}


def test_processes_are_those_of_the_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert processes() is ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes() is ALONE  # a cluster's, not a launcher's
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes() == Processes(3, 4, 1)
    assert not processes().first
    # A launcher that starts one process changes nothing.
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert processes() is ALONE


@pytest.mark.parametrize("seed", [0, 1])
def test_weighted_order_draws_in_proportion(seed: int) -> None:
    weights = np.random.default_rng(3).random(500) ** 3
    drawn = weighted_order(weights, seed, epoch=2)
    expected = 500 * weights / weights.sum()
    counts = np.bincount(drawn, minlength=500)
    assert len(drawn) == 500
    assert (np.floor(expected) <= counts).all()
    assert (counts <= np.ceil(expected)).all()
    np.testing.assert_array_equal(drawn, weighted_order(weights, seed, epoch=2))
    assert (drawn != weighted_order(weights, seed, epoch=3)).any()
    assert (drawn != weighted_order(weights, seed + 1, epoch=2)).any()
    equal = weighted_order(np.full(90, 0.1), seed, 0)
    assert sorted(equal) == list(range(90))
