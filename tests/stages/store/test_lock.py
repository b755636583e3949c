"""The lock of a cache: one holder at a time, free when its process dies."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from armada.cache_schemas.errors import OutputError, StorageError
from armada.stages.store.files import lock
from armada.stages.store.files.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from armada.stages.store.files.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_others_wait_and_say_so_in_the_end(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(StorageError, match=r"another process has held writer\.lock"),
        locked(tmp_path, patience_s=0.01),
    ):
        pass
    with locked(tmp_path, patience_s=0):
        pass


def test_who_waits_for_more_than_a_turn_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "_A_TURN_S", 0.0)
    caplog.set_level(logging.INFO, "armada")
    with locked(tmp_path), pytest.raises(StorageError), locked(tmp_path, patience_s=0.05):
        pass  # another thread of this process would have it
    assert caplog.messages == []
    with lock.open_lock(tmp_path, "writer.lock") as theirs:
        assert lock.try_lock(theirs.fileno(), tmp_path)
        with pytest.raises(StorageError), locked(tmp_path, patience_s=0.05):
            pass
    assert caplog.messages == [
        f"cache {tmp_path}: waiting for another process, which holds writer.lock"
    ]


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(tmp_path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_killed_holder_frees_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StorageError), locked(tmp_path, patience_s=0.01):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path, patience_s=0):
        pass


def test_a_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "none"):
        pass
