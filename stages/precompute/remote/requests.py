"""Requests in flight, in one event loop: as many as the server takes, each until it is answered.

    put -> level -> rates, budget -> endpoint -> read -> kept on the disk -> future

A reply counts when it is on the disk (`store/writing/replies.py`): none that was used is requested
again, whenever the process is killed. A failure that may pass is tried again, by exponential waits
with full jitter, for `patience_s`; the request keeps its place in flight meanwhile, so that a
server that is down gets no more requests for it. What ends the run ends it once: requests in
flight are waited for and kept, for they are paid, and no other is begun.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from ....cache_schemas.errors import ArmadaError, RunError
from ....cache_schemas.manifest import RequestFigures
from ...store.writing.replies import KeptReplies
from .endpoint import BusyError, Endpoint, FailureError, Received, TextRefusedError
from .options import Limits
from .pacing import Level, PerMinute
from .wire import MalformedReplyError, Served, Usage, read_served, read_usage

CHARACTERS_PER_TOKEN = 4
"""About as many as English has; for the expected cost of a request, not for what it was."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
MALFORMED_TRIES = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query:
    """The query for one example: `key` is the example's, followed by whatever tells several
    queries for it apart."""

    key: bytes
    content: Any


class Api(Protocol):
    """One kind of request: what is sent, and what a reply means."""

    path: str
    together: int
    """The most queries of one request."""

    def fit(self, one: Query, other: Query) -> bool:
        """Whether one request may have both."""

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """The document that is sent."""

    def read(self, document: Any, count: int) -> Sequence[Any]:
        """The answers to `count` queries in a reply. Raises MalformedReplyError."""

    def requests(self, queries: int) -> int:
        """How many requests so many queries are, at most."""

    def expected(self, queries: Sequence[Query]) -> Usage:
        """About how many tokens a request takes."""


def together(api: Api, items: Iterable[T], query: Callable[[T], Query]) -> Iterator[list[T]]:
    """Neighbours of which one request may have the queries."""
    part: list[T] = []
    for item in items:
        if part and (len(part) == api.together or not api.fit(query(part[0]), query(item))):
            yield part
            part = []
        part.append(item)
    if part:
        yield part


@dataclass(slots=True)
class RequestCounts:
    """The requests of a run so far: fields of `RequestFigures`. kept: examples whose reply had been
    kept by an earlier one; cost: by the prices of the job."""

    requests: int = 0
    repeated: int = 0
    kept: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def figures(self, served: Served) -> RequestFigures:
        """As they are now, of the model that answers."""
        return RequestFigures(
            **asdict(self), model=served.model, system_fingerprint=served.system_fingerprint
        )


