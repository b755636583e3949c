"""How large batches are: a token budget, memory that runs out, and memory that comes back; and what
is done beside the device."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import RunError
from armada.stages.memory import is_out_of_memory
from armada.stages.precompute.batching import PATIENCE, BatchCounts, BatchSizes
from armada.stages.precompute.precompute import _Moment
from armada.stages.precompute.teachers.base import Example, Outputs, Prepared
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.store.writing.writer import LockedView
from hangs import HANG_S
from spying_teacher import Bench, SpyingTeacher, WriteParquet
from tiny_checkpoints import make_bert


def rows_of(
    sizes: BatchSizes,
    buckets: Sequence[int],
    fits: dict[int, int],
    counts: BatchCounts | None = None,
) -> list[int]:
    """Rows of each batch that is begun, where so many of a bucket fit; 0 is one of them each."""
    begun, computed, counts = [], [], counts or BatchCounts()
    padded = np.array(buckets)
    prepared = Prepared([Example(b"", ())] * len(padded), padded, lengths=padded - 1)
    for rows in sizes.batches_of(prepared, counts):
        begun.append(len(rows))
        if len(rows) > fits.get(buckets[rows[0]], 1000):
            counts.refused += 1
        else:
            computed.extend(rows.tolist())
    assert sorted(computed) == list(range(len(buckets)))
    return begun


def test_a_batch_has_as_many_tokens_as_the_budget() -> None:
    sizes, counts = BatchSizes(64, tokens=64 * 128), BatchCounts()
    assert rows_of(sizes, [128] * 64 + [16] * 512 + [8192, 16384], {}, counts) == [1, 1, 64, 512]
    assert (counts.batches, counts.rows) == (4, 578)
    assert counts.padded_tokens == 8192 + 16384 + 64 * 128 + 512 * 16
    assert counts.tokens == counts.padded_tokens - 578


def test_rows_that_a_job_asks_for_are_those_of_every_batch() -> None:
    assert rows_of(BatchSizes(64, tokens=8192, rows=100), [16] * 150 + [512] * 100, {}) == [
        *(100, 100, 50)
    ]
    assert rows_of(BatchSizes(64), [0] * 100, {}) == [64, 36]


def test_a_refusal_is_of_its_bucket_alone() -> None:
    sizes, counts = BatchSizes(64), BatchCounts()
    begun = rows_of(sizes, [512] * 64 + [16] * 64, {512: 16}, counts)
    assert begun == [64, 32, 16, 16, 16, 16, 64]
    assert (counts.batches, counts.rows, counts.refused) == (5, 128, 2)


def test_a_limit_grows_again_where_memory_has_come_back() -> None:
    sizes = BatchSizes(64)
    rows_of(sizes, [16] * 64, {16: 16})
    begun = rows_of(sizes, [16] * (64 * 3 * PATIENCE * 16), {})
    assert begun[0] == 16
    assert begun[-1] == 64
    tried = [rows for rows, before in zip(begun[1:], begun, strict=False) if rows != before]
    assert tried == [32, 64]


def test_a_limit_that_stays_is_tried_ever_less_often() -> None:
    sizes = BatchSizes(64)
    begun = rows_of(sizes, [16] * 100_000, {16: 16})
    wasted = sum(rows > 16 for rows in begun)
    assert 3 <= wasted <= 8
    assert len(begun) < 100_000 / 16 + 10


def test_one_example_that_does_not_fit_ends_it() -> None:
    with pytest.raises(RunError, match="a single example does not fit"):
        rows_of(BatchSizes(4), [16] * 4, {16: 0})


def found(
    rates: Callable[[int], float], buckets: Sequence[int], fits: int = 10**9, **sizes: int
) -> tuple[BatchSizes, list[int]]:
    """What `batch_size=auto` comes to where so many rows compute at such a rate, and the rows of
    each batch; a batch is timed when two more have begun."""
    searching, counts, begun = BatchSizes(8, **sizes, auto=True), BatchCounts(), []
    padded = np.array(buckets)
    for rows in searching.batches_of(Prepared([Example(b"", ())] * len(padded), padded), counts):
        begun.append(len(rows))
        if len(rows) > fits:
            counts.refused += 1
        for late in begun[-3:-2]:
            searching.measured(buckets[rows[0]], late, late / rates(late))
    assert counts.rows == len(buckets)
    assert counts.auto_limit == searching.budget
    return searching, begun


def test_auto_doubles_while_more_examples_a_second_come_out() -> None:
    sizes, begun = found(lambda rows: min(rows, 100), [0] * 5000)
    assert sizes.budget == 128
    assert sorted(set(begun[:-1])) == [8, 16, 32, 64, 128, 256]
    assert begun.count(256) <= 4
    assert set(begun[-10:-1]) == {128}


def test_auto_settles_at_once_where_more_rows_are_no_faster(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "armada"):
        sizes, begun = found(lambda rows: 100.0, [16] * 4000, tokens=16 * 64)
    assert sizes.budget == 16 * 64
    assert set(begun[10:-1]) == {64}
    told = "batch_size=auto: 1,024 padded tokens a batch; larger ones are no faster"
    assert caplog.messages == [told]


def test_auto_ends_where_memory_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "armada"):
        sizes, begun = found(lambda rows: float(rows), [0] * 5000, fits=50)
    assert sizes.budget == 32
    assert begun.count(64) == 1
    assert caplog.messages == [
        "batch_size=auto: 32 rows a batch; larger ones do not fit into memory"
    ]


def test_what_auto_finds_for_one_length_holds_for_others() -> None:
    sizes, begun = found(lambda rows: min(rows, 16), [64] * 1000 + [32] * 1000, tokens=8 * 64)
    assert sizes.budget == 16 * 64
    assert set(begun[-9:-1]) == {32}
    assert sum(begun) == 2000


def test_auto_keeps_what_it_has_on_a_device_that_is_not_timed() -> None:
    sizes, begun = found(lambda rows: math.inf, [0] * 100)
    assert (sizes.budget, set(begun[:-1])) == (8, {8})


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 1 GB)"),
    RuntimeError(
        "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    ),
    RuntimeError("HIP out of memory. Tried to allocate 1.00 GiB"),
    MemoryError("Unable to allocate 4.00 GiB for an array"),
]


class _Narrow(SpyingTeacher):
    """Three examples fit; more raise what a library raises then."""

    error: BaseException

    def encode(self, examples):
        if len(examples) > 3:
            raise self.error
        return super().encode(examples)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_every_way_to_say_that_memory_ran_out_is_understood(
    error: BaseException, write_parquet: WriteParquet, tmp_path: Path
) -> None:
    assert is_out_of_memory(error)
    teacher = _Narrow()
    teacher.error = error
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(teacher, [f"text {n}" for n in range(20)], batch_size=16)
    assert len(bench.cache) == 20
    assert max(map(len, teacher.asked)) <= 3


def test_other_errors_of_a_device_are_not_taken_for_it(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    teacher = _Narrow()
    teacher.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    bench = Bench(write_parquet, tmp_path / "cache")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.ask(teacher, [f"text {n}" for n in range(20)], batch_size=16)


class _Late(SpyingTeacher):
    """The outputs of its first batch come once the next one has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.waited: list[bool] = []

    def start(self, batch: Prepared) -> Outputs:
        self.begun.release()
        answers, main = self.encode(batch.examples), threading.get_ident()

        def outputs():
            assert threading.get_ident() != main
            assert torch.is_inference_mode_enabled()
            if not self.waited:  # for itself, and for the next
                self.waited.append(all(self.begun.acquire(timeout=HANG_S) for _ in range(2)))
            return answers

        return outputs


