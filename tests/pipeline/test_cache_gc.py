"""`armada cache gc` removes what belongs to nobody, and nothing else."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter, Work
from command_line import CommandLine
from small_caches import keys_of, make_manifest, numbered_texts, stored_bytes, write_cache

MANIFEST = make_manifest()


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", MANIFEST, [numbered_texts(0, 100)])
    return tmp_path / "cache"


def leave_a_reservation(cache: Path, sign: signal.Signals) -> int:
    """Another process reserves a shard, writes a file for it, and gets a signal."""
    child = os.fork()
    if child == 0:
        with CacheWriter(cache, MANIFEST) as writer:
            task = Work(writer, keys_of(numbered_texts(100, 150))).reserve()
            assert task is not None
            (task.reservation.staging.workplace / "file-0").write_bytes(b"x" * 1000)
            os.kill(os.getpid(), sign)
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    return child


def test_leftovers_are_removed(cache: Path, armada: CommandLine) -> None:
    whole = stored_bytes(cache)
    leave_a_reservation(cache, signal.SIGKILL)
    folder = cache / "teachers" / MANIFEST.fingerprint
    for name in ("armada.json.partial", "teachers/zarr.json.partial"):
        (cache / name).write_bytes(b"left")
    for name in ("pooled/c/7/0", "tables/rows/000007.parquet", "reservations/new-0/keys"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left")
    would = json.loads(armada.done("cache", "gc", cache, "--dry-run", "--json"))
    assert len(would["paths"]) == 6
    assert would["bytes"] > 1000 + 5 * 4
    assert stored_bytes(cache) != whole
    done = json.loads(armada.done("cache", "gc", cache, "--json"))
    assert done == would | {"dry_run": False}
    assert stored_bytes(cache) == whole
    assert armada.done("cache", "gc", cache) == "removed 0 files left by dead writers, 0 B\n"


def test_a_living_writer_is_left_alone(cache: Path, armada: CommandLine) -> None:
    child = leave_a_reservation(cache, signal.SIGSTOP)
    before = stored_bytes(cache)
    assert json.loads(armada.done("cache", "gc", cache, "--json"))["paths"] == []
    assert stored_bytes(cache) == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(json.loads(armada.done("cache", "gc", cache, "--json"))["paths"]) == 1


def test_what_is_no_cache_is_left_alone(tmp_path: Path, armada: CommandLine) -> None:
    (tmp_path / "notes.partial").write_text("mine")
    result = armada("cache", "gc", tmp_path)
    assert result.code == 2
    assert "not an armada cache" in result.error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.partial"]


def test_a_teacher_without_a_row_is_removed(cache: Path, armada: CommandLine) -> None:
    whole = stored_bytes(cache)
    empty = make_manifest(seed=1)
    with CacheWriter(cache, empty):
        pass
    folder = f"teachers/{empty.fingerprint}"
    assert (cache / folder).is_dir()
    assert open_cache(cache).teacher == MANIFEST  # it is no reason to ask which one is meant
    assert json.loads(armada.done("cache", "gc", cache, "--json"))["paths"] == [folder]
    assert stored_bytes(cache) == whole


def test_a_teacher_whose_first_shard_is_in_the_making_stays(
    tmp_path: Path, armada: CommandLine
) -> None:
    child = leave_a_reservation(tmp_path / "new", signal.SIGSTOP)
    assert json.loads(armada.done("cache", "gc", tmp_path / "new", "--json"))["paths"] == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = json.loads(armada.done("cache", "gc", tmp_path / "new", "--json"))["paths"]
    assert found == [f"teachers/{MANIFEST.fingerprint}"]
