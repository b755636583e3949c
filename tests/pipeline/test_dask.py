"""`armada precompute --workers` and `--dask`: real worker processes, which are lost and stopped.

A cluster that the tests start serves most of them."""

import asyncio
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas import errors
from armada.cache_schemas.manifest import CommitRecord, FileRecord, RunRecord, TeacherManifest
from armada.pipeline.distributed import cluster as cluster_module
from armada.pipeline.distributed.dispatch import Chunks
from armada.pipeline.distributed.workers import (
    Chunk,
    JobSpec,
    Outcome,
    answer,
    keys_table,
    release,
    stop,
)
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import PrecomputeJob, make_precompute_job, make_teacher
from armada.pipeline.precompute_plan import PrecomputeReport
from armada.stages.corpus.corpus import read_corpus
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter, Work
from command_line import RUN, CommandLine
from distributed import Client, LocalCluster
from hangs import HANG_S
from small_caches import stored_bytes

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]
WATCHED_TEACHER = TESTS / "watched_teacher"
TEXTS = [f"text {number}" for number in range(300)]
SIZE, LONG = 64, 2048


@dataclass(frozen=True, slots=True)
class Journal:
    """What the watched teacher wrote down, in all processes."""

    folder: Path

    def loads(self) -> Counter[str]:
        """Process -> how often it loaded the teacher."""
        return Counter(self._lines("loads"))

    def closed(self) -> Counter[str]:
        """Process -> how often it closed the teacher."""
        return Counter(self._lines("closed"))

    def asked(self) -> list[tuple[int, str]]:
        """Process and text, in order."""
        return self._texts("asked")

    def prepared(self) -> list[tuple[int, str]]:
        """The same of texts that were prepared."""
        return self._texts("prepared")

    def open_gate(self) -> None:
        """Let 'patient' texts be answered."""
        (self.folder / "gate").touch()

    def _texts(self, name: str) -> list[tuple[int, str]]:
        pairs = (line.partition(" ") for line in self._lines(name))
        return [(int(process), text) for process, _, text in pairs]

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []

    def clear(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()

    def wait(self, texts: int) -> int:
        """Until so many texts were asked about; returns the process that was asked last."""
        return until(lambda: (asked := self.asked())[texts:] and asked[-1][0])


def until(done: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + HANG_S
    while not (result := done()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return result


@pytest.fixture(scope="module", autouse=True)
def journal_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The watched teacher is known to this process and those it starts, and writes here."""
    folder = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WATCHED_TEACHER)
        patch.setenv("PYTHONPATH", str(WATCHED_TEACHER))
        patch.setenv("WATCHED_TEACHER_JOURNAL", str(folder))
        yield folder


@pytest.fixture
def journal(journal_folder: Path) -> Journal:
    journal = Journal(journal_folder)
    journal.clear()
    return journal


@pytest.fixture(scope="module")
def cluster(
    journal_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """A cluster with two workers that is there before a run and after it."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        local_directory=str(tmp_path_factory.mktemp("dask")),
    ) as cluster:
        yield cluster


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl", TEXTS)


def words(corpus: Path, cache: Path, *more: object) -> list[object]:
    return [
        *("precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "watched:8"),
        *("--cache", cache, "--set", f"rows_per_shard={SIZE}", "--set", "batch_size=8"),
        *("--quiet", *more),
    ]


def job(corpus: Path, cache: Path, **keys: object) -> PrecomputeJob:
    """The same as a job."""
    given = {"corpus": str(corpus), "text_column": "text", "teacher": "watched:8", "cache": cache}
    return make_precompute_job({**given, "rows_per_shard": SIZE, "batch_size": 8, **keys})


def manifest_of(this: PrecomputeJob) -> TeacherManifest:
    spec = make_teacher(this).spec
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=SIZE, spec=spec)


def test_from_where_an_event_loop_runs(cluster: LocalCluster, corpus: Path, tmp_path: Path) -> None:
    """As a notebook's kernel calls."""

    async def called() -> PrecomputeReport:
        this = job(corpus, tmp_path / "cache", dask=cluster.scheduler_address)
        return run_precompute(this, quiet=True)

    assert asyncio.run(called()).computed == len(TEXTS)


@contextmanager
def in_background(this: PrecomputeJob) -> Iterator["Future[PrecomputeReport]"]:
    """A run in a thread of this process."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(run_precompute, this, quiet=True)


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def undisturbed(corpus: Path, tmp_path: Path, armada: CommandLine) -> dict[str, bytes]:
    """The bytes of a cache that one process made, which asks a teacher that is not watched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WATCHED_TEACHER_JOURNAL")
        armada.done(*words(corpus, tmp_path / "undisturbed"))
    return stored_bytes(tmp_path / "undisturbed")


def start(*given: object) -> subprocess.Popen[str]:
    """Start `armada` in a group of processes of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def committed(cache: Path) -> int:
    return len(open_cache(cache)) if list(cache.glob("teachers/*/commits/*")) else 0


def test_workers_leave_what_one_process_does(
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    journal: Journal,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = armada(*words(corpus, Path("cache"), "--workers", 2, "--json"))
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert (report["computed"], report["done_elsewhere"], report["truncated"]) == (300, 0, 0)
    assert stored_bytes(tmp_path / "cache") == undisturbed
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cache"])
    assert set(journal.loads().values()) == {1}
    assert {process for process, _ in journal.asked()} == set(map(int, journal.loads()))
    assert os.getpid() not in map(int, journal.loads())
    assert sorted(text for _, text in journal.asked()) == sorted(TEXTS)
    (run,) = open_cache(tmp_path / "cache").runs()
    assert set(run.teacher_seconds) == {0, 1, 2, 3, 4}
    assert report["teacher_seconds"] == pytest.approx(sum(run.teacher_seconds.values()))
    assert run.batches is not None
    assert (run.batches.rows, run.batches.refused) == (300, 0)
    assert 0 < run.batches.busy_seconds <= run.batches.seconds
    assert (run.hardware["workers"], run.hardware["device"]) == ("2", "cpu")
    assert run.versions["torch"]


def test_a_cluster_that_is_there_already(
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    journal: Journal,
    undisturbed: dict[str, bytes],
    cluster: LocalCluster,
) -> None:
    there = ["--dask", cluster.scheduler_address]
    result = armada(*(w for w in words(corpus, tmp_path / "cache", *there) if w != "--quiet"))
    assert result.code == 0
    assert result.out.startswith("300 rows, 300 unique; 0 already cached, 300 computed in ")
    assert result.err.startswith("precompute: 300/300 rows, ")
    assert stored_bytes(tmp_path / "cache") == undisturbed
    assert set(journal.loads().values()) == {1}
    assert journal.closed() >= journal.loads()  # what a teacher has started does not stay
    loaded = sum(journal.loads().values())
    out = armada.done(*words(corpus, tmp_path / "cache", *there))
    assert out.startswith("300 rows, 300 unique; 300 already cached, 0 computed in ")
    assert len(journal.asked()) == 300
    # What comes later is appended, in shards that are filled as one process fills them.
    more = write_texts(tmp_path / "more.jsonl", [f"more {number}" for number in range(100)])
    armada.done(*words(more, tmp_path / "cache", *there))
    assert sum(journal.loads().values()) > loaded  # workers keep no teacher after a run
    armada.done(*words(corpus, tmp_path / "undisturbed", "--corpus", more))
    assert stored_bytes(tmp_path / "cache") == stored_bytes(tmp_path / "undisturbed")


def test_a_scheduler_file_leads_to_the_scheduler(
    corpus: Path, tmp_path: Path, armada: CommandLine, journal: Journal, cluster: LocalCluster
) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": cluster.scheduler_address}))
    few = ["--set", "limit=3", "--dask", file]
    assert "3 computed" in armada.done(*words(corpus, tmp_path / "cache", *few))


def test_the_shard_of_a_killed_worker_is_made_by_another(
    corpus: Path,
    tmp_path: Path,
    journal: Journal,
    undisturbed: dict[str, bytes],
    cluster: LocalCluster,
) -> None:
    with in_background(job(corpus, tmp_path / "cache", dask=cluster.scheduler_address)) as run:
        killed = journal.wait(100)
        os.kill(killed, signal.SIGKILL)
        assert run.result().computed == 300
    assert stored_bytes(tmp_path / "cache") == undisturbed
    times = Counter(text for _, text in journal.asked())
    assert set(times) == set(TEXTS)
    again = {text for text, number in times.items() if number > 1}
    assert again
    assert again <= {text for process, text in journal.asked() if process == killed}


def test_a_worker_whose_device_fails_is_started_again(
    tmp_path: Path, armada: CommandLine, journal: Journal, cluster: LocalCluster
) -> None:
    """Every later call of its process would fail too."""
    corpus = write_texts(tmp_path / "texts.jsonl", [*TEXTS[:100], "faulty once", *TEXTS[100:]])
    given = words(corpus, tmp_path / "cache", "--dask", cluster.scheduler_address)
    result = armada(*given)
    assert result.code == 0
    assert "CUDA error: uncorrectable ECC error encountered; the worker is started" in result.err
    assert len(open_cache(tmp_path / "cache")) == 301
    faulty = [process for process, text in journal.asked() if text == "faulty once"]
    assert len(set(faulty)) == 2
    until(lambda: is_gone(str(faulty[0])))
    asked = Counter(text for process, text in journal.asked())
    assert max(asked.values()) == 2  # nothing went to the faulty process again


@pytest.mark.slow
def test_rows_at_which_every_device_fails_end_the_run(tmp_path: Path, journal: Journal) -> None:
    corpus = write_texts(tmp_path / "texts.jsonl", [*TEXTS[:100], "faulty"])
    run = start(*words(corpus, tmp_path / "cache", "--workers", 2))
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (1, "")
    assert "the devices of 4 workers failed on the same rows" in err.splitlines()[-1]
    assert committed(tmp_path / "cache") >= 64


def test_an_answer_that_is_not_finite_ends_the_run(
    tmp_path: Path, armada: CommandLine, journal: Journal, cluster: LocalCluster
) -> None:
    texts = [*TEXTS[:250], "unspeakable", *TEXTS[250:]]
    corpus = write_texts(tmp_path / "texts.jsonl", texts)
    there = ["--dask", cluster.scheduler_address]
    result = armada(*words(corpus, tmp_path / "cache", *there))
    assert result.code == 1
    assert result.error.startswith(f"{corpus} row 251: the teacher's 'embedding' is not finite")
    # All that was answered is kept, in whole and in begun shards, and nothing is reserved.
    answered = {text for _, text in journal.asked()} - {"unspeakable"}
    cache = open_cache(tmp_path / "cache")
    assert len(cache.lookup(sorted(answered))) == len(cache) > 0
    assert not list(tmp_path.glob("cache/teachers/*/reservations/*"))
    (run,) = cache.runs()
    assert set(run.teacher_seconds) == {commit.shard for commit in cache.commits}
    skipping = [*there, "--set", "skip_bad_rows=true", "--json"]
    result = armada(*words(corpus, tmp_path / "cache", *skipping))
    report = json.loads(result.out)
    assert report["computed"] == 300 - len(cache)
    assert [line.partition(":")[0] for line in report["skipped"]] == [f"{corpus} row 251"]
    assert len(open_cache(tmp_path / "cache")) == 300


def test_a_teacher_that_breaks_is_not_asked_again_and_again(
    tmp_path: Path, journal: Journal, cluster: LocalCluster
) -> None:
    corpus = write_texts(tmp_path / "texts.jsonl", [*TEXTS[:100], "broken"])
    with pytest.raises(ValueError, match="the teacher broke"):
        run_precompute(job(corpus, tmp_path / "cache", dask=cluster.scheduler_address), quiet=True)
    assert [text for _, text in journal.asked()].count("broken") == 1
    assert committed(tmp_path / "cache") >= 32


def test_what_another_writer_is_at_comes_last(
    corpus: Path,
    tmp_path: Path,
    journal: Journal,
    undisturbed: dict[str, bytes],
    cluster: LocalCluster,
) -> None:
    """Two chunks are another's: one it commits at last, one it gives back."""
    this = job(corpus, tmp_path / "cache", dask=cluster.scheduler_address)
    manifest = manifest_of(this)
    keys = read_corpus([str(corpus)], ["text"]).keys()
    with CacheWriter(this.cache, manifest) as writer:
        work = Work(writer, keys)
        first, second = work.reserve(), work.reserve()
        assert first is not None
        assert second is not None
        with in_background(this) as run:
            until(lambda: committed(this.cache) == 300 - 2 * SIZE)
            shard = undisturbed[f"teachers/{manifest.fingerprint}/embedding/c/0/0"]
            values = np.frombuffer(shard, np.float32, SIZE * 8).reshape(SIZE, 8)
            never = np.zeros(SIZE, dtype=bool)
            writer.commit(keys[first.rows], {"embedding": values}, never, None, first.reservation)
            writer.release(second.reservation)
            report = run.result()
    assert (report.computed, report.done_elsewhere) == (300 - SIZE, SIZE)
    assert stored_bytes(this.cache) == undisturbed
    assert not {text for _, text in journal.asked()} & set(TEXTS[:SIZE])


def long_words(tmp_path: Path, *more: object) -> list[object]:
    """A command of two shards that take seconds."""
    texts = [f"text {number}" for number in range(2 * LONG)]
    corpus = write_texts(tmp_path / "long.jsonl", texts)
    return words(corpus, tmp_path / "cache", "--set", f"rows_per_shard={LONG}", *more)


def test_sigterm_keeps_what_is_answered(
    tmp_path: Path, journal: Journal, cluster: LocalCluster
) -> None:
    given = long_words(tmp_path, "--dask", cluster.scheduler_address)
    run = start(*(word for word in given if word != "--quiet"))
    journal.wait(1500)
    run.terminate()
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (1, "")
    progress, error = err.splitlines()
    assert error.startswith("error: stopped by SIGTERM; committed shards are kept")
    # No shard was done, so workers told how far they were.
    assert 0 < int(progress.removeprefix("precompute: ").partition("/")[0]) < 2 * LONG
    check_stopped_in_order(tmp_path / "cache", journal)


def check_stopped_in_order(cache: Path, journal: Journal) -> None:
    """Every answer is committed and paid for, and nothing is reserved."""
    assert not list(cache.glob("teachers/*/reservations/*"))
    opened = open_cache(cache)
    assert len(opened) == len(journal.asked()) < 2 * LONG
    (run,) = opened.runs()
    assert set(run.teacher_seconds) == {commit.shard for commit in opened.commits}


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_answered(tmp_path: Path, journal: Journal) -> None:
    """A terminal sends it to all processes of a command, the workers too."""
    run = start(*long_words(tmp_path, "--workers", 2))
    journal.wait(100)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (130, "")
    assert err.splitlines() == [
        "stopping; Ctrl-C again drops shards being computed",
        "warning: interrupted; committed shards are kept; run the same command to continue",
    ]
    check_stopped_in_order(tmp_path / "cache", journal)


@pytest.mark.slow
def test_ctrl_c_while_the_workers_start(corpus: Path, tmp_path: Path) -> None:
    run = start(*words(corpus, tmp_path / "cache", "--workers", 2))
    until(lambda: len(children(run.pid)) >= 2)
    os.killpg(run.pid, signal.SIGINT)
    workers = children(run.pid)
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (130, "")
    assert err.startswith("warning: interrupted; ")
    until(lambda: all(map(is_gone, workers)))


def is_gone(process: int | str) -> bool:
    """Whether a process has ended, or is kept only because nobody asked how it did."""
    try:
        return ") Z " in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True


def children(process: int) -> list[int]:
    """The processes that any thread of a process has started."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


@pytest.mark.slow
def test_each_worker_has_its_part_of_the_machine() -> None:
    threads = max(1, torch.get_num_threads() // 3)
    with cluster_module.own_cluster(3, ["5", "GPU-ab"]) as client:
        seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], torch.get_num_threads()))
    assert sorted(seen.values()) == [("5", threads), ("5", threads), ("GPU-ab", threads)]


@pytest.mark.slow
def test_a_killed_run_takes_its_workers_with_it(
    corpus: Path, tmp_path: Path, journal: Journal, undisturbed: dict[str, bytes]
) -> None:
    run = start(*words(corpus, tmp_path / "cache", "--workers", 2))
    journal.wait(100)
    run.kill()
    run.communicate(timeout=HANG_S)
    until(lambda: all(map(is_gone, journal.loads())))
    assert committed(tmp_path / "cache") < 300
    again = start(*words(corpus, tmp_path / "cache", "--workers", 2))
    assert again.communicate(timeout=HANG_S)[1] == ""
    assert stored_bytes(tmp_path / "cache") == undisturbed


@pytest.mark.slow
def test_runs_with_workers_share_a_cache(
    corpus: Path, tmp_path: Path, journal: Journal, undisturbed: dict[str, bytes]
) -> None:
    given = words(corpus, tmp_path / "cache", "--workers", 2, "--json")
    runs = [start(*given) for _ in range(2)]
    ended = [run.communicate(timeout=HANG_S) for run in runs]
    assert [(run.returncode, err) for run, (_, err) in zip(runs, ended, strict=True)] == [
        (0, ""),
        (0, ""),
    ]
    reports = [json.loads(out) for out, _ in ended]
    assert sum(report["computed"] for report in reports) == len(journal.asked()) == 300
    for report in reports:
        assert report["already_cached"] + report["computed"] + report["done_elsewhere"] == 300
    assert stored_bytes(tmp_path / "cache") == undisturbed


@pytest.mark.slow
def test_a_text_that_kills_its_workers(tmp_path: Path, journal: Journal) -> None:
    corpus = write_texts(tmp_path / "texts.jsonl", [*TEXTS[:100], "deadly"])
    run = start(*words(corpus, tmp_path / "cache", "--workers", 2))
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (1, "")
    assert err.startswith("error: dask: 4 workers died on the same rows, the last was tcp://")
    assert err.count("\n") == 1
    assert committed(tmp_path / "cache") == 64
    assert [text for _, text in journal.asked()].count("deadly") == 4


def start_dask(part: str, *given: object, **environment: str) -> subprocess.Popen[bytes]:
    """A scheduler or a worker in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{part}", *map(str, given)],
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_scheduler_that_is_lost(corpus: Path, tmp_path: Path, journal: Journal) -> None:
    file = tmp_path / "scheduler.json"
    scheduler = start_dask("scheduler", "--scheduler-file", file, "--port", 0, "--no-dashboard")
    until(file.exists)
    worker = start_dask("worker", "--scheduler-file", file, "--nthreads", 2, "--no-dashboard")
    run = start(*words(corpus, tmp_path / "cache", "--dask", file))
    journal.wait(100)
    scheduler.kill()
    out, err = run.communicate(timeout=HANG_S)
    assert (run.returncode, out) == (1, "")
    assert err.startswith("error: dask: the connection to the scheduler is lost")
    assert err.count("\n") == 1
    worker.kill()
    scheduler.wait()
    worker.wait()
    assert committed(tmp_path / "cache") >= 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("armada.py", "", "No module named 'armada.pipeline'"),
        (
            "armada_kd-9.9.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: armada-kd\nVersion: 9.9\n",
            "has armada 9.9, here is ",
        ),
        ("none", "", "teacher 'watched' is unknown"),
    ],
)
def test_workers_with_another_armada(
    tmp_path: Path,
    corpus: Path,
    cluster: LocalCluster,
    armada: CommandLine,
    file: str,
    content: str,
    reason: str,
) -> None:
    there = tmp_path / "there" / file
    there.parent.mkdir(parents=True)
    there.write_text(content)
    address = cluster.scheduler_address
    given = ["--nthreads", 1, "--no-nanny", "--no-dashboard"]
    path = str(tmp_path / "there")
    worker = start_dask("worker", address, *given, PYTHONPATH=path)
    with Client(address, set_as_default=False) as client:
        until(lambda: len(client.nthreads()) == 3)
        result = armada(*words(corpus, tmp_path / "cache", "--dask", address))
        worker.kill()
        worker.wait()
        until(lambda: len(client.nthreads()) == 2)
    assert result.code == 2
    assert result.error.startswith("worker tcp://127.0.0.1:")
    assert reason in result.error


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "no response within 0 s"),
        ("bla://x:1", "unknown address scheme 'bla'"),
        ("tcp:/x", "is neither tcp://HOST:PORT nor an existing scheduler file"),
        ("scheduler.jsom", "is neither tcp://HOST:PORT nor an existing scheduler file"),
        (__file__, "is not the file of a scheduler"),
    ],
)
def test_addresses_without_a_scheduler(
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    reason: str,
) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_S", 0.3)
    result = armada(*words(corpus, tmp_path / "cache", "--dask", address))
    assert result.code == 2
    assert result.error.startswith(f"job key 'dask': {address}: {reason}")
    assert not (tmp_path / "cache").exists()


