"""Assigns the chunks of a run to the workers of a Dask cluster and collects the outcomes.

In: the pending rows of a corpus, split into chunks. Out: an outcome for each chunk, as it
completes. A few chunks per worker are in flight at a time, so that memory stays bounded; a chunk
that other processes are computing is tried again when all others are done. Dask gives the chunk of
a lost worker to another; a worker whose device fails commits what it has, and the rest of its chunk
is sent again. When the run ends early for any reason, the workers are told to stop,
commit what they have computed, and are waited for. All events come through one queue, signals too
(`../signals.py`).
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, islice
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import RunError
from ...cache_schemas.keys import KeyArray
from ...cache_schemas.manifest import CommitRecord
from ...stages.corpus.corpus import Corpus
from ..messages import LOGGER, warn
from ..signals import Signal, heard_by
from .workers import TOPIC, Chunk, JobSpec, Outcome, answer, keys_table, load, release, stop

CHUNKS_PER_WORKER = 3
"""One being written, one being computed, and one being prepared."""

MOST_DEVICE_ERRORS = 3
"""For the same rows: as many as Dask allows workers to die."""

LOOK_S = 5.0
"""Seconds between checks for lost workers."""


class Chunks:
    """The pending rows of a corpus in corpus order, so many for each shard."""

    def __init__(
        self,
        corpus: Corpus,
        keys: KeyArray,
        pending: npt.NDArray[np.int64],
        rows_per_shard: int,
        first_shard: int,
        committed: Iterable[CommitRecord],
    ) -> None:
        """The lowest numbers from `first_shard` on that are not `committed` are ours."""
        self._corpus, self._keys, self._pending = corpus, keys, pending
        self._size = rows_per_shard
        taken = {record.shard: keys_table(record) for record in committed}
        self._unrelated = frozenset(taken.values())
        free = (number for number in count(first_shard) if number not in taken)
        self._shards = list(islice(free, len(self)))

    def __len__(self) -> int:
        return -(-len(self._pending) // self._size)

    def rows(self, number: int) -> int:
        """Number of rows in a chunk."""
        return len(self._indices(number))

    def _indices(self, number: int) -> npt.NDArray[np.int64]:
        return self._pending[number * self._size : (number + 1) * self._size]

    def cut(self, number: int, waits: bool) -> Chunk:
        """A chunk with its own copy of its rows."""
        indices = self._indices(number)
        corpus = replace(self._corpus.take(indices), skipped=())
        shard = self._shards[number]
        return Chunk(number, corpus, self._keys[indices], shard, self._unrelated, waits)

    def finished(self, outcome: Outcome) -> None:
        """The shards of a chunk that is done: they hold no key of another."""
        self._unrelated |= {keys_table(record) for record, _, _ in outcome.shards}


@dataclass(frozen=True, slots=True)
class _Sent:
    """A chunk on its way, and the future of its outcome."""

    number: int
    waits: bool
    future: Any


class Dispatch:
    """The chunks of a run in flight. `finished` is called with each outcome, `advance` with rows
    that are done, `waiting` with rows if other processes are computing all that is left."""

    def __init__(
        self,
        client: Any,
        job_spec: JobSpec,
        chunks: Chunks,
        finished: Callable[[Outcome], None],
        advance: Callable[[int], None],
        waiting: Callable[[int], None],
    ) -> None:
        """`client` is a `distributed.Client`."""
        self._client, self._job_spec, self._chunks = client, job_spec, chunks
        self._finished, self._advance, self._waiting = finished, advance, waiting
        self._to_send = deque((number, False) for number in range(len(chunks)))
        self._sent: dict[str, _Sent] = {}
        self._tries = [0] * len(chunks)
        self._device_errors = [0] * len(chunks)
        self._news: SimpleQueue[Any] = SimpleQueue()
        self._rows = [0] * len(chunks)
        self._alone = False

    def run(self) -> None:
        """Until all chunks are done. Raises the first error of a worker, RunError if the cluster
        fails, and what the handler of a signal raises."""
        self._client.subscribe_topic(TOPIC, lambda event: self._news.put(event[1]))
        with heard_by(self._news.put, patience=2):
            try:
                while self._to_send or self._sent:
                    self._send()
                    self._take(self._next())
            except BaseException as error:
                self._stop(error)
                raise
            finally:
                self._have_all(release)

    def _send(self) -> None:
        room = CHUNKS_PER_WORKER * max(1, len(self._client.nthreads())) - len(self._sent)
        for _ in range(min(room, len(self._to_send))):
            number, waits = self._to_send.popleft()
            chunk = self._chunks.cut(number, waits)
            self._tries[number] += 1
            key = f"armada-{self._job_spec.run_id}-{number}-{self._tries[number]}"
            future = self._client.submit(answer, self._job_spec, chunk, key=key, pure=False)
            self._sent[key] = _Sent(number, waits, future)
            future.add_done_callback(self._news.put)
        if all(sent.waits for sent in self._sent.values()):
            self._waiting(sum(self._chunks.rows(sent.number) for sent in self._sent.values()))

    def _next(self) -> Any:
        """The next news: a future that is done, progress, or a signal."""
        while True:
            with suppress(Empty):
                return self._news.get(timeout=LOOK_S)
            alone = not self._client.nthreads()
            if alone and not self._alone:
                warn("all workers are lost; waiting for one")
            self._alone = alone

    def _take(self, news: Any) -> None:
        if isinstance(news, Signal):
            news.act()
        elif isinstance(news, dict):
            if news["run"] == self._job_spec.run_id:
                self._advance_to(news["chunk"], news["rows"])
        else:
            self._take_outcome(self._sent.pop(news.key))

    def _take_outcome(self, sent: _Sent) -> None:
        outcome = _outcome(sent.future)
        self._finished(outcome)
        if outcome.error is not None:
            raise outcome.error
        if outcome.device_error is not None:
            self._send_again(sent, outcome.device_error)
        elif outcome.unfinished:
            self._to_send.append((sent.number, True))
        else:
            self._chunks.finished(outcome)
            self._advance_to(sent.number, self._chunks.rows(sent.number))

    def _send_again(self, sent: _Sent, device_error: str) -> None:
        """After a device failed; raises RunError if one did so too often for the same rows."""
        self._device_errors[sent.number] += 1
        if self._device_errors[sent.number] > MOST_DEVICE_ERRORS:
            raise RunError(
                f"{device_error}; the devices of {self._device_errors[sent.number]} workers failed "
                "on the same rows; all committed shards are kept"
            )
        warn(f"{device_error}; the worker is started again, and its rows are computed by another")
        self._to_send.append((sent.number, sent.waits))

    def _advance_to(self, number: int, rows: int) -> None:
        """A chunk that is computed again, after its worker was lost, does not count twice."""
        new = max(0, min(rows, self._chunks.rows(number)) - self._rows[number])
        self._rows[number] += new
        self._advance(new)

    def _stop(self, error: BaseException) -> None:
        """Have the workers commit what they have computed, and wait for them."""
        if isinstance(error, KeyboardInterrupt):
            LOGGER.info("stopping; Ctrl-C again drops shards being computed")
        self._have_all(stop)
        while self._sent and self._client.status == "running":
            try:
                news = self._news.get(timeout=LOOK_S)
            except Empty:
                if not self._client.nthreads():
                    return
                continue
            if isinstance(news, Signal):
                return
            if not isinstance(news, dict):
                # The error that ends the run is known; further ones do not help.
                with suppress(Exception):
                    self._finished(_outcome(self._sent.pop(news.key).future))

    def _have_all(self, end: Callable[[str], None]) -> None:
        """Have every worker that can be reached stop, or forget, this run."""
        if self._client.status == "running":
            self._client.run(end, self._job_spec.run_id, on_error="ignore")


def load_on_one(client: Any, job_spec: JobSpec) -> None:
    """Load the run's teacher on one of the workers; raises what it raises there."""
    key = f"armada-{job_spec.run_id}-load"
    outcome = _outcome(client.submit(load, job_spec, key=key, pure=False))
    if outcome.error is not None:
        raise outcome.error
    if outcome.device_error is not None:
        raise RunError(outcome.device_error)


def _outcome(future: Any) -> Outcome:
    from distributed import KilledWorker

    if future.cancelled():
        raise RunError(
            "dask: the connection to the scheduler is lost; all committed shards are kept; run the "
            "command again"
        )
    try:
        outcome: Outcome = future.result()
    except KilledWorker as cause:
        raise RunError(
            f"dask: {cause.allowed_failures + 1} workers died on the same rows, the last was "
            f"{cause.last_worker.address}; all committed shards are kept; too little memory?"
        ) from cause
    return outcome
