"""The workers' side of a run on Dask: a chunk of a corpus in, committed shards and counts out.

    answer -> _answer -> stages.precompute

A worker process keeps one loaded teacher, and one writer of its cache, between the chunks of a run.
Its device computes one chunk at a time; meanwhile the next one is prepared, in another thread, and
the one before is written: a chunk that gets the device leaves Dask's pool of threads, so that the
worker begins another, however few threads it has.

Features go from the worker to the cache; only counts go back to the client. Reservations of a dead
worker are taken over by the one that gets the chunk next, with the same shard number
(`store/writing/reservations.py`): so a lost worker changes no byte of the cache.

After an illegal access, a failed assertion or an uncorrectable memory error, a process cannot use
its device again. Its worker commits what it has computed, says so and ends, so that its nanny
starts another in its place; the rest of its chunk is sent anew.
"""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

from ...cache_schemas.errors import ArmadaError, JobError
from ...cache_schemas.keys import KeyArray
from ...cache_schemas.layout import ROWS_TABLE, teacher_folder
from ...cache_schemas.manifest import CommitRecord, TeacherManifest
from ...cache_schemas.teachers import TeacherSpec, differences
from ...stages.corpus.corpus import Corpus
from ...stages.precompute.batching import BatchCounts, BatchSizes
from ...stages.precompute.precompute import Clock, EncodingRun, precompute
from ...stages.precompute.teachers.base import Teacher, load_teacher
from ...stages.store.writing.writer import CacheWriter, Task, Work
from ..environment import choose_device, hardware, library_versions
from ..precompute_job import PrecomputeJob, make_teacher

TOPIC = "armada"
"""Dask's name for the stream of progress of all runs on a scheduler."""

REPORT_EVERY_S = 1.0

