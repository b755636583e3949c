"""Writers of one cache, in turns: each key is dealt out once, and what one leaves another takes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import (
    CacheError,
    DamagedCacheError,
    ReservationLostError,
)
from armada.cache_schemas.layout import TEACHER_PART
from armada.cache_schemas.manifest import PartRecord, RunRecord
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing import writer as work_module
from armada.stages.store.writing.reservations import discard
from armada.stages.store.writing.writer import CacheWriter, Task, Work
from small_caches import commit, keys_of, make_manifest, numbered_texts, stored_bytes, write_cache

MANIFEST = make_manifest(rows_per_shard=64)
TEXTS = numbered_texts(0, 300)
SHARDS = [TEXTS[start : start + 64] for start in range(0, 300, 64)]


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    write_cache(tmp_path / "undisturbed", MANIFEST, SHARDS)
    return stored_bytes(tmp_path / "undisturbed")


class OneOfMany:
    """A writer with its work on the same texts."""

    def __init__(self, path: Path, texts: list[str] = TEXTS) -> None:
        self.writer = CacheWriter(path, MANIFEST)
        self.texts = texts
        self.work = Work(self.writer, keys_of(texts))

    def reserve(self, preferred: int | None = None) -> Task:
        task = self.work.reserve(preferred)
        assert task is not None
        return task

    def commit(self, task: Task) -> None:
        commit(self.writer, [self.texts[row] for row in task.rows], task.reservation)

    def finish(self) -> None:
        while (task := self.work.reserve()) is not None:
            self.commit(task)
        self.writer.__exit__(None, None, None)


def check_each_key_once(path: Path, texts: list[str]) -> None:
    keys = open_cache(path).keys
    assert len(np.unique(keys, axis=0)) == len(keys) == len(texts)
    open_cache(path).lookup(texts)


def test_writers_take_turns_and_leave_what_one_would_have(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    one, two = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    first, second, third = one.reserve(), two.reserve(), one.reserve()
    assert [task.reservation.shard for task in (first, second, third)] == [0, 1, 2]
    assert second.rows.tolist() == list(range(64, 128))
    for who, task in ((one, third), (two, second), (one, first)):
        who.commit(task)
    two.finish()
    one.finish()
    assert one.work.pending == two.work.pending == 300
    assert (one.work.done_elsewhere, two.work.done_elsewhere) == (300 - 128, 128)
    assert stored_bytes(tmp_path / "cache") == undisturbed


def test_overlapping_corpora_share_no_key(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache", TEXTS[:200])
    two = OneOfMany(tmp_path / "cache", TEXTS[:99:-1])
    tasks = [(who, who.reserve()) for who in (one, two, one, two)]
    asked = [{who.texts[row] for row in task.rows} for who, task in tasks]
    assert sum(map(len, asked)) == len(set().union(*asked))
    for who, task in reversed(tasks):
        who.commit(task)
    one.finish()
    two.finish()
    check_each_key_once(tmp_path / "cache", TEXTS)


def test_what_a_writer_gives_back_another_takes(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    one, two = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    left, other = one.reserve(), two.reserve()
    one.writer.__exit__(None, None, None)  # as after an error
    again = two.reserve()
    assert again.reservation.shard == left.reservation.shard == 0
    assert again.rows.tolist() == left.rows.tolist()
    two.commit(other)
    two.commit(again)
    two.finish()
    assert stored_bytes(tmp_path / "cache") == undisturbed


def test_what_is_given_back_after_its_keys_were_seen_keeps_its_number(tmp_path: Path) -> None:
    """Else the next keys would come under the number of those that nobody is at any more."""
    one, two = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    left = one.reserve()
    with two.writer.turn() as turn:
        assert [len(keys) for keys in turn.reserved_keys()] == [64]
        one.writer.release(left.reservation)
        assert turn.reserve(keys_of(SHARDS[1]), None).shard == 1
    one.writer.__exit__(None, None, None)
    two.writer.__exit__(None, None, None)


def test_the_last_shard_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "POLL_S", 0.0)
    one = OneOfMany(tmp_path / "cache", TEXTS[:64])
    task = one.reserve()
    waited: list[int] = []

    def while_two_waits(rows: int) -> None:
        waited.append(rows)
        if len(waited) == 3:
            one.commit(task)

    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        two = Work(writer, keys_of(TEXTS[:64]), while_two_waits)
        assert two.reserve() is None
        assert two.done_elsewhere == 64
    assert waited == [64, 64, 64]
    one.finish()


def test_keys_without_an_answer_are_not_dealt_out_again(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache", TEXTS[:64])
    task = one.reserve()
    commit(one.writer, TEXTS[:60], task.reservation)  # four could not be answered
    assert one.work.reserve() is None
    assert OneOfMany(tmp_path / "cache", TEXTS[:64]).reserve().rows.tolist() == [60, 61, 62, 63]


def test_a_key_that_repeats_is_dealt_out_once(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache", ["a", "b", "a", "c", "b"])
    assert one.reserve().rows.tolist() == [0, 1, 3]


def test_preferred_numbers_are_taken_if_free(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    numbers = [one.reserve(preferred).reservation.shard for preferred in (3, 3, None, 1, 9)]
    assert numbers == [3, 0, 1, 2, 9]
    one.writer.__exit__(None, None, None)


def test_who_was_taken_for_dead_commits_nothing(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    late, quick = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    task = late.reserve()
    discard(task.reservation.staging.folder)  # what a watcher does
    again = quick.reserve()
    assert again.reservation.shard == 0
    with pytest.raises(ReservationLostError, match="took this process for dead"):
        late.commit(task)
    assert len(open_cache(tmp_path / "cache")) == 0
    quick.commit(again)
    late.work.put_back(task)
    late.finish()
    quick.finish()
    assert stored_bytes(tmp_path / "cache") == undisturbed


def test_a_shard_that_was_lost_and_dropped_is_dealt_out_again(tmp_path: Path) -> None:
    late = OneOfMany(tmp_path / "cache")
    task = late.reserve()
    discard(task.reservation.staging.folder)
    with pytest.raises(ReservationLostError):
        late.commit(task)
    late.work.put_back(task)
    assert late.reserve().rows.tolist() == task.rows.tolist()
    late.writer.__exit__(None, None, None)


def test_lost_between_writing_and_moving(tmp_path: Path) -> None:
    """The files are whole and synced, but the folder is another's when they are to be moved."""
    late, quick = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    task = late.reserve()
    turn = late.writer.turn

    def taken_over_before_the_turn():  # type: ignore[no-untyped-def]
        discard(task.reservation.staging.folder)
        quick.commit(quick.reserve())
        return turn()

    late.writer.turn = taken_over_before_the_turn  # type: ignore[method-assign]
    with pytest.raises(ReservationLostError):
        late.commit(task)
    assert len(open_cache(tmp_path / "cache")) == 64
    assert open_cache(tmp_path / "cache")["pooled"][:].shape == (64, 5)


