"""Stage 1: unique examples that are not cached yet -> shards -> teacher batches -> commits.

    precompute -> _ask_shard -> _ask_batches -> _ask

In: a corpus, its pending rows, a loaded teacher, a writer. Out: committed shards. Shards are cut
from the pending rows in corpus order, batches inside a shard from examples of one bucket; so
neither the batch size nor an interruption changes what is stored. If the computation stops for any
reason, rows computed so far are committed before the error is raised. A thread writes one shard
while the teacher computes the next. Other processes may do the same to the same cache: each shard
is reserved before it is computed (`store/writing/writer.py`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from ...cache_schemas.errors import ReservationLostError, RunError, TeacherOutputError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, KeyArray
from ...cache_schemas.manifest import CommitRecord
from ..corpus.corpus import Corpus
from ..store.writing.writer import CacheWriter, Task, Work
from .shard_buffer import FinishedRows, ShardBuffer
from .teachers.base import Answers, Example, Teacher

Advance = Callable[[int], None]
Committed = Callable[[CommitRecord, float, int], None]
"""Called after each commit with the shard, teacher seconds and truncated examples."""


@dataclass(slots=True)
class EncodingRun:
    """Settings that may change between runs without changing an output."""

    batch_size: int
    skip_bad_rows: bool = False
    advance: Advance = lambda rows: None
    committed: Committed = lambda record, seconds, truncated: None
    skipped: list[str] = field(default_factory=list)


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
    with _Committer(writer, work, encoding.committed) as committer:
        for task in _tasks(work, committer):
            examples = make_examples(corpus, keys, task.rows)
            _encode_shard(corpus, task, examples, teacher, encoding, committer)


def _tasks(work: Work, committer: "_Committer") -> Iterator[Task]:
    while True:
        task = work.reserve()
        if task is None:
            committer.wait()  # a shard that another writer took over from us is put back
            task = work.reserve()
        if task is None:
            return
        yield task


def make_examples(corpus: Corpus, keys: KeyArray, rows: IntArray) -> list[Example]:
    """The examples of the given corpus rows."""
    return [
        Example(keys[row].tobytes(), segments)
        for row, segments in zip(rows, corpus.examples(rows), strict=True)
    ]


def _encode_shard(
    corpus: Corpus,
    task: Task,
    examples: Sequence[Example],
    teacher: Teacher,
    encoding: EncodingRun,
    committer: "_Committer",
) -> None:
    buffer = ShardBuffer(examples, committer.features)
    started = time.perf_counter()
    try:
        for places, answers in _encode_batches(teacher, examples, encoding):
            for place, feature in buffer.put(places, answers).items():
                _refuse_or_skip(
                    corpus.where(int(task.rows[place])), feature, examples[place], encoding
                )
            encoding.advance(len(places))
    finally:
        committer.commit(task, buffer.finished(), time.perf_counter() - started)


def _refuse_or_skip(where: str, feature: str, example: Example, encoding: EncodingRun) -> None:
    text = " | ".join(example.segments)
    problem = f"{where}: the teacher's {feature!r} is not finite for {text[:80]!r}"
    if not encoding.skip_bad_rows:
        raise TeacherOutputError(
            f"{problem}; committed shards are kept; try dtype=float32 or store_dtype=float32, or "
            "set skip_bad_rows=true to skip such examples"
        )
    encoding.skipped.append(problem)


def _encode_batches(
    teacher: Teacher, examples: Sequence[Example], encoding: EncodingRun
) -> Iterator[tuple[IntArray, Answers]]:
    """Batches of one bucket each, the longest first, so that memory runs out early or never."""
    buckets = np.asarray(teacher.buckets(examples))
    for bucket in np.unique(buckets)[::-1]:
        waiting = np.flatnonzero(buckets == bucket)
        while len(waiting):
            places = waiting[: encoding.batch_size]
            answers = _encode(teacher, [examples[place] for place in places])
            if answers is None:
                encoding.batch_size = _halved(len(places))
                continue
            yield places, answers
            waiting = waiting[len(places) :]


def _halved(batch_size: int) -> int:
    if batch_size == 1:
        raise RunError(
            "device memory: a single example does not fit; use a device with more memory, a "
            "smaller dtype, or a smaller input size of the teacher"
        )
    return batch_size // 2


def _encode(teacher: Teacher, examples: Sequence[Example]) -> Answers | None:
    """The outputs, or None if the batch did not fit into device memory."""
    try:
        with torch.inference_mode():
            return teacher.encode(examples)
    except torch.OutOfMemoryError:
        pass  # outside the handler the failed call's tensors are free
    torch.cuda.empty_cache()
    return None


@dataclass(frozen=True, slots=True)
class Probe:
    """Estimates from a few examples: seconds per example, and its length on each axis."""

    seconds: float
    lengths: dict[str, float]


def probe(teacher: Teacher, examples: Sequence[Example]) -> Probe:
    """Time one batch of all `examples`, after an untimed warm-up pass."""
    for _ in range(2):
        lengths = dict.fromkeys(teacher.spec.axes, 0)
        started = time.perf_counter()
        for _, answers in _encode_batches(teacher, examples, EncodingRun(len(examples))):
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

    def __init__(self, writer: CacheWriter, work: Work, committed: Committed) -> None:
        self._writer, self._work = writer, work
        self._committed = committed
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._running: Future[None] | None = None

    def __enter__(self) -> "_Committer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    @property
    def features(self) -> tuple[FeatureSpec, ...]:
        """Features that are written: all of them, or those that the cache lacked."""
        return self._writer.manifest.spec.features

    def commit(self, task: Task, finished: FinishedRows, seconds: float) -> None:
        """Hand over the finished rows of a task; waits for the task before it."""
        self.wait()
        if len(finished.keys):
            self._running = self._pool.submit(self._write, task, finished, seconds)
        else:
            self._writer.release(task.reservation)

    def _write(self, task: Task, finished: FinishedRows, seconds: float) -> None:
        try:
            record = self._writer.commit(
                finished.keys,
                finished.features,
                finished.truncated,
                tables=finished.tables,
                reservation=task.reservation,
                fidelity=finished.fidelity,
            )
        except ReservationLostError:
            self._work.put_back(task)
        else:
            self._committed(record, seconds, int(finished.truncated.sum()))

    def wait(self) -> None:
        """Wait for the last commit; raises its error."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