def test_a_worker_is_no_scheduler(
    corpus: Path, tmp_path: Path, armada: CommandLine, cluster: LocalCluster
) -> None:
    worker = until(lambda: cluster.workers[0].worker_address)
    result = armada(*words(corpus, tmp_path / "cache", "--dask", worker))
    assert (result.code, result.error) == (
        2,
        f"job key 'dask': {worker}: is a Worker of Dask, not its scheduler",
    )


def test_a_scheduler_without_workers(
    corpus: Path, tmp_path: Path, armada: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_S", 1.0)
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty:
        result = armada(*words(corpus, tmp_path / "cache", "--dask", empty.scheduler_address))
    assert result.code == 2
    assert result.error.endswith(": the scheduler has no workers; start some")


def test_workers_must_see_the_cache(
    corpus: Path,
    tmp_path: Path,
    armada: CommandLine,
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A path that leads each process to another folder, as that of another machine does."""
    monkeypatch.chdir(tmp_path)
    cache = Path("/proc/self/cwd/cache")
    result = armada(*words(corpus, cache, "--dask", cluster.scheduler_address))
    assert result.code == 2
    assert result.error.startswith("worker tcp://127.0.0.1:")
    assert f": does not see the cache {cache}; every worker needs the same" in result.error
    assert committed(tmp_path / "cache") == 0


def ordered(this: PrecomputeJob, run_id: str, number: int = 2) -> tuple[JobSpec, Chunk]:
    """What a run sends to a worker: a chunk of its corpus, the third."""
    manifest = manifest_of(this)
    read = read_corpus(this.corpus, this.text_column)
    chunk = Chunks(read, read.keys(), np.arange(300), SIZE, 0, ()).cut(number, waits=False)
    return JobSpec(run_id, this, manifest, manifest.spec), chunk


@pytest.fixture
def begun(corpus: Path, tmp_path: Path) -> tuple[JobSpec, Chunk]:
    """The same of a run that has written its record."""
    job_spec, chunk = ordered(job(corpus, tmp_path / "cache"), tmp_path.name)
    with CacheWriter(job_spec.job.cache, job_spec.manifest) as writer:
        writer.record_run(
            job_spec.run_id, RunRecord(started="", versions={}, hardware={}, corpora=())
        )
    return job_spec, chunk


def test_a_chunk_takes_its_own_shard_number_once(
    begun: tuple[JobSpec, Chunk], cluster: LocalCluster
) -> None:
    with Client(cluster, set_as_default=False) as client:
        outcomes = [client.submit(answer, *begun, key=f"own {n}").result() for n in (1, 2)]
    assert [(outcome.error, outcome.unfinished) for outcome in outcomes] == [(None, False)] * 2
    assert [outcome.rows for outcome in outcomes] == [SIZE, 0]
    assert [record.shard for record, _, _ in outcomes[0].shards] == [2]
    assert [commit.shard for commit in open_cache(begun[0].job.cache).commits] == [2]


def heartbeats() -> int:
    """Writers that this process has open."""
    return [thread.name for thread in threading.enumerate()].count("heartbeat")


@dataclass(frozen=True, slots=True)
class TwoChunks:
    """Two chunks at one worker, the first of which has the device until the gate is opened."""

    cache: Path
    run_id: str
    client: Client
    worker: str
    outcomes: tuple[Any, Any]

    def call(self, function: Callable[..., Any], *given: object) -> Any:
        """What a function returns in the worker."""
        return self.client.run(function, *given, workers=[self.worker])[self.worker]


@pytest.fixture
def two_chunks(tmp_path: Path, cluster: LocalCluster, journal: Journal) -> Iterator[TwoChunks]:
    corpus = write_texts(tmp_path / "texts.jsonl", ["patient", *TEXTS])
    this, run_id = job(corpus, tmp_path / "cache"), tmp_path.name
    sent = [ordered(this, run_id, number) for number in range(2)]
    with CacheWriter(this.cache, sent[0][0].manifest) as writer:
        writer.record_run(run_id, RunRecord(started="", versions={}, hardware={}, corpora=()))
    with Client(cluster, set_as_default=False) as client:
        worker = min(client.nthreads())
        first, second = (client.submit(answer, *each, workers=[worker]) for each in sent)
        until(lambda: len(journal.prepared()) == 2 * SIZE)
        yield TwoChunks(this.cache, run_id, client, worker, (first, second))
        client.run(release, run_id)


def test_a_worker_prepares_the_next_chunk_and_keeps_its_writer(
    two_chunks: TwoChunks, journal: Journal
) -> None:
    assert {text for _, text in journal.asked()} == {"patient", *TEXTS[:7]}
    journal.open_gate()
    outcomes = two_chunks.client.gather(two_chunks.outcomes)
    assert [record.shard for each in outcomes for record, _, _ in each.shards] == [0, 1]
    assert two_chunks.call(heartbeats) == 1
    two_chunks.call(release, two_chunks.run_id)
    assert two_chunks.call(heartbeats) == 0


def test_a_chunk_that_is_prepared_when_its_run_stops_gives_its_keys_back(
    two_chunks: TwoChunks, journal: Journal
) -> None:
    two_chunks.call(stop, two_chunks.run_id)
    journal.open_gate()
    first, second = two_chunks.client.gather(two_chunks.outcomes)
    assert first.unfinished
    assert second.unfinished
    assert 0 < first.rows < SIZE
    assert second.rows == 0
    assert two_chunks.call(heartbeats) == 1
    assert not list(two_chunks.cache.glob("teachers/*/reservations/*"))


def test_a_run_that_is_stopped_begins_no_chunk(
    begun: tuple[JobSpec, Chunk], cluster: LocalCluster, journal: Journal
) -> None:
    with Client(cluster, set_as_default=False) as client:
        client.run(stop, begun[0].run_id)
        outcome = client.submit(answer, *begun).result()
    assert (outcome.unfinished, outcome.rows, outcome.error) == (True, 0, None)
    assert journal.asked() == []


def test_a_worker_that_comes_late_must_see_the_cache_too(
    corpus: Path, tmp_path: Path, cluster: LocalCluster
) -> None:
    job_spec, chunk = ordered(job(corpus, tmp_path / "cache"), "never")
    with Client(cluster, set_as_default=False) as client:
        outcome = client.submit(answer, job_spec, chunk).result()
    assert isinstance(outcome.error, errors.JobError)
    assert "does not see the cache" in str(outcome.error)
    assert not (tmp_path / "cache").exists()


def record_of(shard: int) -> CommitRecord:
    """A record of a shard with a keys table of its own."""
    keys = FileRecord(bytes=1, xxh3_128=f"{shard:032x}")
    return CommitRecord(shard=shard, rows=1, features={}, tables={"rows": keys})


def test_chunks_take_the_lowest_free_shards(corpus: Path) -> None:
    read = read_corpus([str(corpus)], ["text"])
    pending = np.arange(10, 300)
    known = [record_of(shard) for shard in (0, 1, 3, 4, 7)]
    chunks = Chunks(read, read.keys(), pending, SIZE, 2, known)
    cut = [chunks.cut(number, waits=False) for number in range(len(chunks))]
    assert [chunk.shard for chunk in cut] == [2, 5, 6, 8, 9]
    assert [len(chunk.corpus) for chunk in cut] == [64, 64, 64, 64, 34]
    assert [chunks.rows(number) for number in range(5)] == [64, 64, 64, 64, 34]
    np.testing.assert_array_equal(np.concatenate([c.keys for c in cut]), read.keys()[pending])
    assert cut[4].corpus.where(0) == f"{corpus} row 267"
    assert cut[4].corpus.examples(np.array([33])) == [("text 299",)]
    tables = {keys_table(record) for record in known}
    done = [record_of(2), record_of(11)]
    chunks.finished(Outcome(shards=[(record, 1.0, 0) for record in done]))
    assert chunks.cut(3, waits=True).unrelated == tables | {keys_table(record) for record in done}
    assert cut[3].unrelated == tables


def test_a_shard_made_again_is_related_whatever_its_number(
    begun: tuple[JobSpec, Chunk], cluster: LocalCluster
) -> None:
    job_spec, chunk = begun
    other = keys_table(record_of(chunk.shard))
    with CacheWriter(job_spec.job.cache, job_spec.manifest) as writer:
        spec = job_spec.manifest.spec.features[0]
        rows = np.zeros((len(chunk.keys), *spec.shape), spec.dtype)
        writer.commit(chunk.keys, {spec.name: rows}, np.zeros(len(chunk.keys), dtype=bool))
        number = writer.commits[0].shard
    stale = replace(chunk, unrelated=frozenset({keys_table(record_of(number)), other}))
    with Client(cluster, set_as_default=False) as client:
        outcome = client.submit(answer, job_spec, stale, key="made again").result()
    assert (outcome.error, outcome.rows, outcome.unfinished) == (None, 0, False)


@pytest.mark.parametrize(
    "error", [value for value in vars(errors).values() if isinstance(value, type)]
)
def test_errors_come_back_from_workers(error: type[errors.ArmadaError]) -> None:
    made = error("said", [1, 2]) if error is errors.MissingKeysError else error("said")
    back = pickle.loads(pickle.dumps(made))
    assert (type(back), str(back), vars(back)) == (error, "said", vars(made))
