"""Real processes write into one cache and are killed at random moments: nothing is lost or torn.

Whatever happened, the end is the store that one undisturbed writer makes, byte for byte, if all
have the same texts; if their texts only overlap, each text is answered once, and rightly.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import ArmadaError, OutputError
from armada.cache_schemas.manifest import TeacherManifest
from armada.stages.store.files.lock import locked
from armada.stages.store.format import manifests
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing import teacher_folder
from armada.stages.store.writing.teacher_folder import create_cache
from armada.stages.store.writing.writer import CacheWriter, Work
from small_caches import (
    answer,
    commit,
    keys_of,
    make_manifest,
    numbered_texts,
    stored_bytes,
    write_cache,
)

pytestmark = pytest.mark.long

MANIFEST = make_manifest(rows_per_shard=64)
TEXTS = numbered_texts(0, 600)
TRIALS, MORE_TRIALS = 6, 100


def write_all(path: Path, texts: Sequence[str], seconds_per_shard: float = 0.0) -> None:
    """What a run does, with a teacher that takes its time."""
    with CacheWriter(path, MANIFEST) as writer:
        work = Work(writer, keys_of(texts))
        while (task := work.reserve()) is not None:
            time.sleep(seconds_per_shard)
            commit(writer, [texts[row] for row in task.rows], task.reservation)


def start(task: Callable[[], None]) -> int:
    """Run something in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        task()
    except BaseException:
        os._exit(1)
    os._exit(0)


def end_of(child: int) -> int:
    """How a process ended: 0, 1 or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    shards = [TEXTS[start : start + 64] for start in range(0, len(TEXTS), 64)]
    write_cache(tmp_path / "undisturbed", MANIFEST, shards)
    return stored_bytes(tmp_path / "undisturbed")


def check_answers(path: Path, texts: Sequence[str]) -> None:
    """Each text is there once, with its own answers."""
    cache = open_cache(path)
    assert len(cache) == len(texts) == len(np.unique(cache.keys, axis=0))
    rows = cache.lookup(texts)
    for name in cache.features:
        expected = answer(cache.feature_spec(name), texts)
        np.testing.assert_array_equal(cache[name][rows], expected, strict=True)


def kill_some(path: Path, chance: random.Random, corpora: Sequence[Sequence[str]]) -> list[int]:
    """Start a writer for each corpus, kill all but the last at random moments; how they ended."""
    delay = chance.choice([0.0, 0.005, 0.02])
    children = [start(lambda texts=texts: write_all(path, texts, delay)) for texts in corpora]
    for child in children[:-1]:
        time.sleep(chance.random() * 0.1)
        os.kill(child, signal.SIGKILL)
    ends = [end_of(child) for child in children]
    assert set(ends) <= {0, -signal.SIGKILL}, ends
    return ends


@pytest.mark.parametrize(
    "seeds",
    [range(TRIALS), pytest.param(range(TRIALS, TRIALS + MORE_TRIALS), marks=pytest.mark.slow)],
    ids=["a few", "many"],
)
def test_writers_of_the_same_texts_killed_at_random(
    tmp_path: Path, undisturbed: dict[str, bytes], seeds: Sequence[int]
) -> None:
    killed = 0
    for seed in seeds:
        path = tmp_path / "cache"
        ends = kill_some(path, random.Random(seed), [TEXTS] * 3)
        killed += ends.count(-signal.SIGKILL)
        assert ends[-1] == 0, f"seed {seed}: the writer that lived failed"
        # The one that lived has taken over whatever the dead had begun. Who was killed right after
        # the very last commit left its reservation behind, which the next writer removes.
        check_answers(path, TEXTS)
        write_all(path, TEXTS)
        assert stored_bytes(path) == undisturbed, f"seed {seed}"
        shutil.rmtree(path)
    assert killed >= len(seeds)


@pytest.mark.parametrize(
    "seeds",
    [range(TRIALS), pytest.param(range(TRIALS, TRIALS + MORE_TRIALS), marks=pytest.mark.slow)],
    ids=["a few", "many"],
)
def test_writers_of_overlapping_texts_killed_at_random(
    tmp_path: Path, seeds: Sequence[int]
) -> None:
    for seed in seeds:
        path, chance = tmp_path / "cache", random.Random(seed)
        corpora = [TEXTS[:400], TEXTS[:199:-1], chance.sample(TEXTS, 300)]
        kill_some(path, chance, corpora)
        cache = open_cache(path)
        cache.lookup(corpora[-1])
        found = np.flatnonzero(cache.find(keys_of(TEXTS)) >= 0)
        check_answers(path, [TEXTS[number] for number in found])
        write_all(path, TEXTS)
        check_answers(path, TEXTS)
        shutil.rmtree(path)


def test_many_writers_race_to_make_a_new_cache(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    children = [start(lambda: write_all(tmp_path / "cache", TEXTS)) for _ in range(8)]
    assert [end_of(child) for child in children] == [0] * 8
    assert stored_bytes(tmp_path / "cache") == undisturbed


def test_a_writer_that_was_stopped_harms_nobody(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped (not killed), taken for dead after its patience, and then goes on."""
    stopped = start(lambda: write_all(tmp_path / "cache", TEXTS, 0.05))
    reservations = tmp_path / "cache" / "teachers" / MANIFEST.fingerprint / "reservations"
    while not list(reservations.glob("0*")):
        time.sleep(0.001)
    with locked(tmp_path / "cache"):  # not while it holds the lock itself, or all would wait for it
        os.kill(stopped, signal.SIGSTOP)
    try:
        with CacheWriter(tmp_path / "cache", MANIFEST, patience_s=0.2) as writer:
            work = Work(writer, keys_of(TEXTS))
            while (task := work.reserve()) is not None:
                commit(writer, [TEXTS[row] for row in task.rows], task.reservation)
        assert stored_bytes(tmp_path / "cache") == undisturbed
    finally:
        os.kill(stopped, signal.SIGCONT)
    # It learns that its shard is another's: an error if it was in the middle of one.
    assert end_of(stopped) in (0, 1)
    assert stored_bytes(tmp_path / "cache") == undisturbed


