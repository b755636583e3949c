"""Folders with one living owner: who is dead, who only looks it, and that the dead move nothing."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from armada.stages.store.writing import reservations
from armada.stages.store.writing.reservations import (
    HEARTBEAT,
    HeartbeatThread,
    Staging,
    Watch,
    discard,
    is_rubbish,
)
from hangs import HANG_S

OWN = """
import sys, time
from pathlib import Path
from armada.stages.store.writing.reservations import HeartbeatThread, Staging
heart = HeartbeatThread()
heart.add(Staging(Path(sys.argv[1]), {"note": b"mine"}))
print("made", flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which owns the folder 000003."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, str(tmp_path / "000003")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    yield process
    process.kill()
    process.communicate()


def test_a_living_owner_is_not_dead(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    watch = Watch(patience_s=600)
    assert not watch.is_dead(tmp_path / "000003")
    assert not watch.is_dead(tmp_path / "000003")


def test_a_killed_owner_is_dead_at_once(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    assert Watch(patience_s=600).is_dead(tmp_path / "000003")


def test_a_stopped_owner_is_dead_when_its_heartbeat_stays_the_same(
    tmp_path: Path, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    owner.send_signal(signal.SIGSTOP)
    watch = Watch(patience_s=60)
    assert not watch.is_dead(tmp_path / "000003")
    clock[0] += 59
    assert not watch.is_dead(tmp_path / "000003")
    clock[0] += 2
    assert watch.is_dead(tmp_path / "000003")


def test_a_beat_starts_the_wait_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ours = Staging(tmp_path / "000000", {})
    watch = Watch(patience_s=60)
    for _ in range(5):
        assert not watch.is_dead(ours.folder)
        clock[0] += 59
        ours.beat()
    assert not watch.is_dead(ours.folder)
    clock[0] += 61
    assert watch.is_dead(ours.folder)
    ours.remove()


def test_of_another_host_only_the_heartbeat_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(reservations, "host_id", lambda: "another kernel")
    ours = Staging(tmp_path / "000000", {})
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ours._heartbeat.close()  # as if it had died: the lock is free, or was never seen here
    watch = Watch(patience_s=60)
    assert not watch.is_dead(ours.folder)
    clock[0] += 61
    assert watch.is_dead(ours.folder)


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, owner: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    watch = Watch(patience_s=600)
    for _ in range(3):
        assert not watch.is_dead(tmp_path / "000003")
        os.utime(tmp_path / "000003" / HEARTBEAT, (0, 0))


def test_a_folder_without_a_heartbeat_is_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    (tmp_path / "000000").mkdir()
    watch = Watch(patience_s=60)
    assert not watch.is_dead(tmp_path / "000000")
    clock[0] += 61
    assert watch.is_dead(tmp_path / "000000")
    assert not watch.is_dead(tmp_path / "nothing there")


def test_what_is_no_heartbeat_leads_nowhere_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ours = Staging(tmp_path / "living", {})
    for name in ("pipe", "link", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / HEARTBEAT)
    (tmp_path / "link" / HEARTBEAT).symlink_to(ours.folder / HEARTBEAT)
    (tmp_path / "folder" / HEARTBEAT).mkdir()
    watch = Watch(patience_s=60)
    folders = [tmp_path / name for name in ("pipe", "link", "folder")]
    assert not any(watch.is_dead(folder) for folder in folders)
    clock[0] += 61
    ours.beat()
    assert all(watch.is_dead(folder) for folder in folders)
    ours.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")
def test_another_user_goes_by_what_the_heartbeat_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        ours = Staging(Path(name) / "000000", {})
        os.chmod(ours.folder / HEARTBEAT, 0o644)
        looked, beaten = os.pipe(), os.pipe()
        process = os.fork()
        if not process:
            os.setuid(65534)
            watch = Watch(patience_s=60)
            seen = [watch.is_dead(ours.folder)]
            os.write(looked[1], b".")
            os.read(beaten[0], 1)
            for later in (1e6, 2e6):
                monkeypatch.setattr(time, "monotonic", lambda now=later: now)
                seen.append(watch.is_dead(ours.folder))
            os._exit(sum(2**place for place, dead in enumerate(seen) if dead))
        os.read(looked[0], 1)
        ours.beat()
        os.write(beaten[1], b".")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0b100
        ours.remove()


def test_a_name_has_one_owner(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    with pytest.raises(FileExistsError):
        Staging(tmp_path / "000003", {"note": b"theirs"})
    assert (tmp_path / "000003" / "note").read_bytes() == b"mine"
    assert [folder.name for folder in tmp_path.iterdir()] == ["000003"]


def test_who_was_taken_for_dead_can_move_nothing(tmp_path: Path) -> None:
    late = Staging(tmp_path / "000000", {})
    (late.workplace / "file").write_bytes(b"late")
    discard(late.folder)
    assert not late.is_ours()
    now = Staging(tmp_path / "000000", {"note": b"new owner"})
    assert not late.is_ours()
    with pytest.raises(FileNotFoundError):
        (late.workplace / "file").replace(tmp_path / "in place")
    with pytest.raises(FileNotFoundError):
        (late.workplace / "another file").write_bytes(b"late")
    late.beat()  # harms nobody
    late.remove()
    assert now.is_ours()
    assert (tmp_path / "000000" / "note").read_bytes() == b"new owner"
    now.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_heart_beats_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "BEAT_S", 0.001)
    heart = HeartbeatThread()
    ours = Staging(tmp_path / "000000", {})
    heart.add(ours)
    first = (ours.folder / HEARTBEAT).read_bytes()
    deadline = time.monotonic() + HANG_S
    while (ours.folder / HEARTBEAT).read_bytes() == first:
        assert time.monotonic() < deadline, "no beat"
        time.sleep(0.001)
    heart.stop()
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_half_made_is_rubbish(tmp_path: Path) -> None:
    assert is_rubbish(tmp_path / "new-00ff")
    assert is_rubbish(tmp_path / "dead-00ff")
    assert not is_rubbish(tmp_path / "000012")
