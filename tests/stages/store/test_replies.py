"""Replies that were paid for: on the disk before they count, found again after any death."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError, LinkedPathError, StorageError
from armada.cache_schemas.keys import KeyArray, example_key, keys_to_array
from armada.stages.store.files.atomic import open_new
from armada.stages.store.writing import replies as replies_module
from armada.stages.store.writing.replies import FOLDER, KeptReplies, Reply

TEACHER = "0123456789abcdef" * 2


def key(number: int) -> bytes:
    return example_key(f"text {number}")


def all_pending(keys: KeyArray) -> range:
    return range(len(keys))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    (folder / "teachers" / TEACHER).mkdir(parents=True)
    return folder


def files(cache: Path) -> list[Path]:
    return sorted((cache / "teachers" / TEACHER / FOLDER).glob("*"))


def test_a_reply_is_there_for_each_of_its_keys(cache: Path) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.keep([key(1), key(2) + b"\x01"], b"one and two").result(10)
    kept.keep([key(3)], b"three").result(10)
    assert kept.get(key(1)) == Reply(b"one and two", 2, 0)
    assert kept.get(key(2) + b"\x01") == Reply(b"one and two", 2, 1)
    assert kept.get(key(2)) is None
    assert len(kept) == 3
    kept.close()


def test_another_process_finds_what_one_that_was_killed_had_been_told(cache: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from armada.cache_schemas.keys import example_key
from armada.stages.store.writing.replies import KeptReplies
kept = KeptReplies(Path({str(cache)!r}), {TEACHER!r}, lambda keys: range(len(keys)))
for number in range(10**6):
    kept.keep([example_key(f"text {{number}}")], f"reply {{number}}".encode()).result()
    print(number, flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 50 + len(process.stdout.read().split())
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.see()
    for number in range(told):
        assert kept.get(key(number)) == Reply(f"reply {number}".encode(), 1, 0)
    kept.close()


def test_a_torn_end_is_no_reply(cache: Path) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    for number in range(3):
        kept.keep([key(number)], b"reply %d" % number).result(10)
    kept.close()
    (file,) = files(cache)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        kept = KeptReplies(cache, TEACHER, all_pending)
        kept.see()
        found = [kept.get(key(number)) for number in range(3)]
        kept.close()
        there = [each for each in found if each is not None]
        assert found == [*there, *[None] * (3 - len(there))]
        assert len(there) < 3
        assert [each.body for each in there] == [b"reply %d" % n for n in range(len(there))]
        if not there:  # nothing in it is needed
            assert files(cache) == []


def test_a_changed_byte_is_no_reply(cache: Path) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.keep([key(0)], b"zero").result(10)
    kept.keep([key(1)], b"one").result(10)
    kept.close()
    (file,) = files(cache)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.see()
    assert kept.get(key(0)) is not None
    assert kept.get(key(1)) is None
    kept.close()


def test_what_is_committed_is_kept_no_longer(cache: Path) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    for number in range(4):
        kept.keep([key(number)], b"reply").result(10)
    kept.forget(keys_to_array([key(0), key(1)]))
    assert kept.get(key(0)) is None
    assert kept.get(key(2)) is not None
    kept.forget(keys_to_array([key(2), key(3)]))
    kept.close()
    assert files(cache) == []


def test_a_dead_process_s_file_goes_when_its_examples_are_committed(cache: Path) -> None:
    first = KeptReplies(cache, TEACHER, all_pending)
    for number in range(3):
        first.keep([key(number)], b"reply").result(10)
    first.close()
    committed = {key(0)}

    def pending(keys: KeyArray) -> np.ndarray:
        return np.flatnonzero([bytes(each) not in committed for each in keys])

    second = KeptReplies(cache, TEACHER, pending)
    second.see()
    assert second.get(key(0)) is None
    assert second.get(key(1)) is not None
    assert len(files(cache)) == 1
    committed |= {key(1), key(2)}
    second.see()
    assert files(cache) == []
    second.close()


def test_a_living_process_s_file_stays(cache: Path) -> None:
    living = KeptReplies(cache, TEACHER, all_pending)
    living.keep([key(0)], b"zero").result(10)
    other = KeptReplies(cache, TEACHER, lambda keys: [])
    other.see()
    assert len(files(cache)) == 1
    living.keep([key(1)], b"one").result(10)
    other._pending = all_pending
    other.see()
    assert other.get(key(1)) == Reply(b"one", 1, 0)
    other.close()
    assert living.get(key(0)) == Reply(b"zero", 1, 0)
    living.close()


def test_a_file_that_is_not_locked_yet_may_be_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks between the making of a file and its lock takes it for a dead process's."""
    other = KeptReplies(cache, TEACHER, all_pending)
    made: list[Path] = []

    def open_and_be_seen(path: Path) -> BinaryIO:
        file = open_new(path)
        made.append(path)
        if len(made) == 1:
            other.see()
            assert not path.exists()
        return file

    monkeypatch.setattr(replies_module, "open_new", open_and_be_seen)
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.keep([key(0)], b"zero").result(10)
    assert len(made) == 2
    assert files(cache) == made[1:]
    other.see()
    assert other.get(key(0)) == Reply(b"zero", 1, 0)
    other.close()
    kept.close()


