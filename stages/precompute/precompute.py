"""Stage 1: unique examples that are not cached yet -> shards -> teacher batches -> commits.

    precompute -> _encode_shard -> _compute_shard -> _start

In: a corpus, its pending rows, a loaded teacher, a writer. Out: committed shards. Shards are cut
from the pending rows in corpus order, batches inside a shard from examples of one bucket; so
neither the batch size nor an interruption changes what is stored. If the computation stops for any
reason, rows computed so far are committed before the error is raised.

The device waits for none of the rest. Beside the thread that gives it batches, one prepares the
next shard (`_Ahead`), one takes outputs into the shard's buffer (`_Storing`), and one writes the
shard before (`_Committer`). Other processes may do the same to the same cache: each shard is
reserved before it is computed (`store/writing/writer.py`). Several threads of a process may do it
with one teacher: then the shard of one is prepared, and that of another written, while a third has
the device (`EncodingRun.turn`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ...cache_schemas.errors import ReservationLostError, TeacherOutputError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ...cache_schemas.manifest import CommitRecord
from ..corpus.corpus import Corpus
from ..matrix_products import matrix_products
from ..memory import free_cached_memory, is_out_of_memory
from ..store.writing.writer import CacheWriter, Task, Work
from .batching import BatchCounts, BatchSizes
from .shard_buffer import ShardBuffer
from .teachers.base import Answers, Example, Outputs, Prepared, Teacher

Advance = Callable[[int], None]
Committed = Callable[[CommitRecord, float, int], None]
"""Called after each commit with the shard, teacher seconds and truncated examples."""


@dataclass(slots=True)
class EncodingRun:
    """Settings that may change between runs without changing an output, and what is counted.

    device: where the teacher computes; preparing, turn: held while examples are prepared, and while
    a shard is computed, by threads that share a teacher; clock: one for all of them."""

    sizes: BatchSizes
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    counts: BatchCounts = field(default_factory=BatchCounts)
    skip_bad_rows: bool = False
    advance: Advance = lambda rows: None
    committed: Committed = lambda record, seconds, truncated: None
    skipped: list[str] = field(default_factory=list)
    preparing: AbstractContextManager[object] = field(default_factory=nullcontext)
    turn: Callable[[], AbstractContextManager[object]] = nullcontext
    clock: "Clock" = field(default_factory=lambda: Clock())


def precompute(
    corpus: Corpus,
    keys: KeyArray,
    work: Work,
    teacher: Teacher,
    writer: CacheWriter,
    encoding: EncodingRun,
) -> None:
    """Compute the rows of `corpus`, with keys [N, 16], that `work` assigns, and commit them.

    Raises TeacherOutputError for a non-finite output (unless bad rows are skipped), StorageError if
    the disk fails, RunError when one example does not fit into memory."""
    with (
        _Committer(writer, work, teacher, encoding.committed) as committer,
        _Ahead(corpus, keys, work, teacher, writer, encoding.preparing) as ahead,
        _Storing() as storing,
    ):
        while (shard := ahead.take(committer.wait)) is not None:
            _encode_shard(corpus, shard, ahead.look, teacher, encoding, storing, committer)
        encoding.clock.count(encoding.counts)


def _matrix_products_of(teacher: Teacher) -> AbstractContextManager[None]:
    precision: Any = teacher.spec.settings.get("matmul_precision", "highest")
    return matrix_products(precision)


class Clock:
    """Counts the seconds of a device, each once, whoever counts them."""

    def __init__(self) -> None:
        self._counted, self._guard = time.perf_counter(), threading.Lock()

    def count(self, counts: BatchCounts) -> None:
        """Add those that have passed since the last call, or since it was made."""
        with self._guard:
            before, self._counted = self._counted, time.perf_counter()
            counts.seconds += self._counted - before


class _Moment:
    """A point in the work of a device: now on a CPU; on a CUDA device, when it is done with what
    it was given by now."""

    def __init__(self, device: torch.device) -> None:
        self._time, self._event = time.perf_counter(), None
        self._known = device.type in ("cpu", "cuda")
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def until(self, end: "_Moment") -> float:
        """Seconds up to a later one; waits for it. 0 on a device of another kind."""
        if self._event is None or end._event is None:
            return end._time - self._time if self._known else 0.0
        end._event.synchronize()
        milliseconds: float = self._event.elapsed_time(end._event)
        return milliseconds / 1000


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard's task, its examples as the teacher's model reads them, and room for its features."""

    task: Task
    prepared: Prepared
    buffer: ShardBuffer