def test_clocks_that_go_backwards(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_bad_clock() -> None:
        now = iter(range(2_000_000_000, 0, -100_000))
        time.time = lambda: float(next(now))
        time.time_ns = lambda: next(now) * 10**9
        write_all(tmp_path / "cache", TEXTS, 0.005)

    children = [start(with_a_bad_clock) for _ in range(3)]
    os.kill(children[0], signal.SIGKILL)
    assert [end_of(child) for child in children[1:]] == [0, 0]
    end_of(children[0])
    write_all(tmp_path / "cache", TEXTS)
    assert stored_bytes(tmp_path / "cache") == undisturbed


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The folder mounted over itself, read-only; skips where mounting is not permitted."""
    commands = (["mount", "--bind"], ["mount", "-o", "remount,ro,bind"])
    if shutil.which("mount") is None:
        pytest.skip("no mount")
    for command in commands:
        if subprocess.run([*command, str(path), str(path)], capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_read_only_cache_can_be_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write_cache(path, MANIFEST, [TEXTS[:64]])
    before = stored_bytes(path)
    with read_only(path):
        check_answers(path, TEXTS[:64])
        with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
            CacheWriter(path, MANIFEST)
        with pytest.raises(ArmadaError):
            write_all(path, TEXTS)
    assert stored_bytes(path) == before


def test_a_teacher_that_another_adds_this_moment_is_no_other_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes right after the teachers were listed."""
    create_cache(tmp_path)

    def listed_before_it_came(path: Path) -> list[TeacherManifest]:
        found = manifests.list_teachers(path)
        write_cache(tmp_path, MANIFEST, [])
        return found

    monkeypatch.setattr(teacher_folder, "list_teachers", listed_before_it_came)
    assert teacher_folder.check_teacher(tmp_path, MANIFEST.spec, None, add_teacher=False) is None
    assert (
        teacher_folder.check_teacher(tmp_path, MANIFEST.spec, None, add_teacher=False) == MANIFEST
    )
