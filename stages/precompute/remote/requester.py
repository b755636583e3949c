"""A thread that keeps requests in flight (`requests.py`), for whoever waits for their answers."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from operator import itemgetter
from typing import Any

from ....cache_schemas.errors import RunError
from .requests import Query, Request, Requests, together
from .wire import MalformedReplyError

GRACE_S = 20.0
"""For how long requests in flight are waited for when a run ends."""


class Requester:
    """Sends queries to a server. A future has what `Api.read` makes of a reply; it raises
    TextRefusedError for a text that is not answered, an ArmadaError where the run ends."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def send(self, queries: Sequence[Query]) -> "list[Future[Any]]":
        """Send queries, from one thread at a time. Kept replies are answers at once."""
        futures: list[Future[Any]] = [Future() for _ in queries]
        pairs = [
            (one, future)
            for one, future in zip(queries, futures, strict=True)
            if not self._was_kept(one, future)
        ]
        parts = together(self.requests.api, pairs, itemgetter(0))
        made = [Request([one for one, _ in part], [future for _, future in part]) for part in parts]
        if made:
            self._started().call_soon_threadsafe(self.requests.put, made)
        return futures

    def close(self) -> None:
        """Begin no request any more; wait for those in flight, and keep their replies."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = self._thread = None

    def _was_kept(self, query: Query, future: "Future[Any]") -> bool:
        replies = self.requests.replies
        kept = None if replies is None else replies.get(query.key)
        if kept is None:
            return False
        try:
            answers = self.requests.api.read(json.loads(kept.body), kept.count)
        except (ValueError, MalformedReplyError):
            return False  # kept by a release that read replies otherwise
        self.requests.counts.kept += 1
        future.set_result(answers[kept.index])
        return True

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._run, args=(self._loop,), name="requests", daemon=True
            )
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        running = loop.create_task(self.requests.run())
        loop.run_forever()
        running.cancel()
        self.requests.end(RunError("requests: the run has ended"))
        loop.run_until_complete(self._settle(running))
        loop.close()

    async def _settle(self, running: "asyncio.Task[None]") -> None:
        await asyncio.gather(running, return_exceptions=True)
        await self.requests.settle(GRACE_S)
        await self.requests.endpoint.close()
