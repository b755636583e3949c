"""The pace of requests to a server: how many in flight, how many and how many tokens a minute.

What is in flight finds its own level, as TCP's window does (RFC 5681): it is doubled as long as
that brings noticeably more replies a second, halved where the server says that it is too much, and
a little more is tried again and again. Everything here belongs to one event loop, and no clock but
that loop's is read.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

FIRST = 8
RISE = 1.05
"""By how much more replies a second a higher level has to bring."""
CALM = 8
"""Windows at one level before a higher one is tried again."""


class Level:
    """How many requests may be in flight: at most `most`, from `first` on."""

    def __init__(self, most: int, first: int | None = None) -> None:
        """`first` None: `FIRST` or `most`, whichever is less."""
        self.most = most
        self.limit = min(FIRST, most) if first is None else first
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._replies, self._began, self._calm = 0, 0.0, 0
        self._best = 0.0
        self._lower: int | None = None
        """The level before a higher one that is being tried."""
        self._halved_at = -1.0

    async def enter(self) -> None:
        """Wait until one more request may be sent."""
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """A request is no longer in flight."""
        self.in_flight -= 1
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)

    def replied(self) -> None:
        """A request was answered; after as many as may be in flight, the level is thought over."""
        now = asyncio.get_running_loop().time()
        self._replies += 1
        if self._replies == 1:
            self._began = now
        if self._replies <= self.limit or now <= self._began:
            return
        self._think((self._replies - 1) / (now - self._began))
        self._replies = 0

    def _think(self, rate: float) -> None:
        rises = rate > RISE * self._best
        self._best = max(rate, self._best)
        self._calm = 0 if rises else self._calm + 1
        if not rises and self._lower is not None:
            self.limit, self._lower = self._lower, None  # the higher one brought nothing
        elif rises or self._calm >= CALM:
            self._lower = None if rises else self.limit
            higher = 2 * self.limit if rises else self.limit + 1 + self.limit // 8
            self.limit, self._calm = min(higher, self.most), 0

    def refused(self) -> None:
        """The server said that this is too much. What was in flight then is refused together, and
        counts once."""
        now = asyncio.get_running_loop().time()
        if now < self._halved_at + 1.0:
            return
        self._halved_at = now
        self.limit = max(self.limit // 2, 1)
        self._best, self._replies, self._calm, self._lower = 0.0, 0, -CALM, None


@dataclass(slots=True)
class PerMinute:
    """At most so many units a minute, evenly: after a second's worth at once, each waits until its
    share of a minute is over. None: no limit."""

    limit: int | None
    _free_at: float = field(default=0.0)

    async def take(self, units: float) -> None:
        """Wait until so many units may be used."""
        if self.limit is None:
            return
        clock = asyncio.get_running_loop().time
        start = max(self._free_at, clock() - 1.0)
        self._free_at = start + units * 60 / self.limit
        if (wait := start - clock()) > 0:
            await asyncio.sleep(wait)

    def correct(self, expected: float, used: float) -> None:
        """What was taken for `expected` units has used another number."""
        if self.limit is not None:
            self._free_at += (used - expected) * 60 / self.limit