class _Ahead:
    """The shards of a run, each prepared in a thread while the one before it is computed.

    The next one is reserved no sooner than half of the present one is done, so that writers who
    share a corpus end together."""

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
        self._next: Future[_Shard | None] | None = None

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        if self._next is None or self._next.exception() is not None:
            return
        if (shard := self._next.result()) is not None:
            self._writer.release(shard.task.reservation)

    def look(self) -> None:
        """Begin to reserve the next shard, if there is one at this moment, and to prepare it: once
        a shard, for each look takes the cache's lock."""
        if self._next is None:
            self._next = self._pool.submit(self._look)

    def take(self, wait: Callable[[], None]) -> _Shard | None:
        """The next shard, or None; `wait` is called where nothing seems left: a shard that another
        writer took over from us is put back when its commit is refused."""
        shard = self._result()
        if shard is None:
            wait()
            if (task := self._work.reserve()) is not None:
                self._next = self._pool.submit(self._prepare, task)
                shard = self._result()
        return shard

    def _result(self) -> _Shard | None:
        shard = None if self._next is None else self._next.result()
        self._next = None
        return shard

    def _look(self) -> _Shard | None:
        task = self._work.reserve_now()
        return None if task is None else self._prepare(task)

    def _prepare(self, task: Task) -> _Shard | None:
        try:
            examples = make_examples(self._corpus, self._keys, task.rows)
            # Those that are written: all of the teacher's, or those that the cache lacked.
            buffer = ShardBuffer(examples, self._writer.manifest.spec.features)
            with self._preparing:
                return _Shard(task, self._teacher.prepare(examples), buffer)
        except BaseException:
            self._writer.release(task.reservation)
            raise


def make_examples(corpus: Corpus, keys: KeyArray, rows: IntArray) -> list[Example]:
    """The examples of the given corpus rows."""
    together, size = keys[rows].tobytes(), keys.shape[1]
    return [
        Example(together[number * size : (number + 1) * size], segments)
        for number, segments in enumerate(corpus.examples(rows))
    ]


def _encode_shard(
    corpus: Corpus,
    shard: _Shard,
    look_ahead: Callable[[], None],
    teacher: Teacher,
    encoding: EncodingRun,
    storing: "_Storing",
    committer: "_Committer",
) -> None:
    seconds = 0.0
    try:
        with encoding.turn(), _matrix_products_of(teacher):
            started = time.perf_counter()
            try:
                _compute_shard(corpus, shard, look_ahead, teacher, encoding, storing)
            finally:
                storing.drop_errors()
                seconds = time.perf_counter() - started
    finally:
        committer.commit(shard, seconds)


def _compute_shard(
    corpus: Corpus,
    shard: _Shard,
    look_ahead: Callable[[], None],
    teacher: Teacher,
    encoding: EncodingRun,
    storing: "_Storing",
) -> None:
    task, prepared = shard.task, shard.prepared
    left = len(prepared)

    def stored(batches: Iterator[_Stored]) -> None:
        nonlocal left
        for batch in batches:
            for row, problem in batch.bad.items():
                where = corpus.where(int(task.rows[row]))
                _refuse_or_skip(where, problem, prepared.examples[row], encoding)
            encoding.counts.busy_seconds += batch.busy_s
            bucket = int(prepared.buckets[batch.rows[0]])
            encoding.sizes.measured(bucket, len(batch.rows), batch.busy_s)
            encoding.clock.count(encoding.counts)
            encoding.advance(len(batch.rows))
            left -= len(batch.rows)
            if 2 * left <= len(prepared):
                look_ahead()

    for batch in _started(teacher, prepared, encoding):
        stored(storing.put(shard.buffer, batch))
    stored(storing.rest())


@dataclass(frozen=True, slots=True)
class _Started:
    """A batch that the device has begun: rows of the shard, its outputs to come, and the points
    before and behind it."""

    rows: IntArray
    outputs: Outputs
    begin: _Moment
    end: _Moment


def _started(teacher: Teacher, prepared: Prepared, encoding: EncodingRun) -> Iterator[_Started]:
    """All batches, each as soon as the device has begun it."""
    for rows in encoding.sizes.batches_of(prepared, encoding.counts):
        batch = prepared.take(rows)
        begin = _Moment(encoding.device)
        outputs = _start(teacher, batch)
        if outputs is None:
            encoding.counts.refused += 1
        else:
            yield _Started(rows, outputs, begin, _Moment(encoding.device))


