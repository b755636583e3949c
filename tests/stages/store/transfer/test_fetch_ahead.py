"""Fetching ahead: each once, in order, and at once for who waits."""

import pickle
import threading

import pytest
from armada.stages.store.transfer.mirrored_teacher import FetchAhead


def test_all_come_in_order_and_once() -> None:
    came: list[int] = []
    ahead = FetchAhead(came.append, [3, 1, 2], jobs=1)
    for number in (2, 1, 3):
        ahead.wait(number)
    assert came == [3, 1, 2]


def test_who_waits_for_what_nobody_has_begun_fetches_it() -> None:
    came: list[tuple[int, str]] = []
    free = threading.Event()

    def fetch(number: int) -> None:
        if number == 0:
            free.wait(60)
        came.append((number, threading.current_thread().name))

    ahead = FetchAhead(fetch, [0, 1, 2], jobs=1)
    ahead.wait(2)
    assert came == [(2, threading.current_thread().name)]
    free.set()
    ahead.wait(0)
    ahead.wait(1)
    assert sorted(number for number, _ in came) == [0, 1, 2]


def test_an_error_is_raised_by_all_who_wait() -> None:
    def fetch(number: int) -> None:
        raise ValueError(f"no {number}")

    ahead = FetchAhead(fetch, [5], jobs=4)
    for _ in range(2):
        with pytest.raises(ValueError, match="no 5"):
            ahead.wait(5)


def test_nothing_to_come() -> None:
    FetchAhead(pickle.dumps, [], jobs=4).wait(1)