@dataclass(slots=True)
class Request:
    """The queries of one request, and the future of each answer."""

    queries: Sequence[Query]
    futures: Sequence["Future[Any]"]

    def each_alone(self) -> "list[Request]":
        """A request for each query."""
        pairs = zip(self.queries, self.futures, strict=True)
        return [Request([query], [future]) for query, future in pairs]

    def fail(self, error: BaseException) -> None:
        """There will be no answers."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


@dataclass(slots=True)
class Requests:
    """All requests to one server, by one API. Everything here runs in one loop."""

    api: Api
    endpoint: Endpoint
    level: Level
    requests_per_minute: PerMinute
    tokens_per_minute: PerMinute
    limits: Limits
    counts: RequestCounts
    replies: KeptReplies | None
    served: Callable[[Served], None]
    """Takes note of the model that answered; raises RunError if it must not be that one."""
    _queue: "asyncio.Queue[Request]" = field(default_factory=asyncio.Queue)
    _running: set["asyncio.Task[None]"] = field(default_factory=set)
    _over: BaseException | None = None
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _quiet_until: float = 0.0
    _expected_cost: float = 0.0
    """Cost of the requests in flight, as expected."""

    def put(self, requests: Sequence[Request]) -> None:
        """Send them as soon as there is room."""
        for request in requests:
            if self._over is None:
                self._queue.put_nowait(request)
            else:
                request.fail(self._over)

    async def run(self) -> None:
        """Begin requests as they are put, until cancelled."""
        while True:
            await self.level.enter()  # first: no request is ever between queue and task
            request = await self._queue.get()
            task = asyncio.get_running_loop().create_task(self._serve(request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def end(self, reason: BaseException) -> None:
        """Begin no request any more, for that reason; those in flight go on."""
        if self._over is None:
            self._over = reason
            self._is_over.set()
        while not self._queue.empty():
            self._queue.get_nowait().fail(self._over)

    async def settle(self, patience_s: float) -> None:
        """After `end`: wait for what is in flight, for so many seconds."""
        running = set(self._running)
        if running:
            await asyncio.wait(running, timeout=patience_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _serve(self, request: Request) -> None:
        """Send a request, which has a place in flight, until it is answered or cannot be."""
        try:
            received, found = await self._answered(request)
            self.level.replied()
        except TextRefusedError as refused:
            if len(request.queries) > 1:
                self.put(request.each_alone())  # the server does not say which of them it was
            else:
                self.counts.refused += 1
                request.fail(refused)
            return
        except BaseException as error:
            self.end(error if isinstance(error, ArmadaError) else RunError(f"{error!r}"))
            request.fail(self._over or error)
            if isinstance(error, (ArmadaError, asyncio.CancelledError)):
                return
            raise
        finally:
            self.level.leave()
        await self._keep(request, received, found)

    async def _keep(self, request: Request, received: Received, found: Sequence[Any]) -> None:
        try:
            if self.replies is not None:
                kept = self.replies.keep([each.key for each in request.queries], received.body)
                await asyncio.wrap_future(kept)
        except BaseException as error:
            self.end(error)
            request.fail(error)
            return
        for future, answer in zip(request.futures, found, strict=True):
            future.set_result(answer)

    async def _answered(self, request: Request) -> tuple[Received, Sequence[Any]]:
        clock = asyncio.get_running_loop().time
        until, failures, malformed = clock() + self.limits.patience_s, 0, 0
        while True:
            try:
                return await self._attempt(request)
            except FailureError as failure:
                problem: Exception = failure
                if isinstance(failure, BusyError):
                    self.level.refused()
                    self._quiet_until = max(self._quiet_until, clock() + (failure.wait_s or 0.0))
                wait_s = failure.wait_s or 0.0
            except MalformedReplyError as failure:
                problem, wait_s = failure, 0.0
                malformed += 1
            failures += 1
            self.counts.repeated += 1
            highest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 10))
            wait_s += random.uniform(0, highest)
            if malformed >= MALFORMED_TRIES or clock() + wait_s > until:
                where = f"{self.endpoint.host}{self.api.path}"
                raise RunError(f"{where}: {problem}, {failures} times; {_GOES_ON}") from problem
            await self._sleep(wait_s)

    async def _sleep(self, seconds: float) -> None:
        """Sleep; raises what ends the run as soon as it ends."""
        if self._over is None and seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), seconds)
        if self._over is not None:
            raise self._over

    async def _attempt(self, request: Request) -> tuple[Received, Sequence[Any]]:
        clock = asyncio.get_running_loop().time
        await self._sleep(self._quiet_until - clock())
        usage = self.api.expected(request.queries)
        expected_tokens = float(usage.input_tokens + usage.output_tokens)
        await self.requests_per_minute.take(1)
        await self.tokens_per_minute.take(expected_tokens)
        expected_cost = self._admit(usage)
        try:
            received = await self.endpoint.post(self.api.path, self.api.body(request.queries))
        finally:
            self._expected_cost -= expected_cost
        used = read_usage(received.document)
        self.tokens_per_minute.correct(expected_tokens, used.input_tokens + used.output_tokens)
        self.counts.input_tokens += used.input_tokens
        self.counts.output_tokens += used.output_tokens
        self.counts.cost += self.limits.cost_of(used.input_tokens, used.output_tokens)
        self.served(read_served(received.document))
        return received, self.api.read(received.document, len(request.queries))

    def _admit(self, expected: Usage) -> float:
        """Count a request, unless it is more than the run may take; what it will cost."""
        if self._over is not None:
            raise self._over
        cost = self.limits.cost_of(expected.input_tokens, expected.output_tokens)
        if self.limits.requests is not None and self.counts.requests >= self.limits.requests:
            raise RunError(f"max_requests={self.limits.requests}: so many were made; {_GOES_ON}")
        spent = self.counts.cost + self._expected_cost
        if self.limits.cost is not None and spent + cost > self.limits.cost:
            raise RunError(
                f"max_cost={self.limits.cost:g}: {spent:.4g} are spent, and the next request costs "
                f"about {cost:.2g}; {_GOES_ON}"
            )
        self.counts.requests += 1
        self._expected_cost += cost
        return cost


_GOES_ON = "what was answered is kept; run the same command again to go on"
