"""A writer that dies at any step, or meets a full disk, loses one shard and nothing else."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import StorageError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.files import atomic
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.teacher_folder import check_teacher
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

MANIFEST = make_manifest()
TEXTS = numbered_texts(0, 170)


def write_what_is_missing(path: Path) -> None:
    """What a run does: check, open, commit what is pending in shards of 128."""
    known = check_teacher(path, MANIFEST.spec, None, add_teacher=False)
    with CacheWriter(path, known or MANIFEST) as writer:
        work = Work(writer, keys_of(TEXTS))
        while (task := work.reserve()) is not None:
            commit(writer, [TEXTS[row] for row in task.rows], task.reservation)


def killed_at(step: int, path: Path) -> bool:
    """Write in a process that dies at that file operation (counted from 0); False if it got by."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(step)
            write_what_is_missing(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _die_at(step: int) -> None:
    """From now on the process is killed before that sync or rename. Nothing waits for the disk."""
    left = count(step, -1)

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def die_or_do(*arguments: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments)

        return die_or_do

    os.fsync = dying(lambda descriptor: None)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    Path.rename = dying(Path.rename)  # type: ignore[method-assign]


def test_dying_at_any_step_loses_only_the_shard_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # here, too, nothing waits
    write_what_is_missing(tmp_path / "whole")
    whole = stored_bytes(tmp_path / "whole")
    for step in count():
        path = tmp_path / f"killed at {step}"
        if not killed_at(step, path):
            break
        check_readable(path)
        write_what_is_missing(path)
        assert stored_bytes(path) == whole, step
        shutil.rmtree(path)
    # Five documents; two shards of two features, a table and a record, each written, moved and
    # synced in its folder; two Zarr documents, thrice; two reservations made and given back.
    assert step > 3 * 5 + 2 * 3 * 4 + 3 * 2 * 3 + 4


def check_readable(path: Path) -> None:
    """Readers see whole shards only."""
    records = list(path.glob("teachers/*/commits/*.json"))
    if list(path.glob("teachers/*/teacher.json")):
        cache = open_cache(path)
        assert len(cache) == (0, 128, 170)[len(records)]
        for name in cache.features:
            expected = answer(cache.feature_spec(name), TEXTS[: len(cache)])
            np.testing.assert_array_equal(cache[name][:], expected, strict=True)


LARGE = make_manifest([FeatureSpec(name="large", shape=(256,), dtype="float32")], 128)
FullDisk = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """Writing past the limit fails with EFBIG: Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(path: Path, size: int) -> Iterator[None]:
    """A file system of that size at `path`; skips where one may not be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def check_full_disk(
    path: Path, full: AbstractContextManager[None], free: Callable[[], None]
) -> None:
    """The second shard does not fit: the first stays, nothing is left over, and a rerun goes on."""
    first, second = numbered_texts(0, 128), numbered_texts(128, 256)
    folder = write_cache(path, LARGE, [first])
    before = stored_bytes(path)
    with CacheWriter(path, LARGE) as writer:
        with full, pytest.raises(StorageError, match=r"c/1/0: the disk is full.*run the same"):
            commit(writer, second)
        assert len(writer.commits) == 1
    assert stored_bytes(path) == before
    assert len(open_cache(path)) == 128
    free()
    write_cache(path, LARGE, [second])
    values = open_cache(path)["large"][:]
    expected = answer(LARGE.spec.features[0], first + second)
    np.testing.assert_array_equal(values, expected, strict=True)
    del values
    assert not list(folder.rglob("*.partial"))


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    check_full_disk(tmp_path / "cache", no_file_larger_than(100_000), free=lambda: None)


def test_a_full_disk(tmp_path: Path) -> None:
    # A shard is 128 KiB and an index; ballast leaves room for one and the small files.
    with mounted(tmp_path / "disk", 480 * 1024):
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(bytes(192 * 1024))
        check_full_disk(tmp_path / "disk" / "cache", nullcontext(), free=ballast.unlink)


@pytest.mark.parametrize(
    ("blocked", "message"),
    [("folder", "cannot be written: Is a directory"), ("parent", "cannot be written: ")],
)
def test_a_failed_write_leaves_no_partial_file(tmp_path: Path, blocked: str, message: str) -> None:
    target = tmp_path / "folder" if blocked == "folder" else tmp_path / "parent" / "file"
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "parent").write_text("a file, not a folder")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=message):
        atomic.write_atomic(target, [b"bytes"])
    assert sorted(tmp_path.rglob("*")) == before


def test_replacing_a_file_is_one_step(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic.write_atomic(target, [b"old"])
    with no_file_larger_than(2), pytest.raises(StorageError):
        atomic.write_atomic(target, [b"newer"])
    assert target.read_bytes() == b"old"
    record = atomic.write_atomic(target, [b"new", memoryview(b"er")])
    assert target.read_bytes() == b"newer"
    assert record.bytes == 5
    assert list(tmp_path.iterdir()) == [target]
