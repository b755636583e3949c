"""Pushing: whole shards, the index last, no damage passed on; what was cut goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import zarr
from armada.cache_schemas.errors import CacheError, DamagedCacheError
from armada.cache_schemas.layout import CACHE_INDEX, CACHE_MANIFEST
from armada.cache_schemas.manifest import CacheIndex, RunRecord, parse_document
from armada.stages.store.reading.reader import open_cache, read_contents, read_digest
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.push import plan_push, push
from armada.stages.store.transfer.remote import RemoteLocation
from armada.stages.store.writing.writer import CacheWriter
from s3_server import new_bucket, objects
from small_caches import answer, commit, keys_of, numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, OTHER, bring, send, serve_ready, visible

RUN = RunRecord(
    started="2026-01-01T00:00:00+00:00",
    versions={},
    hardware={},
    corpora=(),
    teacher_seconds={0: 2.5, 1: 1.0},
)


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of the test's own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")
    return new_bucket(name, monkeypatch)


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty place in this process, faster than S3."""
    yield "memory://place"
    files = fsspec.filesystem("memory")
    if files.exists("/place"):
        files.rm("/place", recursive=True)


def in_memory() -> dict[str, bytes]:
    files = fsspec.filesystem("memory")
    names = files.find("/place")
    return {name.removeprefix("/place/"): files.cat_file(name) for name in names}


def test_through_s3_every_byte_comes_back(source: Path, bucket: str, tmp_path: Path) -> None:
    index = send(source, f"{bucket}/team/cache")
    assert index.digest == read_digest(source)
    bring(f"{bucket}/team/cache", tmp_path / "cache")
    assert visible(stored_bytes(tmp_path / "cache")) == visible(stored_bytes(source))
    there = {name.removeprefix("team/cache/"): data for name, data in objects(bucket).items()}
    assert visible(there) == visible(stored_bytes(source))


def test_zarr_opens_what_lies_in_s3(source: Path, bucket: str) -> None:
    send(source, bucket)
    store = zarr.storage.FsspecStore.from_url(f"{bucket}/{FOLDER}/pooled")
    expected = answer(MANIFEST.spec.features[0], numbered_texts(128, 192))
    assert (zarr.open_array(store, mode="r")[128:192] == expected).all()
    store.close()