def test_other_teachers_of_a_cache_are_none_of_our_business(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    task = one.reserve()
    write_cache(tmp_path / "cache", make_manifest(other=1), [TEXTS[:10]])
    one.commit(task)
    one.finish()
    check_each_key_once_of = open_cache(tmp_path / "cache", MANIFEST.fingerprint)
    assert len(check_each_key_once_of) == 300


def test_a_move_that_fails_leaves_nothing_in_place(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    task = one.reserve()
    before = stored_bytes(tmp_path / "cache").keys()
    tables = one.writer.folder / "tables"
    tables.write_text("in the way of the last file before the record")
    with pytest.raises(DamagedCacheError, match="tables: is not a folder"):
        one.commit(task)
    tables.unlink()
    reserved = {name for name in before if "reservations" in name}
    assert stored_bytes(tmp_path / "cache").keys() == before - reserved
    one.writer.__exit__(None, None, None)


def test_nothing_of_a_dead_writer_stays_under_a_committed_number(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    left = one.writer.folder / "tables" / "images" / "000000.parquet"
    task = one.reserve()
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of other texts")
    one.commit(task)
    assert not left.exists()
    one.finish()


def test_what_is_no_reservation_is_nobodys_business(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    folder = one.writer.folder / "reservations"
    folder.mkdir(exist_ok=True)
    (folder / ".DS_Store").write_bytes(b"made by a file browser")
    (folder / "000000").symlink_to(tmp_path)
    (folder / "notes").mkdir()
    (folder / "000001").write_text("a file")
    (folder / "000002").mkdir()
    with one.writer.turn() as turn:
        assert list(turn.reserved) == [2]  # it may be a writer's, for a minute
        assert not list(turn.reserved_keys())
    one.finish()
    check_each_key_once(tmp_path / "cache", TEXTS)
    assert [commit.shard for commit in open_cache(tmp_path / "cache").commits] == [3, 4, 5, 6, 7]
    assert (folder / ".DS_Store").exists()


def test_keys_that_are_given_back_this_moment_are_nobodys(tmp_path: Path) -> None:
    """Nor is their number."""
    one, other = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    task = one.reserve()
    with other.writer.turn() as turn:
        assert sorted(turn.reserved) == [0]
        one.writer.release(task.reservation)
        assert not list(turn.reserved_keys())
        again = turn.reserve(keys_of(SHARDS[0]), 0)
        assert again.shard == 0
    other.writer.release(again)
    other.finish()
    one.writer.__exit__(None, None, None)


@pytest.mark.parametrize(("kind", "reason"), [("link", "symbolic link"), ("large", "at most")])
def test_keys_of_a_reservation_lead_nowhere(tmp_path: Path, kind: str, reason: str) -> None:
    one, other = OneOfMany(tmp_path / "cache"), OneOfMany(tmp_path / "cache")
    task = one.reserve()
    keys = task.reservation.staging.folder / "keys"
    if kind == "link":
        keys.unlink()
        keys.symlink_to("/dev/zero")
    else:
        os.truncate(keys, 2**40)
    with pytest.raises(DamagedCacheError, match=reason):
        other.reserve()


def test_a_damaged_record_of_a_run_is_replaced(tmp_path: Path) -> None:
    run = RunRecord(started="", versions={}, hardware={}, corpora=())
    with CacheWriter(tmp_path / "cache", MANIFEST) as writer:
        writer.record_run("run-1", run)
        (writer.folder / "runs/run-1.json").write_text("{")
        writer.record_run("run-1", run)
    assert open_cache(tmp_path / "cache").runs() == [run]


def test_nothing_is_added_to_what_has_become_a_part(tmp_path: Path) -> None:
    one = OneOfMany(tmp_path / "cache")
    one.commit(one.reserve())
    part = PartRecord(missing_features=("score",), next_shard=1)
    (one.writer.folder / TEACHER_PART).write_bytes(part.to_json())
    with pytest.raises(CacheError, match=r"without score, so nothing can be added"):
        one.reserve()


def test_two_that_change_a_run_lose_nothing(tmp_path: Path) -> None:
    writers = [CacheWriter(tmp_path / "cache", MANIFEST) for _ in range(4)]
    run = RunRecord(started="", versions={}, hardware={}, corpora=())

    def add(number: int) -> None:
        def added(before: RunRecord | None) -> RunRecord:
            seconds = (before or run).teacher_seconds | {number: 1.0}
            return run.model_copy(update={"teacher_seconds": seconds})

        writers[number % 4].update_run("run-1", added)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(40)))
    (record,) = open_cache(tmp_path / "cache").runs()
    assert set(record.teacher_seconds) == set(range(40))
