"""The batch service of a provider: a file of requests, answered within a day, for less.

    queries -> file of requests -> batch -> file of replies -> kept on the disk

A batch brings replies and nothing else: the run that follows finds them kept, and sends alone what
no batch answered. Each batch is noted on the disk before it is made, under a name of our own that
the service keeps with it. So after a kill at any moment the same command waits for the batches that
were made, those included whose number never arrived, and none is paid twice.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ....cache_schemas.errors import DamagedCacheError, RunError
from ...store.writing.replies import KeptReplies
from .endpoint import Endpoint, FailureError, TextRefusedError
from .options import Limits
from .requests import FIRST_WAIT_S, LONGEST_WAIT_S, Api, Query, RequestCounts, together
from .wire import (
    MalformedReplyError,
    Served,
    a_list,
    a_text,
    an_object,
    optional,
    read_served,
    read_usage,
)

MOST_REQUESTS, MOST_BYTES = 50_000, 64 * 2**20
"""Limits of one batch: OpenAI takes 50,000 requests, and 200 MB."""
FIRST_POLL_S, LONGEST_POLL_S = 5.0, 60.0
OUR_NAME = "armada"
"""Field of a batch's metadata."""

_ENDED = {"completed", "expired", "cancelled", "failed"}
_LOGGER = logging.getLogger("armada")
T = TypeVar("T")


class Batch(BaseModel):
    """A batch as it is noted: our name of it, the service's once it is known, and the keys of each
    request in hexadecimal digits."""

    model_config = ConfigDict(extra="forbid")

    name: str
    id: str | None = None
    keys: list[list[str]]
    cost: float = 0.0
    """As expected, by the prices."""


_NOTES = TypeAdapter(list[Batch])