LEAVE_S = 1.0
"""Time for a last outcome to reach the scheduler."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A run's job for every worker. The cache path is absolute; `spec` is that of the teacher in
    the main process."""

    run_id: str
    job: PrecomputeJob
    manifest: TeacherManifest
    spec: TeacherSpec


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that make one shard, with keys [N, 16]; no key is in two chunks of a run.

    shard: the number to use if it is free; unrelated: the keys tables (their hashes) of shards
    known to hold none of the keys, since a number does not identify a shard; waits: whether to wait
    for other processes that are computing the keys."""

    number: int
    corpus: Corpus
    keys: KeyArray
    shard: int
    unrelated: frozenset[str]
    waits: bool


@dataclass(slots=True)
class Outcome:
    """Result of a chunk. shards: record, teacher seconds and truncated texts of each committed
    shard; counts: of its batches. Unfinished: other processes are computing the rest, or the run
    was stopped. device_error: what made the worker's device unusable; the worker leaves."""

    shards: list[tuple[CommitRecord, float, int]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    counts: BatchCounts = field(default_factory=BatchCounts)
    unfinished: bool = False
    device_error: str | None = None
    error: ArmadaError | None = None

    @property
    def rows(self) -> int:
        """Rows that were committed."""
        return sum(record.rows for record, _, _ in self.shards)


def keys_table(record: CommitRecord) -> str:
    """The hash of the table that holds a shard's keys."""
    return record.tables[ROWS_TABLE].xxh3_128


@dataclass(frozen=True, slots=True)
class Equipment:
    """Device of a worker's teachers, and what the provenance records."""

    armada: str
    device_type: str
    versions: dict[str, str]
    hardware: dict[str, str]


def equipment(device: str) -> Equipment:
    """Equipment of this process; raises JobError if it does not have the device."""
    chosen = choose_device(device)
    return Equipment(version("armada-kd"), chosen.type, library_versions(), hardware(str(chosen)))


def sees_run(job_spec: JobSpec) -> bool:
    """Whether this process sees the cache in which the run has written its record."""
    folder = teacher_folder(job_spec.job.cache, job_spec.manifest.fingerprint)
    return (folder / "runs" / f"{job_spec.run_id}.json").is_file()


def answer(job_spec: JobSpec, chunk: Chunk) -> Outcome:
    """Compute a chunk, unless that is done, and commit its features."""
    outcome = Outcome()
    with _told_in(outcome):
        try:
            _answer(job_spec, chunk, outcome)
        except _Unfinished:
            outcome.unfinished = True
    return outcome


def load(job_spec: JobSpec) -> Outcome:
    """Load the teacher of a run; the outcome has the reason if that fails."""
    outcome = Outcome()
    with _told_in(outcome):
        _state.load(job_spec)
    return outcome


@contextmanager
def _told_in(outcome: Outcome) -> Iterator[None]:
    """Errors of input or run become the outcome's; a lost device, too, and ends the process."""
    _state.wait_for_the_end()
    try:
        yield
    except Exception as error:
        if _device_is_lost(error):
            outcome.device_error = f"{_me()}: {str(error).splitlines()[0]}"
            _state.leave()
        elif isinstance(error, ArmadaError):
            outcome.error = error
        else:
            raise


def _device_is_lost(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, has made the device unusable for this process."""
    import torch

    while error is not None:
        if isinstance(error, torch.AcceleratorError) and "out of memory" not in str(error):
            return True
        error = error.__cause__ or error.__context__
    try:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def stop(run_id: str) -> None:
    """Stop this process's work for a run at the next batch; computed rows are committed."""
    _state.stopped.add(run_id)


def release(run_id: str) -> None:
    """Give the memory back that a teacher of this run takes in this process."""
    _state.release(run_id)


def _answer(job_spec: JobSpec, chunk: Chunk, outcome: Outcome) -> None:
    if job_spec.run_id in _state.stopped:
        raise _Unfinished
    if not sees_run(job_spec):
        raise JobError(f"{_me()}: {unseen(job_spec)}")
    signals = _Signals(job_spec.run_id, chunk)
    with _state.run(job_spec) as run:

        def committed(record: CommitRecord, seconds: float, truncated: int) -> None:
            outcome.shards.append((record, seconds, truncated))

        encoding = EncodingRun(
            run.sizes,
            choose_device(job_spec.job.device),
            outcome.counts,
            job_spec.job.skip_bad_rows,
            signals.advance,
            committed,
            outcome.skipped,
            _state.preparing,
            signals.turn,
            run.clock,
        )
        work = _ChunkWork(run.writer, chunk, signals.wait)
        precompute(chunk.corpus, chunk.keys, work, run.teacher, run.writer, encoding)


def unseen(job_spec: JobSpec) -> str:
    """Message about a worker that does not see the cache."""
    return (
        f"does not see the cache {job_spec.job.cache}; every worker needs the same folder under "
        "the same path"
    )


def _me() -> str:
    from distributed import get_worker

    return f"worker {get_worker().address}"


class _Unfinished(Exception):
    """The rest of the chunk is left for later, or dropped."""


class _ChunkWork(Work):
    """The keys of one chunk, its preferred shard, and no look at shards of other chunks: reading
    the keys of 1,000 shards takes two seconds."""

    def __init__(self, writer: CacheWriter, chunk: Chunk, waiting: Callable[[int], None]) -> None:
        self._chunk = chunk
        super().__init__(writer, chunk.keys, waiting)

    def reserve(self, preferred: int | None = None) -> Task | None:
        return super().reserve(self._chunk.shard if preferred is None else preferred)

    def _count(self, record: CommitRecord) -> None:
        if keys_table(record) not in self._chunk.unrelated:
            super()._count(record)


class _Signals:
    """Gives a chunk its turns at the device. Between batches: reports its progress, and checks
    whether its run has stopped."""

    def __init__(self, run_id: str, chunk: Chunk) -> None:
        self._run_id, self._chunk = run_id, chunk
        self._rows, self._reported = 0, time.monotonic()
        self._in_pool = True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The device is this chunk's; the worker may begin another one."""
        from distributed import secede

        with _state.device:
            _state.wait_for_the_end()
            self._stop_if_told()
            if self._in_pool:
                self._in_pool = False
                secede()
            try:
                yield
            except Exception as error:
                # Before another chunk gets the device.
                _state.leaves = _state.leaves or _device_is_lost(error)
                raise

    def _stop_if_told(self) -> None:
        if self._run_id in _state.stopped:
            raise _Unfinished

    def advance(self, rows: int) -> None:
        """Count rows just computed; stops the computation if the run has stopped."""
        self._rows += rows
        self._stop_if_told()
        if time.monotonic() - self._reported > REPORT_EVERY_S:
            self._reported = time.monotonic()
            self._report()

    def _report(self) -> None:
        from distributed import get_worker

        done = {"run": self._run_id, "chunk": self._chunk.number, "rows": self._rows}
        get_worker().log_event(TOPIC, done)

    def wait(self, rows: int) -> None:
        """Other processes are computing the last rows: wait for them, or have the chunk tried
        later."""
        if not self._chunk.waits or self._run_id in _state.stopped:
            raise _Unfinished


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded teacher, and the device and fingerprint that tell it from others."""

    key: tuple[str, str]
    teacher: Teacher


@dataclass(frozen=True, slots=True)
class _Run:
    """What a worker keeps between the chunks of a run: `sizes` are those of batches that fit into
    its device's memory."""

    run_id: str
    teacher: Teacher
    writer: CacheWriter
    sizes: BatchSizes
    clock: Clock = field(default_factory=Clock)


class _WorkerState:
    """State of a worker process between chunks, for chunks in several threads."""

    def __init__(self) -> None:
        self.device, self.preparing = threading.Lock(), threading.Lock()
        """Each held by one chunk at a time."""
        self.stopped: set[str] = set()
        self.leaves = False
        """Whether this process is about to end."""
        self._entry = threading.Lock()
        self._chunks, self._fewer = 0, threading.Condition()
        self._loaded: _Loaded | None = None
        self._run: _Run | None = None
        self._last_run = ""

    @contextmanager
    def run(self, job_spec: JobSpec) -> Iterator[_Run]:
        """What is kept of a run, for one of its chunks; waits until those of another are done."""
        with self._entry:  # in turn, so that no run waits for all of another
            run = self._run
            if run is None or run.run_id != job_spec.run_id:
                self._wait_for_chunks()
                teacher = self._teacher(job_spec)
                run = self._run = self._begin(job_spec, teacher)
            with self._fewer:
                self._chunks += 1
        try:
            yield run
        finally:
            with self._fewer:
                self._chunks -= 1
                self._fewer.notify_all()

    def load(self, job_spec: JobSpec) -> None:
        """Load the teacher of a run, unless it is here already."""
        with self._entry:
            self._wait_for_chunks()
            self._teacher(job_spec)

    def _wait_for_chunks(self) -> None:
        with self._fewer:
            self._fewer.wait_for(lambda: not self._chunks)

    def _teacher(self, job_spec: JobSpec) -> Teacher:
        self._end_run()
        key = (job_spec.spec.fingerprint, job_spec.job.device)
        self._last_run = job_spec.run_id
        if self._loaded is None or self._loaded.key != key:
            self._unload()  # two teachers may not fit into the device's memory
            teacher = _make(job_spec)
            load_teacher(teacher)
            self._loaded = _Loaded(key, teacher)
        return self._loaded.teacher

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded.teacher.close()
        self._loaded = None

    def _begin(self, job_spec: JobSpec, teacher: Teacher) -> _Run:
        job = job_spec.job
        writer = CacheWriter(job.cache, job_spec.manifest, job.takeover_seconds)
        return _Run(job_spec.run_id, teacher, writer, BatchSizes.of(teacher, job.batch_size))

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.writer.close()
        self._run = None

    def leave(self) -> None:
        """End this process as soon as its last outcome is told."""
        self.leaves = True
        threading.Timer(LEAVE_S, os._exit, [1]).start()

    def wait_for_the_end(self) -> None:
        """Begin nothing more in a process that is about to end: Dask gives it to another."""
        while self.leaves:
            time.sleep(LEAVE_S)

    def release(self, run_id: str) -> None:
        """Release the teacher, unless another run uses it, or is about to."""
        if not self._entry.acquire(blocking=False):
            return
        try:
            if self._last_run == run_id and not self._chunks:
                self._end_run()
                self._unload()
                _empty_caches()
        finally:
            self._entry.release()


_state = _WorkerState()


def _empty_caches() -> None:
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _make(job_spec: JobSpec) -> Teacher:
    try:
        teacher = make_teacher(job_spec.job)
    except ArmadaError as error:
        raise type(error)(f"{_me()}: {error}") from error
    if teacher.spec.fingerprint != job_spec.spec.fingerprint:
        fields = (line.partition(":")[0] for line in differences(job_spec.spec, teacher.spec))
        raise JobError(
            f"{_me()}: its {job_spec.job.teacher} differs from the one here in {', '.join(fields)}"
        )
    return teacher