def test_the_next_batch_begins_before_the_outputs_of_one_are_there(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    teacher = _Late()
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(teacher, [f"text {n}" for n in range(20)], batch_size=4)
    assert len(bench.cache) == bench.advanced == 20
    assert teacher.waited == [True]


class _Joined(SpyingTeacher):
    """The outputs of the last batch of a shard of 64 come once the next shard has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.next_begun = threading.Event()
        self.waited: list[bool] = []

    def start(self, batch: Prepared) -> Outputs:
        answers, begun = self.encode(batch.examples), len(self.texts)
        if begun > 64:
            self.next_begun.set()

        def outputs():
            if begun == 64:
                self.waited.append(self.next_begun.wait(HANG_S))
            return answers

        return outputs


def test_the_next_shard_begins_before_the_outputs_of_one_are_there(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    teacher = _Joined()
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(teacher, [f"text {n}" for n in range(150)], batch_size=4)
    assert teacher.waited == [True]
    assert len(bench.cache) == bench.advanced == 150


class _LongPreparing(SpyingTeacher):
    """Takes a minute to prepare a shard, and a second a batch; with the fifth it waits until the
    next shard is being prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.preparing = threading.Semaphore(0)
        self.waited: list[bool] = []

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        self.clock += 60
        self.preparing.release()
        return super().prepare(examples)

    def start(self, batch: Prepared) -> Outputs:
        self.clock += 1
        if len(self.asked) == 5:
            self.waited.append(all(self.preparing.acquire(timeout=HANG_S) for _ in range(2)))
        return super().start(batch)


def test_what_takes_long_to_prepare_is_begun_sooner(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches of sixteen are less than half of a shard."""
    teacher = _LongPreparing()
    clock = SimpleNamespace(perf_counter=lambda: teacher.clock)
    for module in ("ahead", "precompute"):
        monkeypatch.setattr(f"armada.stages.precompute.{module}.time", clock)
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(teacher, [f"text {n}" for n in range(100)], batch_size=4)
    assert teacher.waited == [True]
    assert len(bench.cache) == 100


class _Preparing(SpyingTeacher):
    """Notes what is prepared, and in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[int] = []
        self.threads: set[int] = set()

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        self.prepared.append(len(examples))
        self.threads.add(threading.get_ident())
        return super().prepare(examples)


def test_each_example_is_prepared_once_and_beside_the_model(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    teacher = _Preparing()
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(teacher, [f"text {n}" for n in range(150)], batch_size=4)
    assert teacher.prepared == [64, 64, 22]
    assert threading.get_ident() not in teacher.threads


def test_the_next_shard_is_reserved_beside_the_model(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To take the cache's lock is no matter of the thread that gives the device batches."""
    threads: list[int] = []
    turn = LockedView.reserve

    def noted(view, *given):
        threads.append(threading.get_ident())
        return turn(view, *given)

    monkeypatch.setattr(LockedView, "reserve", noted)
    bench = Bench(write_parquet, tmp_path / "cache")
    bench.ask(SpyingTeacher(), [f"text {n}" for n in range(150)], batch_size=4)
    main = threading.get_ident()
    assert [thread == main for thread in threads] == [True, False, False]


def test_a_shard_that_was_prepared_in_vain_is_given_back(
    write_parquet: WriteParquet, tmp_path: Path
) -> None:
    """The second shard is reserved and prepared while the first is computed, which fails."""
    teacher = _Preparing()
    teacher.breaks_at = "text 3"
    bench = Bench(write_parquet, tmp_path / "cache")
    texts = [f"text {n}" for n in range(150)]
    with pytest.raises(ValueError, match="the teacher broke"):
        bench.ask(teacher, [*texts[4:64], texts[3], *texts[64:]], batch_size=4)
    assert not list((tmp_path / "cache").glob("teachers/*/reservations/*/*"))
    bench.ask(SpyingTeacher(), texts)
    assert len(bench.cache) == 150


def test_texts_are_tokenized_once(
    write_parquet: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = EncoderTeacher(
        str(make_bert(tmp_path / "model", ["a text on and on"])),
        EncoderOptions(),
        torch.device("cpu"),
    )
    teacher.load()
    read: list[str] = []
    tokenize = teacher._texts._rows

    def counting(texts, **cut):
        read.extend(text for text, _ in texts)
        return tokenize(texts, **cut)

    monkeypatch.setattr(teacher._texts, "_rows", counting)
    texts = [f"a text {n} " + "on and on " * (n % 7) for n in range(100)]
    Bench(write_parquet, tmp_path / "cache").ask(teacher, texts)
    assert sorted(read) == sorted(texts)


class _Slow(SpyingTeacher):
    """At work for a set time, and longer to give its outputs."""

    def start(self, batch: Prepared) -> Outputs:
        time.sleep(0.02)
        answers = self.encode(batch.examples)

        def outputs():
            time.sleep(0.05)
            return answers

        return outputs


def test_batches_of_a_run_are_counted(write_parquet: WriteParquet, tmp_path: Path) -> None:
    counts = BatchCounts()
    bench = Bench(write_parquet, tmp_path / "cache")
    texts = [f"text {n}" for n in range(80)]
    bench.ask(_Slow(fits=8), texts, batch_size=16, counts=counts)
    assert (counts.batches, counts.rows, counts.refused) == (10, 80, 1)
    assert counts.busy_seconds >= 10 * 0.02
    assert counts.busy_seconds + 0.05 <= counts.seconds


@pytest.mark.gpu
def test_a_device_is_timed_by_its_own_clock() -> None:
    device = torch.device("cuda")
    square = torch.ones(4096, 4096, device=device)
    torch.cuda.synchronize()
    begin = _Moment(device)
    for _ in range(20):
        square = square @ square
    end = _Moment(device)
    given = end._time - begin._time
    assert begin.until(end) > given