@dataclass(slots=True)
class _File:
    """The requests of a batch to be made: the keys and the line of each, and what they are
    expected to cost."""

    keys: list[list[str]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    cost: float = 0.0

    def add(self, keys: list[str], url: str, body: bytes) -> None:
        """Append a request; `body`: its document."""
        head = {"custom_id": str(len(self.lines)), "method": "POST", "url": url}
        line = json.dumps(head).encode()[:-1] + b', "body": ' + body + b"}\n"
        self.keys.append(keys)
        self.lines.append(line)
        self.size += len(line)


@dataclass(slots=True)
class Batches:
    """The batches of one teacher; belongs to one event loop."""

    api: Api
    endpoint: Endpoint
    limits: Limits
    counts: RequestCounts
    replies: KeptReplies
    served: Callable[[Served], None]
    """As of `Requests`."""
    _noted: list[Batch] = field(default_factory=list)
    _left: set[bytes] = field(default_factory=set)
    """Keys of requests that failed in a batch."""

    async def run(self, queries: Callable[[], Iterable[Query]]) -> None:
        """Have all queries answered that have no kept reply, but those that fail; `queries` gives
        them anew each time. Raises RunError where the service does not go on."""
        try:
            self._noted = self._read()
            await self._find_again()
            while True:
                for file in self._files(queries()):
                    await self._make(file)
                if not self._noted:
                    return
                await self._fetch_all()
        except TextRefusedError as refused:
            raise RunError(f"{self.endpoint.host}/batches: {refused}") from refused
        except MalformedReplyError as malformed:
            raise RunError(f"{self.endpoint.host}/batches: {malformed}") from malformed
        finally:
            await self.endpoint.close()

    def _read(self) -> list[Batch]:
        noted = self.replies.noted()
        try:
            return [] if noted is None else _NOTES.validate_json(noted)
        except ValidationError as cause:
            raise DamagedCacheError(
                f"{self.replies.note_file}: is no list of batches; remove it, and their replies "
                "are paid again"
            ) from cause

    def _note(self) -> None:
        self.replies.note(_NOTES.dump_json(self._noted) if self._noted else None)

    async def _find_again(self) -> None:
        """Find batches whose number was never noted: on the service by our name, or never made."""
        unknown = {batch.name: batch for batch in self._noted if batch.id is None}
        if unknown:
            async for found in self._listed():
                if (batch := unknown.pop(_name_of(found), None)) is not None:
                    batch.id = _id_of(found)
                if not unknown:
                    break
            self._noted = [batch for batch in self._noted if batch.id is not None]
            self._note()

    async def _listed(self) -> AsyncIterator[dict[str, Any]]:
        after = ""
        while True:
            page = await self._get(f"/batches?limit=100{after}")
            found = [an_object(each, "data") for each in a_list(page.get("data"), "data")]
            for each in found:
                yield each
            if not found or not page.get("has_more"):
                return
            after = f"&after={_id_of(found[-1])}"

    def _files(self, queries: Iterable[Query]) -> Iterator["_File"]:
        """The requests for what is neither kept nor under way nor failed."""
        under_way = {bytes.fromhex(key) for b in self._noted for keys in b.keys for key in keys}
        wanted = (
            query
            for query in queries
            if query.key not in self.replies
            and query.key not in under_way
            and query.key not in self._left
        )
        file = _File()
        for part in together(self.api, wanted, lambda query: query):
            body = json.dumps(self.api.body(part)).encode()
            if file.lines and (
                len(file.lines) == MOST_REQUESTS or file.size + len(body) > MOST_BYTES
            ):
                yield file
                file = _File()
            expected = self.api.expected(part)
            file.cost += self.limits.cost_of(expected.input_tokens, expected.output_tokens)
            file.add([query.key.hex() for query in part], f"/v1{self.api.path}", body)
        if file.lines:
            yield file

    async def _make(self, made: "_File") -> None:
        self._admit(made)
        file = await self._uploaded(b"".join(made.lines))
        batch = Batch(name=secrets.token_hex(16), keys=made.keys, cost=made.cost)
        self._noted.append(batch)
        self._note()
        batch.id = await self._create(batch.name, file)
        self._note()
        self.counts.requests += len(made.keys)
        _LOGGER.info(f"batch {batch.id}: {len(made.keys):,} requests")

    def _admit(self, made: "_File") -> None:
        """Raises RunError for a batch that is more than the run may take."""
        before, limits = self.counts.requests, self.limits
        if limits.requests is not None and before + len(made.keys) > limits.requests:
            raise RunError(
                f"max_requests={limits.requests}: {before} were made, and the next batch has "
                f"{len(made.keys)}; raise it, or limit the rows"
            )
        spent = self.counts.cost + sum(batch.cost for batch in self._noted)
        if limits.cost is not None and spent + made.cost > limits.cost:
            raise RunError(
                f"max_cost={limits.cost:g}: {spent:.4g} are spent or under way, and the next batch "
                f"costs about {made.cost:.2g}; raise it, or limit the rows"
            )

    async def _create(self, name: str, file: str) -> str:
        """The service's name of a new batch; made once, also where its reply is lost."""
        asked = {
            "input_file_id": file,
            "endpoint": f"/v1{self.api.path}",
            "completion_window": "24h",
            "metadata": {OUR_NAME: name},
        }

        async def made() -> Any:
            try:
                return (await self.endpoint.post("/batches", asked)).document
            except FailureError:
                async for found in self._listed():
                    if _name_of(found) == name:
                        return found
                raise

        return _id_of(an_object(await self._tried(made), "reply"))

    async def _fetch_all(self) -> None:
        """Wait for the noted batches, and keep their replies; none is noted afterwards."""
        wait_s, shown = FIRST_POLL_S, ""
        while self._noted:
            done = [_state(await self._get(f"/batches/{batch.id}")) for batch in self._noted]
            said = "; ".join(state.shown for state in done)
            if said != shown:
                _LOGGER.info(f"batches: {said}")
                shown = said
            for batch, state in zip([*self._noted], done, strict=True):
                if state.ended:
                    await self._fetch(batch, state)
                    wait_s = FIRST_POLL_S
            if self._noted:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_POLL_S)

    async def _fetch(self, batch: Batch, state: "_State") -> None:
        """Keep the replies of a batch that has ended, which is noted no longer."""
        answered = await self._keep_lines(batch, state.output) if state.output else 0
        self._noted.remove(batch)
        self._note()
        if state.status == "failed":
            raise RunError(f"{self.endpoint.host}: batch {batch.id} failed: {state.problem}")
        all_keys = [bytes.fromhex(key) for keys in batch.keys for key in keys]
        lacking = {key for key in all_keys if key not in self.replies}
        if state.status == "completed":
            self._left |= lacking
            if lacking:
                _LOGGER.warning(
                    f"batch {batch.id}: has no reply for {len(lacking):,} of {len(all_keys):,} "
                    "texts; they are sent one by one"
                )
        elif not answered:
            raise RunError(
                f"{self.endpoint.host}: batch {batch.id} ended without a reply ({state.status}); "
                "run the same command again, or without batch"
            )

    async def _keep_lines(self, batch: Batch, file: str) -> int:
        """Keep the replies of an output file; how many requests it answers."""

        async def kept() -> int:
            answered = 0
            waiting: list[Any] = []
            async for line in self.endpoint.lines(f"/files/{file}/content"):
                if (future := self._keep(batch, line)) is not None:
                    answered += 1
                    waiting.append(asyncio.wrap_future(future))
            await asyncio.gather(*waiting)
            return answered

        return await self._tried(kept)

    def _keep(self, batch: Batch, line: bytes) -> Any:
        """Keep one reply; None where there is none to keep."""
        try:
            item = an_object(json.loads(line), "line")
            keys = [bytes.fromhex(key) for key in batch.keys[int(item["custom_id"])]]
        except (ValueError, KeyError, IndexError, TypeError) as cause:
            raise MalformedReplyError(f"a line is no reply of batch {batch.id}") from cause
        response = optional(item.get("response"), "response", an_object) or {}
        if response.get("status_code") != 200:
            return None
        document = response.get("body")
        try:
            self.api.read(document, len(keys))
        except MalformedReplyError:
            return None
        used = read_usage(document)
        if all(key in self.replies for key in keys):
            return None  # of a fetch that was cut
        self.counts.input_tokens += used.input_tokens
        self.counts.output_tokens += used.output_tokens
        self.counts.cost += self.limits.cost_of(used.input_tokens, used.output_tokens)
        self.served(read_served(document))
        return self.replies.keep(keys, json.dumps(document).encode())

    async def _get(self, path: str) -> dict[str, Any]:
        async def document() -> dict[str, Any]:
            return an_object((await self.endpoint.get(path)).document, "reply")

        return await self._tried(document)

    async def _uploaded(self, content: bytes) -> str:
        async def file() -> str:
            reply = (await self.endpoint.upload("/files", content, "batch")).document
            return _id_of(an_object(reply, "reply"))

        return await self._tried(file)

    async def _tried(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call gives, tried again for `patience_s` where a failure may pass."""
        clock = asyncio.get_running_loop().time
        until, wait_s = clock() + self.limits.patience_s, FIRST_WAIT_S
        while True:
            try:
                return await call()
            except FailureError as failure:
                wait_s = max(min(2 * wait_s, LONGEST_WAIT_S), failure.wait_s or 0.0)
                if clock() + wait_s > until:
                    raise RunError(
                        f"{self.endpoint.host}: {failure}; batches are noted, run the same command "
                        "again to go on"
                    ) from failure
                self.counts.repeated += 1
            await asyncio.sleep(wait_s)


@dataclass(frozen=True, slots=True)
class _State:
    """How far a batch is."""

    status: str
    shown: str
    output: str | None
    problem: str

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


def _state(found: dict[str, Any]) -> _State:
    status = a_text(found.get("status"), "status")
    counts = optional(found.get("request_counts"), "request_counts", an_object) or {}
    errors = optional(found.get("errors"), "errors", an_object) or {}
    listed = optional(errors.get("data"), "errors.data", a_list) or [{}]
    return _State(
        status,
        f"{_id_of(found)} {status}, {counts.get('completed', 0)} of {counts.get('total', '?')}",
        optional(found.get("output_file_id"), "output_file_id", a_text),
        str(an_object(listed[0], "errors.data[0]").get("message", "without a reason"))[:300],
    )


def _id_of(found: dict[str, Any]) -> str:
    return a_text(found.get("id"), "id")


def _name_of(found: dict[str, Any]) -> str:
    metadata = optional(found.get("metadata"), "metadata", an_object) or {}
    return str(metadata.get(OUR_NAME, ""))