def test_files_are_of_limited_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies_module, "FILE_BYTES", 2000)
    kept = KeptReplies(cache, TEACHER, all_pending)
    for number in range(100):
        kept.keep([key(number)], os.urandom(100)).result(10)
    assert len(files(cache)) > 5
    assert all(kept.get(key(number)) is not None for number in range(100))
    kept.forget(keys_to_array([key(number) for number in range(90)]))
    assert 1 <= len(files(cache)) <= 2
    kept.close()


def test_replies_at_once_share_syncs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = []
    sync = os.fsync

    def slow_sync(descriptor: int) -> None:
        syncs.append(descriptor)
        time.sleep(0.02)
        sync(descriptor)

    monkeypatch.setattr(replies_module.os, "fsync", slow_sync)
    kept = KeptReplies(cache, TEACHER, all_pending)
    waiting = [kept.keep([key(number)], b"reply") for number in range(500)]
    for each in waiting:
        each.result(10)
    assert len(syncs) < 50
    kept.close()


def test_a_full_disk_is_an_error_of_the_reply_and_nothing_is_lost(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.keep([key(0)], b"zero").result(10)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(replies_module.os, "fsync", refuse)
        with pytest.raises(StorageError, match="No space left"):
            kept.keep([key(1)], b"one").result(10)
    assert kept.get(key(1)) is None
    kept.keep([key(2)], b"two").result(10)
    kept.close()
    again = KeptReplies(cache, TEACHER, all_pending)
    again.see()
    bodies = [reply and reply.body for reply in (again.get(key(number)) for number in range(3))]
    assert bodies == [b"zero", None, b"two"]
    again.close()


def test_no_link_is_followed(cache: Path, tmp_path: Path) -> None:
    folder = cache / "teachers" / TEACHER / FOLDER
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    kept = KeptReplies(cache, TEACHER, all_pending)
    with pytest.raises(LinkedPathError):
        kept.keep([key(0)], b"zero").result(10)
    kept.close()
    assert list(elsewhere.iterdir()) == []


def test_another_file_is_refused(cache: Path) -> None:
    folder = cache / "teachers" / TEACHER / FOLDER
    folder.mkdir()
    (folder / "a.log").write_text("something else altogether")
    kept = KeptReplies(cache, TEACHER, all_pending)
    with pytest.raises(DamagedCacheError, match="is no log of replies"):
        kept.see()
    kept.close()


def _keep_some(cache: Path, start: int, count: int) -> None:
    kept = KeptReplies(cache, TEACHER, all_pending)
    for number in range(start, start + count):
        kept.keep([key(number)], b"reply %d" % number).result(30)
        kept.see()
    os._exit(0)  # a death: nothing is tidied up


def test_many_processes_keep_and_see_at_once(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_keep_some, args=(cache, 50 * n, 50)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    kept = KeptReplies(cache, TEACHER, all_pending)
    kept.see()
    for number in range(150):
        assert kept.get(key(number)) == Reply(b"reply %d" % number, 1, 0)
    kept.close()
