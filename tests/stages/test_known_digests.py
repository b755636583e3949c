"""Digests that are remembered: read once, and never taken for a file that is another by now."""

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from armada.stages import known_digests
from armada.stages.known_digests import LEAST_BYTES, SETTLED_S, sha256_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for caches; what is written is settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ARMADA_REMEMBER_DIGESTS", raising=False)
    monkeypatch.setattr(known_digests, "SETTLED_S", -1.0)
    return tmp_path / "home" / "armada" / "digests"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a" * LEAST_BYTES)
    return file


def plain(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def records(home: Path) -> list[Path]:
    return list(home.glob("*")) if home.exists() else []


def is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a digest reads the file's content."""
    read = []
    digest = hashlib.file_digest
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *a: (read.append(1), digest(*a))[1])
        assert sha256_of(file) == plain(file)
    return bool(read)


def test_a_file_is_read_once(weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_read(weights, monkeypatch)
    assert not is_read(weights, monkeypatch)
    (record,) = records(home)
    assert record.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    os.link(weights, weights.with_name("same"))  # which changes its time of change
    assert is_read(weights, monkeypatch)
    assert not is_read(weights.with_name("same"), monkeypatch)


def test_another_content_is_read_whatever_its_times(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_read(weights, monkeypatch)
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"b")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert is_read(weights, monkeypatch)


def test_a_file_in_its_place_is_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_read(weights, monkeypatch)
    other = weights.with_name("other")
    other.write_bytes(b"c" * LEAST_BYTES)
    before = weights.stat()
    other.replace(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_read(weights, monkeypatch)


def test_a_file_of_the_last_seconds_is_not_recorded(
    weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_digests, "SETTLED_S", SETTLED_S)
    assert is_read(weights, monkeypatch)
    os.utime(weights, (1e9, 1e9))  # an old file, changed just now
    assert is_read(weights, monkeypatch)
    os.utime(weights, (time.time() + 1e6,) * 2)
    assert is_read(weights, monkeypatch)
    assert not records(home)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": "00"}', "\udc80"])
def test_a_broken_record_is_replaced(
    weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    assert is_read(weights, monkeypatch)
    (record,) = records(home)
    record.write_bytes(content.encode(errors="surrogateescape"))
    assert is_read(weights, monkeypatch)
    assert not is_read(weights, monkeypatch)


def test_a_record_that_others_could_write_does_not_count(
    weights: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_read(weights, monkeypatch)
    (record,) = records(home)
    known = json.loads(record.read_text())
    record.write_text(json.dumps(known | {"sha256": "0" * 64}))
    record.chmod(0o666)
    assert is_read(weights, monkeypatch)


def test_small_files_and_those_who_want_none_have_no_records(
    weights: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "config.json"
    small.write_text("{}")
    assert is_read(small, monkeypatch)
    assert is_read(small, monkeypatch)
    monkeypatch.setenv("ARMADA_REMEMBER_DIGESTS", "0")
    assert is_read(weights, monkeypatch)
    assert is_read(weights, monkeypatch)
    assert not records(home)


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    assert is_read(weights, monkeypatch)
    assert is_read(weights, monkeypatch)


def test_several_writers_leave_one_whole_record(weights: Path, home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(sha256_of, [weights] * 16)) == {plain(weights)}
    (record,) = records(home)
    assert json.loads(record.read_text())["sha256"] == plain(weights)