def _start(teacher: Teacher, batch: Prepared) -> Outputs | None:
    """The outputs to come, or None if the batch did not fit into memory."""
    try:
        with torch.inference_mode():
            return teacher.start(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_cached_memory()  # outside the handler the failed call's tensors are free
    return None


def _refuse_or_skip(where: str, problem: str, example: Example, encoding: EncodingRun) -> None:
    text = " | ".join(example.segments)
    problem = f"{where}: {problem} for {text[:80]!r}"
    remedy = "try dtype=float32 or store_dtype=float32, or " if "is not finite" in problem else ""
    if not encoding.skip_bad_rows:
        raise TeacherOutputError(
            f"{problem}; committed shards are kept; {remedy}set skip_bad_rows=true to skip such "
            "examples"
        )
    encoding.skipped.append(problem)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Rows of a shard whose outputs have been kept, row -> the problem of one that was not, and the
    seconds of the device."""

    rows: IntArray
    bad: dict[int, str]
    busy_s: float


class _Storing:
    """Takes outputs into a shard's buffer, in a thread, in order: to wait for the device, to copy
    and to code what it computed are no matter of the one that gives it batches. Two batches are
    on their way at most."""

    _MOST = 2

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._running: deque[Future[_Stored]] = deque()

    def __enter__(self) -> "_Storing":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def put(self, buffer: ShardBuffer, batch: _Started) -> Iterator[_Stored]:
        """Take a batch; yields those that have been stored by now, raises what went wrong."""
        self._running.append(self._pool.submit(self._store, buffer, batch))
        while self._running and (len(self._running) > self._MOST or self._running[0].done()):
            yield self._running.popleft().result()

    def rest(self) -> Iterator[_Stored]:
        """Wait for all batches."""
        while self._running:
            yield self._running.popleft().result()

    def drop_errors(self) -> None:
        """Wait for all batches, after an error: what is whole of them is kept."""
        while self._running:
            self._running.popleft().exception()

    @staticmethod
    def _store(buffer: ShardBuffer, batch: _Started) -> _Stored:
        with torch.inference_mode():
            answers = batch.outputs()
        busy_s = batch.begin.until(batch.end)
        return _Stored(batch.rows, buffer.put(batch.rows, answers), busy_s)


@dataclass(frozen=True, slots=True)
class Probe:
    """Estimates from a few examples: seconds per example, and its length on each axis."""

    seconds: float
    lengths: dict[str, float]


def probe(teacher: Teacher, examples: Sequence[Example]) -> Probe:
    """Time one batch of all `examples`, after an untimed warm-up pass."""
    encoding = EncodingRun(BatchSizes(len(examples)))
    with _matrix_products_of(teacher):
        for _ in range(2):
            lengths = dict.fromkeys(teacher.spec.axes, 0)
            started = time.perf_counter()
            for batch in _started(teacher, teacher.prepare(examples), encoding):
                answers: Answers = batch.outputs()
                for feature in _one_of_each_axis(teacher):
                    lengths[feature.axis or ""] += sum(map(len, answers.features[feature.name]))
            seconds = time.perf_counter() - started
    count = len(examples)
    return Probe(seconds / count, {axis: found / count for axis, found in lengths.items()})


def _one_of_each_axis(teacher: Teacher) -> list[FeatureSpec]:
    return list({spec.axis: spec for spec in teacher.spec.features if spec.axis}.values())


class _Committer:
    """Commits in a thread, one shard at a time; an error of the thread surfaces at the next
    commit or at the end."""

    def __init__(
        self, writer: CacheWriter, work: Work, teacher: Teacher, committed: Committed
    ) -> None:
        self._writer, self._work = writer, work
        self._teacher, self._committed = teacher, committed
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def commit(self, shard: _Shard, seconds: float) -> None:
        """Hand over the finished rows of a shard; waits for the shard before it."""
        try:
            self.wait()
        except BaseException:
            self._writer.release(shard.task.reservation)
            raise
        if len(shard.buffer):
            self._running = self._pool.submit(self._write, shard, seconds)
        else:
            self._writer.release(shard.task.reservation)

    def _write(self, shard: _Shard, seconds: float) -> None:
        finished = shard.buffer.finished()
        try:
            record = self._writer.commit(
                finished.keys,
                finished.features,
                finished.truncated,
                tables=finished.tables,
                reservation=shard.task.reservation,
                fidelity=finished.fidelity,
            )
        except ReservationLostError:
            self._work.put_back(shard.task)
        else:
            self._teacher.committed(finished.keys)
            self._committed(record, seconds, int(finished.truncated.sum()))

    def wait(self) -> None:
        """Wait for the last commit; raises its error."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
