"""A writer knows what others have committed, and a commit costs the same however many there are."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from armada.cache_schemas.layout import commit_file
from armada.cache_schemas.manifest import CommitRecord
from armada.stages.store.files.lock import locked, note_change
from armada.stages.store.writing.teacher_folder import drop_shard, drop_teacher
from armada.stages.store.writing.writer import CacheWriter, Work
from small_caches import commit, keys_of, make_manifest, numbered_texts, write_cache

MANIFEST = make_manifest(rows_per_shard=64)
SHARDS = [numbered_texts(100 * n, 100 * n + 3) for n in range(80)]
ASKING = ("stat", "lstat", "listdir", "scandir", "open", "pread")


def questions_to_the_disk(task: Callable[[], object]) -> Counter[str]:
    """How often a task asks the file system for something, by call."""
    asked: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ASKING:
            asked[function.__name__] += 1

    sys.setprofile(note)
    try:
        task()
    finally:
        sys.setprofile(None)
    return asked


def test_a_commit_asks_no_more_of_a_large_cache(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, MANIFEST) as writer, CacheWriter(tmp_path, MANIFEST) as other:
        seen = {}
        for number, texts in enumerate(SHARDS):
            who = other if number % 2 else writer
            seen[number] = questions_to_the_disk(lambda who=who, texts=texts: commit(who, texts))
        assert seen[79] == seen[11]
        assert seen[78] == seen[10]
        assert seen[79]["pread"] > 0
        assert seen[79]["lstat"] > 0


def seen_by(writer: CacheWriter) -> list[int]:
    with writer.turn() as turn:
        assert [record.shard for record in writer.commits] == sorted(turn.commits)
        return sorted(turn.commits)


def test_what_is_changed_by_hand_is_seen(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, MANIFEST, SHARDS[:3])
    with CacheWriter(tmp_path, MANIFEST) as writer:
        assert seen_by(writer) == [0, 1, 2]
        moved = commit_file(folder, 1).rename(tmp_path / "aside")
        assert seen_by(writer) == [0, 2]
        moved.rename(commit_file(folder, 1))
        assert seen_by(writer) == [0, 1, 2]


def rewritten(file: Path) -> CommitRecord:
    """Another record in the file of one, which stays the same file as far as a stamp can tell."""
    before = file.stat()
    record = CommitRecord.model_validate_json(file.read_bytes())
    other = record.model_copy(update={"rows": record.rows + 1})
    file.write_bytes(other.to_json())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return other


def test_a_shard_made_again_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, MANIFEST, SHARDS[:3])
    with CacheWriter(tmp_path, MANIFEST) as writer:
        with locked(tmp_path):
            note_change(tmp_path, 1)
            other = rewritten(commit_file(folder, 1))
        with writer.turn() as turn:
            assert turn.commits[1] == other


def test_a_teacher_that_was_removed_and_made_again_has_none_of_its_shards(tmp_path: Path) -> None:
    write_cache(tmp_path, MANIFEST, SHARDS[:3])
    with CacheWriter(tmp_path, MANIFEST) as writer:
        work = Work(writer, keys_of([*SHARDS[0], *SHARDS[5]]))
        assert work.pending == 3
        with locked(tmp_path):
            drop_teacher(tmp_path, MANIFEST.fingerprint)
        write_cache(tmp_path, MANIFEST, SHARDS[5:6])
        assert work.reserve() is None
        assert seen_by(writer) == [0]


@pytest.mark.parametrize("notes", ["removed", "cut", "no notes", "too many", "of nothing"])
def test_notes_that_tell_nothing_cost_time_only(tmp_path: Path, notes: str) -> None:
    write_cache(tmp_path, MANIFEST, SHARDS[:3])
    lock = tmp_path / "writer.lock"
    with CacheWriter(tmp_path, MANIFEST) as writer:
        assert seen_by(writer) == [0, 1, 2]
        match notes:
            case "removed":
                lock.unlink()
            case "cut":
                os.truncate(lock, 3)
            case "no notes":
                lock.write_bytes(lock.read_bytes() + b"\xff17\n")
            case "too many":
                lock.write_bytes(lock.read_bytes() + b"000001\n" * 200_000)
            case "of nothing":
                lock.write_bytes(lock.read_bytes() + b"000001\n" * 3 + b"000009\n")
        write_cache(tmp_path, MANIFEST, [SHARDS[3]])
        with locked(tmp_path):
            drop_shard(tmp_path, MANIFEST.fingerprint, 0)
        assert seen_by(writer) == [1, 2, 3]
        assert commit(writer, SHARDS[0]).shard == 0
        assert commit(writer, SHARDS[4]).shard == 4


def test_a_number_that_something_has_on_the_disk_is_not_free(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, MANIFEST, SHARDS[:1])
    with CacheWriter(tmp_path, MANIFEST) as writer, writer.turn() as turn:
        commit_file(folder, 1).write_bytes(b"copied here this moment")
        assert [turn.reserve(keys_of(SHARDS[n]), p).shard for n, p in ((1, 1), (2, None))] == [2, 3]
