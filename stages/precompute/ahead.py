"""The shards of a run, each reserved and prepared in a thread while the one before it is computed.

In: a corpus, its pending rows, a loaded teacher, a writer. Out: shards, in the order of the corpus.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ...cache_schemas.keys import IntArray, KeyArray
from ..corpus.corpus import Corpus
from ..store.writing.writer import CacheWriter, Task, Work
from .shard_buffer import ShardBuffer
from .teachers.base import Examples, Prepared, Teacher


@dataclass(slots=True)
class Shard:
    """A shard's task, its examples as the teacher's model reads them, and room for its features, of
    which those of `left` examples are not stored yet."""

    task: Task
    prepared: Prepared
    buffer: ShardBuffer
    left: int
    started: float = 0.0
    looked: bool = False
    """Whether the next one has been looked for."""


class Ahead:
    """The next shard, on its way while one is computed; use as a context manager."""

    def __init__(
        self,
        corpus: Corpus,
        keys: KeyArray,
        work: Work,
        teacher: Teacher,
        writer: CacheWriter,
        preparing: AbstractContextManager[object],
    ) -> None:
        self._corpus, self._keys, self._work = corpus, keys, work
        self._teacher, self._writer, self._preparing = teacher, writer, preparing
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._next: Future[Shard | None] | None = None
        self._seconds = 0.0

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        if self._next is None or self._next.exception() is not None:
            return
        if (shard := self._next.result()) is not None:
            self._writer.release(shard.task.reservation)

    def look(self, shard: Shard) -> None:
        """Begin to reserve the shard after this one, if there is one at this moment, and to prepare
        it: once a shard, for each look takes the cache's lock.

        Not before half of this one is done, so that writers who share a corpus end together, unless
        the rest of it takes less than twice the time that this one took to prepare."""
        done = len(shard.prepared) - shard.left
        rest = (time.perf_counter() - shard.started) * shard.left / max(done, 1)
        if not shard.looked and (shard.left <= done or rest < 2 * self._seconds):
            shard.looked = True
            self._next = self._pool.submit(self._make)

    def ready_before(self, other: Future[Any]) -> Shard | None:
        """The next shard, if it is there before `other`; waits for one of them."""
        if self._next is None:
            return None
        wait((self._next, other), return_when=FIRST_COMPLETED)
        return self._result() if self._next.done() else None

    def take(self, finish: Callable[[], None]) -> Shard | None:
        """The next shard, or None; `finish` is called where nothing seems left: a shard that
        another writer took over from us is put back when its commit is refused."""
        shard = self._result()
        if shard is None:
            finish()
            if (task := self._work.reserve()) is not None:
                self._next = self._pool.submit(self._make, task)
                shard = self._result()
        return shard

    def _result(self) -> Shard | None:
        shard = None if self._next is None else self._next.result()
        self._next = None
        return shard

    def _make(self, task: Task | None = None) -> Shard | None:
        started = time.perf_counter()
        task = task or self._work.reserve_now()
        if task is None:
            return None
        try:
            examples = make_examples(self._corpus, self._keys, task.rows)
            # Those that are written: all of the teacher's, or those that the cache lacked.
            buffer = ShardBuffer(self._keys[task.rows], self._writer.manifest.spec.features)
            with self._preparing:
                prepared = self._teacher.prepare(examples)
        except BaseException:
            self._writer.release(task.reservation)
            raise
        self._seconds = time.perf_counter() - started
        return Shard(task, prepared, buffer, len(prepared))


def make_examples(corpus: Corpus, keys: KeyArray, rows: IntArray) -> Examples:
    """The examples of the given corpus rows."""
    return Examples(keys[rows], corpus.examples(rows))
