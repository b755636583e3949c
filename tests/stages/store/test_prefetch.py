"""Block shuffling: every row once, neighbours together, and the next window read ahead."""

import math
from itertools import chain, pairwise

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.stages.store.reading.prefetch import BlockOrder, ReadAhead, batches_of
from hypothesis import given
from hypothesis import strategies as st

Rows = np.ndarray

ROWS = st.lists(st.integers(0, 500), max_size=80).map(lambda rows: np.array(rows, np.int64))


# --- the order


@given(ROWS, st.integers(1, 20), st.integers(1, 5))
def test_windows_are_whole_blocks_of_neighbours(rows: Rows, block: int, blocks: int) -> None:
    windows = list(BlockOrder(rows, block, blocks).windows(seed=3, epoch=1))
    ordered = np.argsort(rows, kind="stable")
    expected = {frozenset(ordered[at : at + block].tolist()) for at in range(0, len(rows), block)}
    places = [window.tolist() for window in windows]
    assert sorted(chain(*places)) == list(range(len(rows)))
    for window in places:
        inside = {one for one in expected if one <= set(window)}
        assert set(chain(*inside)) == set(window)
        assert len(inside) <= blocks
        expected -= inside
    assert expected == set()
    assert len(places) == math.ceil(math.ceil(len(rows) / block) / blocks)


def test_the_order_is_a_function_of_seed_epoch_and_stream() -> None:
    rows = np.random.default_rng(0).permutation(1000)
    order = BlockOrder(rows, 32, 4)
    drawn = {}
    for key in [(0, 0), (0, 1), (1, 0), (0, 0, 1)]:
        drawn[key] = np.concatenate(list(order.windows(*key))).tolist()
        again = BlockOrder(rows, 32, 4).windows(*key)
        assert np.concatenate(list(again)).tolist() == drawn[key]
    assert len({tuple(one) for one in drawn.values()}) == len(drawn)


def test_rows_of_a_window_are_mixed_and_windows_are_not_in_order() -> None:
    windows = list(BlockOrder(np.arange(1024), 64, 4).windows(0, 0))
    assert [len(window) for window in windows] == [256] * 4
    for window in windows:
        assert np.count_nonzero(np.diff(window) == 1) < 10
        assert len(np.unique(window[:64] // 64)) == 4  # all of its blocks, from the start
    firsts = [window.min() for window in windows]
    assert firsts != sorted(firsts)


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 20))
def test_batches_go_across_windows(sizes: list[int], batch_size: int) -> None:
    ends = np.cumsum([0, *sizes])
    windows = [np.arange(*pair) for pair in pairwise(ends)]
    batches = list(batches_of(iter(windows), batch_size))
    assert np.concatenate([*batches, []]).tolist() == list(range(ends[-1]))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert len(batches) == -(-ends[-1] // batch_size)


# --- reading ahead


class Announced:
    """Notes which windows were announced; each by its first row."""

    def __init__(self, damaged: int | None = None) -> None:
        self.firsts: list[int] = []
        self._damaged = damaged

    def __call__(self, rows: Rows) -> None:
        if rows[0] == self._damaged:
            raise DamagedCacheError("shard 2 is damaged")
        self.firsts.append(int(rows[0]))


def windows_of(count: int) -> list[Rows]:
    return [np.arange(10 * number, 10 * number + 10) for number in range(count)]


def test_each_window_is_announced_once_and_one_ahead() -> None:
    announced = Announced()
    ahead = ReadAhead(announced)
    seen = []
    for window in ahead.planned(iter(windows_of(4))):
        ahead.start()
        ahead.start()
        ahead.wait()
        seen.append((int(window[0]), list(announced.firsts)))
    assert seen == [
        (0, [0, 10]),
        (10, [0, 10, 20]),
        (20, [0, 10, 20, 30]),
        (30, [0, 10, 20, 30]),
    ]


def test_windows_that_are_skipped_are_not_read() -> None:
    announced = Announced()
    ahead = ReadAhead(announced)
    for window in ahead.planned(iter(windows_of(6))):
        if window[0] >= 30:
            ahead.start()
    ahead.wait()
    assert announced.firsts == [30, 40, 50]


def test_a_second_epoch_is_announced_like_the_first() -> None:
    announced = Announced()
    ahead = ReadAhead(announced)
    for _ in range(2):
        for _ in ahead.planned(iter(windows_of(3))):
            ahead.start()
    ahead.wait()
    assert announced.firsts == [0, 10, 20] * 2


@pytest.mark.parametrize("count", [0, 1])
def test_few_windows(count: int) -> None:
    announced = Announced()
    ahead = ReadAhead(announced)
    for _ in ahead.planned(iter(windows_of(count))):
        ahead.start()
    ahead.start()
    ahead.wait()
    assert announced.firsts == [0] * count


def test_what_goes_wrong_in_the_background_is_told() -> None:
    ahead = ReadAhead(Announced(damaged=20))
    windows = ahead.planned(iter(windows_of(5)))
    next(windows)
    ahead.start()
    next(windows)
    ahead.start()
    next(windows)
    with pytest.raises(DamagedCacheError, match="shard 2 is damaged"):
        ahead.start()
    ahead.wait()  # told once
