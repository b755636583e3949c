"""Pulls into one cache come one after another: what each has planned holds until it is done."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
from armada.cache_schemas.errors import CacheError, LinkedPathError, OutputError, StorageError
from armada.cache_schemas.layout import PULL_LOCK
from armada.stages.store.files import lock
from armada.stages.store.format.manifests import read_part
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.transfer.arrivals import Arrivals, shard_files
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.local_part import one_pull
from armada.stages.store.transfer.location import open_location
from armada.stages.store.transfer.pull import Choice, planned, pull
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.upkeep.verify import verify
from armada.stages.store.writing.reservations import discard
from small_caches import keys_of, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, bring, visible

HOLD = """
import sys, time
from pathlib import Path
from armada.stages.store.transfer.local_part import one_pull
with one_pull(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def pull_features(source: Path, cache: Path, *names: str, waiting: threading.Event) -> None:
    location = open_location(str(source))
    choice = Choice(teachers=(MANIFEST.fingerprint,), features=names)
    index = read_origin(location)
    with planned(location, index, cache, choice, 2, waiting=waiting.set) as plan:
        pull(location, cache, plan, 2, lambda count: None)


def test_pulls_of_two_features_at_once_bring_both(source: Path, tmp_path: Path) -> None:
    """The second one begins when the first has planned and brought nothing yet."""
    cache, waited = tmp_path / "cache", threading.Event()
    location = open_location(str(source))
    choice = Choice(teachers=(MANIFEST.fingerprint,), features=("pooled",))
    with ThreadPoolExecutor(1) as pool:
        with planned(location, read_origin(location), cache, choice, 2) as plan:
            second = pool.submit(pull_features, source, cache, "score", waiting=waited)
            assert waited.wait(60)
            pull(location, cache, plan, 2, lambda count: None)
            assert open_cache(cache).features == ("pooled",)
        second.result(60)
    assert open_cache(cache).features == ("pooled", "score")
    assert verify(survey_cache(cache)).damages == ()
    mine = {n: d for n, d in visible(stored_bytes(source)).items() if n.startswith(FOLDER)}
    assert {n: d for n, d in stored_bytes(cache).items() if n.startswith(FOLDER)} == mine


def test_a_pull_that_was_killed_keeps_nobody_waiting(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    assert [file.name for file in cache.iterdir()] == [PULL_LOCK]
    write_cache(cache, MANIFEST, [])  # the folder counts as new
    bring(source, cache)
    assert visible(stored_bytes(cache)) == visible(stored_bytes(source))
    assert not (cache / PULL_LOCK).exists()


def test_a_lock_that_its_holder_has_removed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder leaves between our opening the file and our locking it."""
    opened, of_the_lock = [], lock.open_lock

    def open_lock(cache: Path, name: str) -> BinaryIO:
        opened.append(of_the_lock(cache, name))
        if len(opened) == 1:
            (cache / name).unlink()
        return opened[-1]

    monkeypatch.setattr(lock, "open_lock", open_lock)
    with one_pull(tmp_path):
        assert len(opened) == 2
        assert (tmp_path / PULL_LOCK).exists()


def test_a_folder_that_goes_again_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another pull, which came to nothing, removes the folder that both wanted."""
    opened, of_the_lock = [], lock.open_lock

    def open_lock(cache: Path, name: str) -> BinaryIO:
        opened.append(name)
        if len(opened) == 1:
            cache.rmdir()
        return of_the_lock(cache, name)

    monkeypatch.setattr(lock, "open_lock", open_lock)
    with one_pull(tmp_path / "cache"):
        assert len(opened) == 2


def test_the_lock_of_another_is_not_removed(tmp_path: Path) -> None:
    with one_pull(tmp_path):
        (tmp_path / PULL_LOCK).unlink()
        (tmp_path / PULL_LOCK).write_text("another pull's")
    assert (tmp_path / PULL_LOCK).exists()


def test_what_a_writer_did_since_the_plan_is_seen(source: Path, tmp_path: Path) -> None:
    cache, location = tmp_path / "cache", open_location(str(source))
    choice = Choice(
        teachers=(MANIFEST.fingerprint,), features=("pooled",), keys=keys_of(["text 70"])
    )
    with planned(location, read_origin(location), cache, choice, 2) as plan:
        write_cache(cache, MANIFEST, [["a text of our own"]])
        with pytest.raises(CacheError, match=r"changed teacher .* while this pull was planned"):
            pull(location, cache, plan, 2, lambda count: None)
    assert read_part(cache, MANIFEST.fingerprint) is None
    assert len(open_cache(cache)) == 1


def test_a_teacher_that_is_removed_meanwhile_does_not_come_back(
    source: Path, tmp_path: Path
) -> None:
    location = open_location(str(source))
    origin = next(t for t in read_origin(location).teachers if t.manifest == MANIFEST)
    write_cache(tmp_path, MANIFEST, [])
    files = list(shard_files(MANIFEST, origin.commits[0], ("pooled", "score"), ("rows",)))
    with Arrivals(tmp_path, MANIFEST) as arrivals:
        (tmp_path / FOLDER / "teacher.json").unlink()
        with pytest.raises(OutputError, match="was removed by another process"):
            arrivals.receive(location, files, origin.commits[0])
    assert not list((tmp_path / FOLDER).glob("commits/*"))


def test_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def enter(_: int) -> None:
        nonlocal inside, most
        with one_pull(tmp_path):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(40)))
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match="refused"), one_pull(tmp_path / "here/new/cache"):
        raise ValueError("refused")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_is_something_else_is_left_as_it_was(source: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Exception, match="not an armada cache"):
        bring(source, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_the_lock_is_not_opened_through_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / PULL_LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(LinkedPathError, match="is a symbolic link"):
        bring(source, tmp_path / "cache")
    assert (tmp_path / "precious").read_text() == "mine"


def test_who_was_taken_for_dead_is_told(source: Path, tmp_path: Path) -> None:
    write_cache(tmp_path, MANIFEST, [])
    location = open_location(str(source))
    index = read_origin(location)
    origin = next(t for t in index.teachers if t.manifest == MANIFEST)
    files = list(shard_files(MANIFEST, origin.commits[0], ("pooled",), ("rows",)))
    with Arrivals(tmp_path, MANIFEST) as arrivals:
        for folder in (tmp_path / FOLDER / "reservations").glob("arriving-*"):
            discard(folder)
        with pytest.raises(StorageError, match=r"took this one for dead .* run the same command"):
            arrivals.receive(location, files, None)
    assert list((tmp_path / FOLDER).glob("*/c/*")) == []


def test_files_come_to_their_places_though_the_record_is_there(
    source: Path, tmp_path: Path
) -> None:
    bring(source, tmp_path, features=("score",), teachers=(MANIFEST.fingerprint,))
    location = open_location(str(source))
    index = read_origin(location)
    origin = next(t for t in index.teachers if t.manifest == MANIFEST)
    record = origin.commits[0]
    files = list(shard_files(MANIFEST, record, ("pooled", "score"), ("rows",)))
    before = {file.name: (tmp_path / file.name).stat().st_ino for file in files[1:]}
    with Arrivals(tmp_path, MANIFEST) as arrivals:
        arrivals.receive(location, files, record)
    assert (tmp_path / files[0].name).read_bytes() == (source / files[0].name).read_bytes()
    assert {file.name: (tmp_path / file.name).stat().st_ino for file in files[1:]} == before
