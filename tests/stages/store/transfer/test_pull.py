"""Pulling: what arrives is what was there, only what is missing comes, nothing is ever torn."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from armada.cache_schemas.errors import CacheError, DamagedCacheError, StorageError
from armada.cache_schemas.layout import commit_file, teacher_folder
from armada.stages.store.reading.reader import open_cache, read_digest
from armada.stages.store.transfer.index import read_origin
from armada.stages.store.transfer.location import open_location
from armada.stages.store.transfer.pull import Choice, planned
from file_server import Fault, serving
from small_caches import answer, keys_of, numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, OTHER, bring, visible

FIRST_SHARD = f"{FOLDER}/pooled/c/0/0"


def test_over_http_every_byte_arrives_once(source: Path, shared: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(shared) as server:
        bring(server.url, cache)
        assert visible(stored_bytes(cache)) == visible(stored_bytes(source))
        assert len(server.asked) == len(set(server.asked)) == 1 + 7 * 3
        server.asked.clear()
        bring(server.url, cache)
        assert server.asked == ["index.json"]
    assert read_digest(cache) == read_digest(source)
    assert sorted(cache.glob("teachers/*/runs/*")) == []


def test_from_a_folder_and_a_file_url(source: Path, tmp_path: Path) -> None:
    for number, url in enumerate([str(source), f"file://{source}"]):
        cache = tmp_path / str(number)
        bring(url, cache)
        assert visible(stored_bytes(cache)) == visible(stored_bytes(source))


def test_a_cache_without_an_index_is_listed(source: Path, tmp_path: Path) -> None:
    with serving(source) as server:
        with pytest.raises(CacheError, match=r"holds no index\.json and its folders cannot be"):
            bring(server.url, tmp_path / "cache")
        server.listing = True
        bring(server.url, tmp_path / "cache")
    memory = fsspec.filesystem("memory")
    memory.put(str(source), "/there", recursive=True)
    bring("memory://there", tmp_path / "again")
    memory.rm("/there", recursive=True)
    for cache in (tmp_path / "cache", tmp_path / "again"):
        assert visible(stored_bytes(cache)) == visible(stored_bytes(source))


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with serving(tmp_path / "there") as server, pytest.raises(CacheError, match="not an armada"):
        bring(server.url, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fault", ["cut", "flip", "longer", "busy"])
def test_a_transfer_that_fails_once_is_repeated(
    fault: Fault, source: Path, shared: Path, tmp_path: Path
) -> None:
    with serving(shared) as server:
        server.faults = {FIRST_SHARD: [fault], "index.json": ["busy"]}
        bring(server.url, tmp_path / "cache")
    assert visible(stored_bytes(tmp_path / "cache")) == visible(stored_bytes(source))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("flip", DamagedCacheError, "arrived damaged 3 times .its bytes are not those"),
        ("longer", DamagedCacheError, "arrived damaged 3 times .has more than"),
        ("gone", DamagedCacheError, "is committed but missing; push the shard again"),
        ("denied", CacheError, "access is refused .403.*; check the credentials"),
        ("busy", StorageError, "cannot be reached .503.*; run the same command again"),
    ],
)
def test_a_shard_that_never_arrives_is_named_and_the_rest_is_kept(
    fault: Fault, error: type[Exception], words: str, shared: Path, source: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with serving(shared) as server:
        server.faults = {FIRST_SHARD: fault}
        with pytest.raises(error, match=rf"{server.url}/{FIRST_SHARD}: {words}"):
            bring(server.url, cache, teachers=(MANIFEST.fingerprint,), jobs=1)
        assert server.asked.count(FIRST_SHARD) == (1 if fault in ("gone", "denied") else 3)
        assert not commit_file(cache / FOLDER, 0).exists()
        assert not list(cache.rglob("reservations/*"))
        server.faults = {}
        bring(server.url, cache)
    assert visible(stored_bytes(cache)) == visible(stored_bytes(source))


def test_a_server_that_is_not_there(tmp_path: Path, shared: Path) -> None:
    with serving(shared) as server:
        url = server.url
    with pytest.raises(StorageError, match=rf"{url}/index\.json: cannot be reached .*onnect"):
        bring(url, tmp_path / "cache")


def test_a_damaged_file_of_a_local_source_does_not_spread(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(source, there)
    data = bytearray((there / FIRST_SHARD).read_bytes())
    data[3] ^= 1
    (there / FIRST_SHARD).write_bytes(data)
    with pytest.raises(DamagedCacheError, match=f"{there}/{FIRST_SHARD}: arrived damaged"):
        bring(there, tmp_path / "cache")


def test_committed_files_that_went_missing_come_again(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    bring(source, cache)
    (cache / FIRST_SHARD).unlink()
    (cache / FOLDER / "tables/rows/000001.parquet").write_bytes(b"short")
    plan = bring(source, cache)
    assert sum(len(shard.files) for teacher in plan.teachers for shard in teacher.shards) == 2
    assert visible(stored_bytes(cache)) == visible(stored_bytes(source))


def test_only_the_expected_digest_is_taken(shared: Path) -> None:
    with serving(shared) as server:
        location = open_location(server.url)
        digest = read_origin(location).digest
        assert read_origin(location, digest).digest == digest == read_digest(shared)
        with pytest.raises(
            CacheError, match=f"{server.url}: its digest is {digest}, not {'0' * 64}"
        ):
            read_origin(location, "0" * 64)
        assert set(server.asked) == {"index.json"}


def test_one_teacher_of_several(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path / "cache", teachers=(OTHER.fingerprint[:8],))
    cache = open_cache(tmp_path / "cache")
    assert cache.teacher == OTHER
    texts = numbered_texts(0, 100)
    spec = OTHER.spec.features[0]
    np.testing.assert_array_equal(cache["pooled"][cache.lookup(texts)], answer(spec, texts))
    with pytest.raises(CacheError, match="'ffff': is not in the cache"):
        bring(shared, tmp_path / "cache", teachers=("ffff",))


def test_other_shards_under_the_same_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_cache(cache, MANIFEST, [numbered_texts(500, 564)])
    before = stored_bytes(cache)
    with pytest.raises(
        CacheError, match=f"shard 0 of {cache} is not shard 0 of {source}; .*armada cache merge"
    ):
        bring(source, cache)
    assert stored_bytes(cache) == before


def test_shards_of_another_size_are_refused(source: Path, tmp_path: Path) -> None:
    manifest = MANIFEST.model_copy(update={"rows_per_shard": 128})
    write_cache(tmp_path / "cache", manifest, [])
    with pytest.raises(CacheError, match=r"has 128 rows per shard, .* 64; merge the two with"):
        bring(source, tmp_path / "cache")


def test_a_plan_writes_nothing(source: Path, tmp_path: Path) -> None:
    location = open_location(str(source))
    choice = Choice(keys=keys_of(numbered_texts(70, 75)))
    with planned(location, read_origin(location), tmp_path / "cache", choice, 1) as plan:
        first = (
            plan.teachers[0] if plan.teachers[0].origin.manifest == MANIFEST else plan.teachers[1]
        )
        assert [shard.record.shard for shard in first.shards] == [1]
        assert first.found == 5
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_disk_has_is_refused(source: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(source, there)
    record = commit_file(teacher_folder(there, MANIFEST.fingerprint), 0)
    size = (there / FIRST_SHARD).stat().st_size
    record.write_text(record.read_text().replace(f'"bytes": {size}', f'"bytes": {2**49}', 1))
    with pytest.raises(
        StorageError, match=rf"{2**49 // 10**6}\d* bytes to download, but the disk has"
    ):
        bring(there, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_two_pulls_at_once_end_in_one_cache(source: Path, shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: bring(server.url, tmp_path), range(2)))
    assert visible(stored_bytes(tmp_path)) == visible(stored_bytes(source))
