"""Shards that come in the background, in the order of first use, while a run is at others.

`wait` is called by who needs a shard now: one that nobody has begun is fetched there and then, by
the caller. Threads are daemons: a process that ends leaves what is under way, as if it were killed.
"""

import os
import threading
from collections.abc import Callable, Sequence


class FetchAhead:
    """Fetches numbered things once each, some at a time."""

    def __init__(self, fetch: Callable[[int], None], order: Sequence[int], jobs: int) -> None:
        self._fetch = fetch
        self._changed = threading.Condition()
        self._waiting = dict.fromkeys(order)
        self._busy: set[int] = set()
        self._error: BaseException | None = None
        self._process = os.getpid()
        for _ in range(min(jobs, len(self._waiting))):
            threading.Thread(target=self._run, name="fetch ahead", daemon=True).start()

    @property
    def is_ours(self) -> bool:
        """Whether the threads are in this process: a fork has none."""
        return self._process == os.getpid()

    def wait(self, number: int) -> None:
        """Return when a thing is there, or raise what went wrong with it or another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or number not in self._busy)
            if self._error is not None:
                raise self._error
            if number not in self._waiting:
                return
            self._begin(number)
        self._do(number)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._error is not None or not self._waiting:
                    return
                number = next(iter(self._waiting))
                self._begin(number)
            try:
                self._do(number)
            except BaseException:
                return  # kept for who waits

    def _begin(self, number: int) -> None:
        del self._waiting[number]
        self._busy.add(number)

    def _do(self, number: int) -> None:
        try:
            self._fetch(number)
        except BaseException as error:
            self._error = error
            raise
        finally:
            with self._changed:
                self._busy.discard(number)
                self._changed.notify_all()
