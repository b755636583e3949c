"""Stage 1: unique examples that are not cached yet -> shards -> teacher batches -> commits.

    precompute -> _ask_shard -> _ask_batches -> _ask

What comes in: a corpus, its pending rows, a loaded teacher, a writer. What goes out: committed
shards. Shards are cut from the pending rows in corpus order, batches inside a shard from examples
of one bucket; so neither the batch size nor an interruption changes what is stored. When asking
stops for any reason, the answers that were already there are committed before the error goes on.
A thread writes one shard while the teacher answers the next.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ...cache_schemas.errors import RunError, TeacherOutputError
from ...cache_schemas.keys import KeyArray
from ..corpus.corpus import Corpus
from ..store.writer import CacheWriter
from .shard_buffer import FinishedRows, Places, ShardBuffer
from .teachers.base import Answers, Example, Teacher

Advance = Callable[[int], None]
Committed = Callable[[int, float, int], None]
"""Called after each commit with shard, teacher seconds and truncated examples."""


@dataclass(slots=True)
class Asking:
    """How to ask: what may change between runs without changing an answer."""

    batch_size: int
    skip_bad_rows: bool = False
    advance: Advance = lambda rows: None
    committed: Committed = lambda shard, seconds, truncated: None
    skipped: list[str] = field(default_factory=list)


def precompute(
    corpus: Corpus,
    keys: KeyArray,
    pending: npt.NDArray[np.int64],
    teacher: Teacher,
    writer: CacheWriter,
    asking: Asking,
) -> None:
    """Ask `teacher` about the `pending` rows of `corpus` and commit its answers.

    Raises TeacherOutputError for an answer that is not finite (unless bad rows are skipped),
    StorageError when the disk refuses, RunError when one example does not fit into memory."""
    size = writer.manifest.rows_per_shard
    with _Committer(writer, asking.committed) as committer:
        for start in range(0, len(pending), size):
            rows = pending[start : start + size]
            examples = make_examples(corpus, keys, rows)
            _ask_shard(corpus, rows, examples, teacher, asking, committer)


def make_examples(corpus: Corpus, keys: KeyArray, rows: npt.NDArray[np.int64]) -> list[Example]:
    """The examples of the given corpus rows."""
    return [
        Example(keys[row].tobytes(), segments)
        for row, segments in zip(rows, corpus.examples(rows), strict=True)
    ]


def _ask_shard(
    corpus: Corpus,
    rows: npt.NDArray[np.int64],
    examples: Sequence[Example],
    teacher: Teacher,
    asking: Asking,
    committer: "_Committer",
) -> None:
    buffer = ShardBuffer(examples, teacher.spec.features)
    started = time.perf_counter()
    try:
        for places, answers in _ask_batches(teacher, examples, asking):
            for place, feature in buffer.put(places, answers).items():
                _refuse_or_skip(corpus.where(int(rows[place])), feature, examples[place], asking)
            asking.advance(len(places))
    finally:
        committer.commit(buffer.finished(), time.perf_counter() - started)


def _refuse_or_skip(where: str, feature: str, example: Example, asking: Asking) -> None:
    text = " | ".join(example.segments)
    problem = f"{where}: the teacher's {feature!r} is not finite for {text[:80]!r}"
    if not asking.skip_bad_rows:
        raise TeacherOutputError(
            f"{problem}; all other answers so far are kept; try dtype=float32 or "
            "store_dtype=float32, or set skip_bad_rows=true to leave such examples out"
        )
    asking.skipped.append(problem)


def _ask_batches(
    teacher: Teacher, examples: Sequence[Example], asking: Asking
) -> Iterator[tuple[Places, Answers]]:
    """Batches of one bucket each, the longest first, so that memory runs out early or never."""
    buckets = np.asarray(teacher.buckets(examples))
    for bucket in np.unique(buckets)[::-1]:
        waiting = np.flatnonzero(buckets == bucket)
        while len(waiting):
            places = waiting[: asking.batch_size]
            answers = _ask(teacher, [examples[place] for place in places])
            if answers is None:
                asking.batch_size = _halved(len(places))
                continue
            yield places, answers
            waiting = waiting[len(places) :]


def _halved(batch_size: int) -> int:
    if batch_size == 1:
        raise RunError(
            "device memory: a single example does not fit; use a device with more memory, a "
            "smaller dtype, or smaller sizes of the teacher"
        )
    return batch_size // 2


def _ask(teacher: Teacher, examples: Sequence[Example]) -> Answers | None:
    """The answers, or None if the batch did not fit into device memory."""
    try:
        with torch.inference_mode():
            return teacher.encode(examples)
    except torch.OutOfMemoryError:
        pass  # outside the handler the failed call's tensors are free
    torch.cuda.empty_cache()
    return None


def probe(teacher: Teacher, examples: Sequence[Example]) -> float:
    """Seconds per example when asked about all `examples` at once; an untimed pass warms up."""
    for _ in range(2):
        started = time.perf_counter()
        for _ in _ask_batches(teacher, examples, Asking(len(examples))):
            pass
        seconds = time.perf_counter() - started
    return seconds / len(examples)


class _Committer:
    """Commits in a thread, one shard at a time; an error of the thread surfaces at the next
    commit or at the end."""

    def __init__(self, writer: CacheWriter, committed: Committed) -> None:
        self._writer = writer
        self._committed = committed
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
        finally:
            self._pool.shutdown()

    def commit(self, finished: FinishedRows, seconds: float) -> None:
        """Hand over the finished rows of a shard; waits for the shard before it."""
        self._wait()
        if len(finished.keys):
            self._running = self._pool.submit(self._write, finished, seconds)

    def _write(self, finished: FinishedRows, seconds: float) -> None:
        record = self._writer.commit(
            finished.keys, finished.features, finished.truncated, finished.tables
        )
        self._committed(record.shard, seconds, int(finished.truncated.sum()))

    def _wait(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
