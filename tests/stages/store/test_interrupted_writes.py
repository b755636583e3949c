"""A writer that dies at any step, or meets a full disk, loses one shard and nothing else."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import StorageError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store import atomic
from armada.stages.store.reader import open_cache
from armada.stages.store.writer import CacheWriter, check_teacher
from small_caches import (
    answer,
    commit,
    keys_of,
    make_manifest,
    numbered_texts,
    stored_bytes,
    write_cache,
)

MANIFEST = make_manifest()
TEXTS = numbered_texts(0, 170)


class Killed(BaseException):
    """Goes through every handler, and leaves the disk as SIGKILL would."""


def write_what_is_missing(path: Path) -> None:
    """What a run does: check, open, commit what is pending in shards of 128."""
    known = check_teacher(path, MANIFEST.spec, None, add_teacher=False)
    with CacheWriter(path, known or MANIFEST) as writer:
        todo = writer.pending(keys_of(TEXTS))
        for start in range(0, len(todo), 128):
            commit(writer, [TEXTS[row] for row in todo[start : start + 128]])


def die_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on the writer dies at that file operation (counted from 0); returns a log."""
    log: list[str] = []
    replace = Path.replace

    def count(name: str) -> None:
        if len(log) == step:
            raise Killed(name)
        log.append(name)

    def counted_replace(self: Path, target: Path) -> Any:
        count(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: count("sync"))
    monkeypatch.setattr(Path, "replace", counted_replace)
    return log


def test_dying_at_any_step_loses_only_the_shard_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_what_is_missing(tmp_path / "whole")
    whole = stored_bytes(tmp_path / "whole")
    step = 0
    while True:
        path = tmp_path / f"killed at {step}"
        with monkeypatch.context() as patch:
            log = die_at(step, patch)
            try:
                write_what_is_missing(path)
                break
            except Killed:
                pass
        committed = log.count("rename to 000000.json") + log.count("rename to 000001.json")
        check_readable(path, committed, log)
        with monkeypatch.context() as patch:
            die_at(-1, patch)  # never, but without waiting for the disk
            write_what_is_missing(path)
        assert stored_bytes(path) == whole, log
        shutil.rmtree(path)
        step += 1
    # 2 shards of 2 features, a table and a commit record; 2 Zarr documents made and renewed twice;
    # 3 groups, 2 manifests; each file is synced, renamed, and its folder synced.
    assert step == 3 * (2 * 4 + 3 * 2 + 3 + 2)


def check_readable(path: Path, committed: int, log: list[str]) -> None:
    """Readers see whole shards only."""
    if "rename to teacher.json" in log:
        cache = open_cache(path)
        assert len(cache) == (0, 128, 170)[committed]
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
        assert writer.next_shard == 1
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