def test_a_second_push_sends_only_what_is_new(source: Path, memory: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(source, cache)
    send(cache, memory)
    with CacheWriter(cache, OTHER) as writer:
        commit(writer, numbered_texts(700, 720))
    plans = plan_push(cache, read_contents(cache).teachers, RemoteLocation(memory))
    assert sorted(len(plan.shards) for plan in plans) == [0, 1]
    assert sorted(plan.there for plan in plans) == [2, 5]
    send(cache, memory)
    bring(memory, tmp_path / "again")
    assert visible(stored_bytes(tmp_path / "again")) == visible(stored_bytes(cache))


def test_a_bucket_that_is_not_there(source: Path, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=rf"{bucket}-not: there is no such bucket; check"):
        send(source, f"{bucket}-not")
    with pytest.raises(CacheError, match=rf"{bucket}-not/cache: there is no such bucket; check"):
        bring(f"{bucket}-not/cache", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cut_push_shows_nothing_and_goes_on(source: Path, memory: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(source, cut)
    missing = cut / FOLDER / "score/c/3"
    missing.unlink()
    with pytest.raises(DamagedCacheError, match=rf"{missing}: is missing"):
        send(cut, memory, jobs=1)
    there = in_memory()
    assert CACHE_INDEX not in there
    assert f"{FOLDER}/commits/000003.json" not in there
    assert f"{FOLDER}/commits/000000.json" in there
    for record in (name for name in there if "/commits/" in name):
        number = int(Path(record).stem)
        folder = record.partition("/commits")[0]
        assert f"{folder}/pooled/c/{number}/0" in there
        assert f"{folder}/score/c/{number}" in there
        assert f"{folder}/tables/rows/{number:06d}.parquet" in there
    plans = plan_push(source, read_contents(source).teachers, RemoteLocation(memory))
    assert 0 < sum(len(plan.shards) for plan in plans) < 7
    send(source, memory)
    assert visible(in_memory()) == visible(stored_bytes(source))


def test_damage_is_not_passed_on(source: Path, memory: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(source, cache)
    file = cache / FOLDER / "pooled/c/1/0"
    data = bytearray(file.read_bytes())
    data[9] ^= 4
    file.write_bytes(data)
    with pytest.raises(DamagedCacheError, match=rf"{file}: its bytes are not those"):
        send(cache, memory)
    assert f"{FOLDER}/commits/000001.json" not in in_memory()
    assert CACHE_INDEX not in in_memory()


def test_files_that_were_lost_there_are_sent_again(source: Path, memory: str) -> None:
    send(source, memory)
    fsspec.filesystem("memory").pipe_file(f"/place/{FOLDER}/pooled/c/1/0", b"short")
    send(source, memory)
    assert visible(in_memory()) == visible(stored_bytes(source))


def test_what_others_pushed_stays_listed(source: Path, memory: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_cache(one, MANIFEST, [numbered_texts(0, 64)])
    write_cache(other, OTHER, [numbered_texts(0, 64), numbered_texts(64, 100)])
    send(one, memory)
    send(other, memory)
    # A push that was cut before its index: its records count all the same.
    files = fsspec.filesystem("memory")
    index = in_memory()[CACHE_INDEX]
    send(source, memory)
    files.pipe_file(f"/place/{CACHE_INDEX}", index)
    send(other, memory)
    listed = parse_document(CacheIndex, in_memory()[CACHE_INDEX], CACHE_INDEX)
    assert listed == read_contents(source)


def test_other_shards_there_are_refused_before_anything_is_sent(
    source: Path, memory: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_cache(other, MANIFEST, [numbered_texts(500, 564)])
    send(other, memory)
    before = in_memory()
    with pytest.raises(
        CacheError, match=f"shard 0 of {source} is not shard 0 of {memory}; .*armada cache merge"
    ):
        send(source, memory)
    assert in_memory() == before


def test_shards_of_another_size_there_are_refused(
    source: Path, memory: str, tmp_path: Path
) -> None:
    manifest = MANIFEST.model_copy(update={"rows_per_shard": 128})
    write_cache(tmp_path / "other", manifest, [numbered_texts(500, 600)])
    send(tmp_path / "other", memory)
    with pytest.raises(CacheError, match=r"has 64 rows per shard, memory://place 128"):
        send(source, memory)


def test_a_place_that_is_something_else_is_refused(source: Path, memory: str) -> None:
    fsspec.filesystem("memory").pipe_file("/place/holiday.jpg", b"picture")
    with pytest.raises(CacheError, match="is neither empty nor an armada cache"):
        send(source, memory)
    fsspec.filesystem("memory").pipe_file(f"/place/{CACHE_MANIFEST}", b'{"format": "other"}')
    with pytest.raises(CacheError, match="this is not an armada cache"):
        send(source, memory)


def test_a_part_is_not_pushed(source: Path, memory: str, tmp_path: Path) -> None:
    bring(source, tmp_path / "part", features=("score",))
    with pytest.raises(CacheError, match=r"without pooled; only whole shards are pushed"):
        send(tmp_path / "part", memory)
    assert in_memory() == {}


def test_runs_of_several_places_are_added_up(memory: str, tmp_path: Path) -> None:
    caches = [tmp_path / "one", tmp_path / "two"]
    for number, cache in enumerate(caches):
        with CacheWriter(cache, MANIFEST) as writer:
            commit(writer, numbered_texts(0, 64))
            if number:
                commit(writer, numbered_texts(64, 128))
            seconds = {0: 2.5} | ({1: 1.0} if number else {})
            writer.record_run("run-1", RUN.model_copy(update={"teacher_seconds": seconds}))
    for cache in (*caches, caches[0]):
        send(cache, memory)
    assert read_origin(RemoteLocation(memory)).teachers[0].runs == {"run-1": RUN}
    bring(memory, tmp_path / "here")
    assert open_cache(tmp_path / "here").runs() == [RUN]


def test_a_partial_pull_counts_what_its_shards_cost(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "there", MANIFEST) as writer:
        commit(writer, numbered_texts(0, 64))
        commit(writer, numbered_texts(64, 128))
        writer.record_run("run-1", RUN)
    bring(tmp_path / "there", tmp_path / "here", keys=keys_of(numbered_texts(64, 65)))
    assert open_cache(tmp_path / "here").runs()[0].teacher_seconds == {1: 1.0}
    bring(tmp_path / "there", tmp_path / "here")
    assert open_cache(tmp_path / "here").runs() == [RUN]


def test_a_folder_that_was_pushed_to_is_a_cache_with_an_index(source: Path, tmp_path: Path) -> None:
    there = serve_ready(source, tmp_path / "there")
    assert visible(stored_bytes(there)) == visible(stored_bytes(source))
    index = parse_document(CacheIndex, (there / CACHE_INDEX).read_bytes(), CACHE_INDEX)
    assert index == read_contents(source)
    with CacheWriter(there, MANIFEST) as writer:
        assert commit(writer, numbered_texts(900, 901)).shard == 5


def test_a_push_between_the_list_and_the_index_of_another_is_listed(
    memory: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_cache(one, MANIFEST, [numbered_texts(0, 5), numbered_texts(5, 9)])
    write_cache(other, OTHER, [numbered_texts(0, 7)])

    class Interrupted(RemoteLocation):
        def write(self, name: str, data: bytes) -> None:
            if name == CACHE_INDEX and CACHE_INDEX not in in_memory():
                send(other, memory)
            super().write(name, data)

    location = Interrupted(memory)
    plans = plan_push(one, read_contents(one).teachers, location)
    index = push(one, plans, location, 1, lambda count: None)
    assert [len(teacher.commits) for teacher in index.teachers] == [1, 2]
    assert parse_document(CacheIndex, in_memory()[CACHE_INDEX], CACHE_INDEX) == index


def test_a_push_of_other_shards_meanwhile_is_noticed(memory: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_cache(one, MANIFEST, [numbered_texts(0, 5)])
    write_cache(other, MANIFEST, [numbered_texts(5, 9)])
    location = RemoteLocation(memory)
    plans = plan_push(one, read_contents(one).teachers, location)
    send(other, memory)
    files = fsspec.filesystem("memory")
    theirs = in_memory()[f"{FOLDER}/commits/000000.json"]

    def replaced(count: int) -> None:
        files.pipe_file(f"/place/{FOLDER}/commits/000000.json", theirs)

    with pytest.raises(CacheError, match=r"shard 0 of what was sent is not shard 0 of memory"):
        push(one, plans, location, 1, replaced)


def test_a_shard_that_vanishes_while_it_is_sent_is_named(source: Path, memory: str) -> None:
    location = RemoteLocation(memory)
    plans = plan_push(source, read_contents(source).teachers, location)
    files = fsspec.filesystem("memory")

    def removed(count: int) -> None:
        if f"{FOLDER}/commits/000000.json" in in_memory():
            files.rm(f"/place/{FOLDER}/commits/000000.json")

    with pytest.raises(CacheError, match=r"shard 0 of teacher .* was sent but is gone: another"):
        push(source, plans, location, 1, removed)
