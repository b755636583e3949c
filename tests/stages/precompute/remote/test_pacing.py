"""How many requests are in flight, and how many a minute."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from armada.stages.precompute.remote.pacing import FIRST, Level, PerMinute


class _Clock(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it waits, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def at_once(timeout: float | None) -> Any:
            found = select(0)
            if not found and timeout:
                self._now += timeout
            return found

        self._selector.select = at_once

    def time(self) -> float:
        return self._now


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = _Clock()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class _Server:
    """Answers `capacity` requests at a time, each within `seconds`; refuses more than `most`."""

    def __init__(self, capacity: int, most: int = 10**6, seconds: float = 1.0) -> None:
        self.free = asyncio.Semaphore(capacity)
        self.most, self.seconds = most, seconds
        self.inside = self.answered = self.refused = 0
        self.highest = 0

    async def ask(self, level: Level) -> None:
        await level.enter()
        self.inside += 1
        self.highest = max(self.highest, self.inside)
        try:
            if self.inside > self.most:
                self.refused += 1
                level.refused()
                await asyncio.sleep(0.01)
                return
            async with self.free:
                await asyncio.sleep(self.seconds)
            self.answered += 1
            level.replied()
        finally:
            self.inside -= 1
            level.leave()


def ask_many(server: _Server, level: Level, count: int) -> float:
    async def all_of_them() -> float:
        await asyncio.gather(*(server.ask(level) for _ in range(count)))
        return asyncio.get_running_loop().time()

    return run(all_of_them())


@pytest.mark.parametrize("capacity", [1, 20, 100])
def test_the_level_comes_to_what_the_server_does_at_a_time(capacity: int) -> None:
    server, level = _Server(capacity), Level(1000)
    seconds = ask_many(server, level, 200 * capacity)
    assert server.answered == 200 * capacity
    assert seconds < 1.1 * 200 + 20
    assert server.highest < 8 * capacity + 2 * FIRST


def test_no_more_are_in_flight_than_allowed() -> None:
    server, level = _Server(1000), Level(12)
    ask_many(server, level, 500)
    assert server.highest == 12


def test_a_server_that_refuses_is_asked_less() -> None:
    server, level = _Server(1000, most=30), Level(1000)
    ask_many(server, level, 3000)
    assert server.answered + server.refused == 3000
    assert server.refused < 0.1 * 3000
    assert server.highest < 100


def test_a_level_of_ones_own_is_kept() -> None:
    server, level = _Server(1), Level(50, first=50)
    ask_many(server, level, 200)
    assert server.highest == level.limit == 50


def test_refusals_at_once_count_once() -> None:
    async def halve() -> int:
        level = Level(64, first=64)
        for _ in range(10):
            level.refused()
        return level.limit

    assert run(halve()) == 32


def test_whoever_gives_up_waiting_leaves_no_place_taken() -> None:
    async def give_up() -> int:
        level = Level(1, first=1)
        await level.enter()
        waiting = asyncio.create_task(level.enter())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        level.leave()
        await level.enter()
        return level.in_flight

    assert run(give_up()) == 1


def test_so_many_a_minute() -> None:
    async def ask(count: int, limit: int) -> float:
        rate = PerMinute(limit)
        for _ in range(count):
            await rate.take(1)
        return asyncio.get_running_loop().time()

    assert run(ask(100, 600)) == pytest.approx(9.9, abs=1.1)
    assert run(ask(1000, 600)) == pytest.approx(99.9, abs=1.1)


def test_what_was_used_is_what_counts() -> None:
    async def ask() -> float:
        rate = PerMinute(6000)
        for _ in range(10):
            await rate.take(100)
            rate.correct(100, 1000)
        return asyncio.get_running_loop().time()

    assert run(ask()) == pytest.approx(90, abs=3)
