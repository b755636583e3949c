"""Stage 1: unique examples that are not cached yet -> shards -> teacher batches -> commits.

    precompute -> encode_shards -> _start_shard -> _start

In: a corpus, its pending rows, a loaded teacher, a writer. Out: committed shards. Shards are cut
from the pending rows in corpus order, batches inside a shard from examples of one bucket; so
neither the batch size nor an interruption changes what is stored. If the computation stops for any
reason, rows computed so far are committed before the error is raised.

The device waits for none of the rest. Beside the thread that gives it batches, one prepares the
next shard (`ahead.py`), whose batches follow those of a shard without a gap; one takes outputs into
the shard's buffer (`_Storing`), and one writes the shard before (`_Committer`). Other processes may
do the same to the same cache: each shard is reserved before it is computed
(`store/writing/writer.py`). Several threads of a process may do it with one teacher: then the shard
of one is prepared, and that of another written, while a third has the device
(`EncodingRun.turn`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from ...cache_schemas.errors import ReservationLostError, TeacherOutputError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ...cache_schemas.manifest import CommitRecord
from ..corpus.corpus import Corpus
from ..memory import free_cached_memory, is_out_of_memory
from ..store.writing.writer import CacheWriter, Work
from .ahead import Ahead, Shard
from .batching import BatchCounts, BatchSizes
from .ranks import ALONE, Ranks, too_large
from .shard_buffer import BadRow
from .teachers.base import Answers, Example, Outputs, Prepared, Teacher, matrix_products_of

Advance = Callable[[int], None]
Committed = Callable[[CommitRecord, float, int], None]
"""Called after each commit with the shard, teacher seconds and truncated examples."""


@dataclass(slots=True)
class EncodingRun:
    """Settings that may change between runs without changing an output, and what is counted.

    device: where the teacher computes; preparing, turn: held while examples are prepared, and while
    shards are computed, by threads that share a teacher; clock: one for all of them; ranks: the
    processes that compute each batch together."""

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
    ranks: Ranks = ALONE


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
        Ahead(corpus, keys, work, teacher, writer, encoding.preparing) as ahead,
        _Storing(encoding.advance) as storing,
    ):
        feeding = _Feeding(corpus, teacher, encoding, ahead, storing, committer)
        while (shard := ahead.take(committer.wait)) is not None:
            feeding.encode_shards(shard)
        encoding.clock.count(encoding.counts)


class Clock:
    """Counts the seconds of a device, each once, whoever counts them."""

    def __init__(self) -> None:
        self._counted, self._guard = time.perf_counter(), threading.Lock()

    def count(self, counts: BatchCounts) -> None:
        """Add those that have passed since the last call, or since it was made."""
        with self._guard:
            before, self._counted = self._counted, time.perf_counter()
            counts.seconds += self._counted - before


_ELSEWHERE = torch.device("meta")
"""Stands for a device of another process, which is not timed."""


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


class _Feeding:
    """Gives the device batches: those of the next shard, if it is ready, while the last ones of a
    shard are still on their way. Each shard is committed when all of its outputs are stored."""

    def __init__(
        self,
        corpus: Corpus,
        teacher: Teacher,
        encoding: EncodingRun,
        ahead: Ahead,
        storing: "_Storing",
        committer: "_Committer",
    ) -> None:
        self._corpus, self._teacher, self._encoding = corpus, teacher, encoding
        self._ahead, self._storing, self._committer = ahead, storing, committer
        self._begun: deque[Shard] = deque()
        """Shards that are not handed to the committer yet, in order."""
        self._committed = 0.0

    def encode_shards(self, first: Shard) -> None:
        """Compute a shard, and those that are ready before the device is done. Whatever ends it,
        rows computed so far are committed."""
        shard: Shard | None = first
        self._begun.append(first)
        try:
            with self._encoding.turn(), matrix_products_of(self._teacher):
                try:
                    while shard is not None:
                        self._start_shard(shard)
                        if (shard := self._next()) is not None:
                            self._begun.append(shard)
                finally:
                    self._storing.drop_errors()
        finally:
            while self._begun:
                self._commit()

    def _next(self) -> Shard | None:
        while self._storing.running:
            if (shard := self._ahead.ready_before(self._storing.running[0])) is not None:
                return shard
            self._storing.wait()
        return None

    def _start_shard(self, shard: Shard) -> None:
        shard.started = time.perf_counter()
        for batch in _started(self._teacher, shard.prepared, self._encoding):
            self._storing.put(partial(self._store, shard, batch))

    def _store(self, shard: Shard, batch: "_Started") -> int:
        """Store a batch; returns how many rows it has."""
        with torch.inference_mode():
            answers = batch.outputs()
        busy_s = batch.begin.until(batch.end)
        for row, bad in shard.buffer.put(batch.rows, answers).items():
            where = self._corpus.where(int(shard.task.rows[row]))
            _refuse_or_skip(where, bad, shard.prepared.examples[row], self._encoding)
        counts = self._encoding.counts
        counts.busy_seconds += busy_s
        bucket = int(shard.prepared.buckets[batch.rows[0]])
        self._encoding.sizes.measured(bucket, len(batch.rows), busy_s)
        self._encoding.clock.count(counts)
        shard.left -= len(batch.rows)
        if shard is self._begun[-1]:
            self._ahead.look(shard)
        if not shard.left:
            self._commit()
        return len(batch.rows)

    def _commit(self) -> None:
        """Hand the first shard that was begun over to the committer."""
        shard, now = self._begun.popleft(), time.perf_counter()
        began, self._committed = max(shard.started, self._committed), now
        self._committer.commit(shard, now - began)


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
    device = _ELSEWHERE if teacher.computes_elsewhere else encoding.device
    for rows in encoding.sizes.batches_of(prepared, encoding.counts):
        batch = prepared.take(rows)
        begin = _Moment(device)
        outputs = _start(teacher, batch, encoding.ranks)
        if outputs is None:
            encoding.counts.refused += 1
        else:
            yield _Started(rows, outputs, begin, _Moment(device))


def _start(teacher: Teacher, batch: Prepared, ranks: Ranks) -> Outputs | None:
    """The outputs to come, or None if the batch did not fit into memory."""
    ranks.say_batch(batch.examples)
    try:
        with torch.inference_mode():
            return teacher.start(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if ranks.count > 1:
            raise too_large(len(batch)) from error
    free_cached_memory()  # outside the handler the failed call's tensors are free
    return None


def _refuse_or_skip(where: str, bad: BadRow, example: Example, encoding: EncodingRun) -> None:
    text = " | ".join(example.segments)
    problem = f"{where}: {bad.problem} for {text[:80]!r}"
    if encoding.skip_bad_rows:
        encoding.skipped.append(problem)
        return
    if bad.refused:
        raise TeacherOutputError(
            f"{problem}; committed shards are kept; set skip_bad_rows=true to skip such examples"
        )
    raise TeacherOutputError(
        f"{problem}; committed shards are kept; try dtype=float32 or store_dtype=float32, or "
        "set skip_bad_rows=true to skip such examples"
    )


class _Storing:
    """Stores batches in a thread, in order: to wait for the device, to copy and to code what it
    computed, and to take note of it, are no matter of the one that gives it batches."""

    _MOST = 4
    """Batches on their way: a fast device takes some 2 ms for each, and a thread of Python that
    is held up waits for 5 ms or more."""

    def __init__(self, advance: Advance) -> None:
        """`advance` is called with the rows of each batch, in the thread that waits."""
        self._advance = advance
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.running: deque[Future[int]] = deque()

    def __enter__(self) -> "_Storing":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def put(self, store: Callable[[], int]) -> None:
        """Take a batch, and wait while there are too many; raises what went wrong with one."""
        self.running.append(self._pool.submit(store))
        while self.running and (len(self.running) > self._MOST or self.running[0].done()):
            self.wait()

    def wait(self) -> None:
        """Wait for the first of those that are on their way; raises what went wrong with it."""
        self._advance(self.running.popleft().result())

    def drop_errors(self) -> None:
        """Wait for all batches, after an error: what is whole of them is kept."""
        while self.running:
            self.running.popleft().exception()


@dataclass(frozen=True, slots=True)
class Probe:
    """Estimates from a few examples: seconds per example, and its length on each axis."""

    seconds: float
    lengths: dict[str, float]


def probe(teacher: Teacher, examples: Sequence[Example], ranks: Ranks = ALONE) -> Probe:
    """Time one batch of all `examples`, after an untimed warm-up pass: of a server none, for each
    pass may have to be paid."""
    encoding = EncodingRun(BatchSizes(len(examples)), ranks=ranks)
    with matrix_products_of(teacher):
        for _ in range(1 if teacher.asks_a_server else 2):
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
    """Commits in a thread, in order; one more shard may wait for its turn. An error of the thread
    surfaces at a later commit or at the end."""

    _MOST = 2

    def __init__(
        self, writer: CacheWriter, work: Work, teacher: Teacher, committed: Committed
    ) -> None:
        self._writer, self._work = writer, work
        self._teacher, self._committed = teacher, committed
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._running: deque[Future[None]] = deque()

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def commit(self, shard: Shard, seconds: float) -> None:
        """Hand over the finished rows of a shard; waits while two are not written yet."""
        try:
            while self._running and (len(self._running) >= self._MOST or self._running[0].done()):
                self._running.popleft().result()
        except BaseException:
            self._writer.release(shard.task.reservation)
            raise
        if len(shard.buffer):
            self._running.append(self._pool.submit(self._write, shard, seconds))
        else:
            self._writer.release(shard.task.reservation)

    def _write(self, shard: Shard, seconds: float) -> None:
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
        """Wait for all commits; raises their first error."""
        while self._running:
            self._running.popleft().result()
