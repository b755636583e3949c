"""Whatever is not as it was committed is found and named; the rest is checked all the same."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from armada.cache_schemas.errors import CacheError, CacheVersionError, DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import content_digest
from armada.stages.store.format.manifests import list_teachers, read_commits
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.upkeep.survey import survey_cache
from armada.stages.store.upkeep.verify import Verification, verify
from armada.stages.store.writing.writer import CacheWriter
from small_caches import (
    THREE_SHARDS,
    TWO_FEATURES,
    answer,
    keys_of,
    make_manifest,
    numbered_texts,
    write_cache,
)

MANIFEST = make_manifest()
OTHER = make_manifest(other=True)
SHARDS = THREE_SHARDS


def check(cache: Path, **how: object) -> Verification:
    return verify(survey_cache(cache), **how)  # type: ignore[arg-type]


def flip(path: Path, position: int = -30) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_with_link(path: Path) -> None:
    """The same bytes, but elsewhere."""
    elsewhere = path.parents[5] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def test_a_whole_cache_is_whole(cache: Path) -> None:
    found = check(cache)
    assert found.damages == ()
    assert (found.teachers, found.shards, found.read_shards, found.rows) == (2, 6, 6, 400)
    assert found.files == 6 * 3
    assert found.bytes == found.read_bytes
    files = [p for part in ("*/c/**/*", "tables/rows/*") for p in cache.glob(f"teachers/*/{part}")]
    assert found.bytes == sum(path.stat().st_size for path in files if path.is_file())
    assert (found.leftovers, found.in_the_making) == (0, 0)
    commits = [(t.fingerprint, c) for t in list_teachers(cache) for c in read_commits(cache, t)]
    assert found.digest == content_digest(commits)


FILES = ["pooled/c/1/0", "score/c/1", "tables/rows/000001.parquet"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, replace_with_link])
def test_damage_of_each_file_is_named(
    cache: Path, folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    (file,) = {p for p in folder.joinpath(name).rglob("*") if p.is_file()} or {folder / name}
    damage(file)
    (found,) = check(cache).damages
    assert (found.kind, found.teacher, found.shard) == ("shard", MANIFEST.fingerprint, 1)
    assert len(found.problems) == 1
    start = f"teacher {MANIFEST.fingerprint[:12]} shard 1: {file.relative_to(folder)}: "
    assert str(found).startswith(start)
    assert "\n" not in str(found)


def test_every_byte_of_a_shard_counts(cache: Path, folder: Path) -> None:
    file = folder / "score" / "c" / "2"
    whole = file.read_bytes()
    assert len(whole) == 64 * 4 + 2 * 16 + 4
    for position in range(0, len(whole), 7):
        flip(file, position)
        assert [str(damage.shard) for damage in check(cache).damages] == ["2"]
        file.write_bytes(whole)
    assert check(cache).damages == ()


def test_it_goes_on_after_damage(cache: Path, folder: Path) -> None:
    flip(folder / "pooled" / "c" / "0" / "0")
    cut(folder / "score" / "c" / "0")
    (folder / "commits" / "000001.json").write_text("{")
    flip(cache / "teachers" / OTHER.fingerprint / "tables" / "rows" / "000002.parquet", 50)
    (folder / "runs").mkdir()
    (folder / "runs" / "a.json").write_text("[]")
    found = {(d.kind, d.teacher, d.shard): d for d in check(cache).damages}
    assert set(found) == {
        ("shard", MANIFEST.fingerprint, 0),
        ("shard", MANIFEST.fingerprint, 1),
        ("shard", OTHER.fingerprint, 2),
        ("run", MANIFEST.fingerprint, None),
    }
    assert len(found["shard", MANIFEST.fingerprint, 0].problems) == 2
    assert check(cache).digest is None
    only_other = check(cache, teacher=OTHER.fingerprint[:6])
    assert [damage.shard for damage in only_other.damages] == [2]


@pytest.mark.parametrize("damage", [Path.unlink, halve, lambda path: path.write_text("{}")])
def test_a_teacher_without_its_manifest(
    cache: Path, folder: Path, damage: Callable[[Path], None]
) -> None:
    damage(folder / "teacher.json")
    found = check(cache)
    (one,) = found.damages
    assert (one.kind, one.teacher, one.shard) == ("teacher", MANIFEST.fingerprint, None)
    assert "teacher.json: " in str(one)
    assert "3 shards cannot be read" in str(one)
    assert (found.teachers, found.shards, found.digest) == (1, 3, None)


def test_a_cache_without_its_manifest(cache: Path) -> None:
    (cache / "armada.json").unlink()
    (found,) = check(cache).damages
    assert (found.kind, found.teacher) == ("cache", "")
    shutil.rmtree(cache / "teachers")
    with pytest.raises(CacheError, match="not an armada cache"):
        survey_cache(cache)


def test_another_version_is_no_damage(cache: Path) -> None:
    (cache / "armada.json").write_text('{"format": "armada-cache", "format_version": 3}')
    with pytest.raises(CacheVersionError):
        survey_cache(cache)


ZARR_DAMAGES = {
    "group": ("zarr.json", lambda text: text.replace("group", "array")),
    "not JSON": ("pooled/zarr.json", lambda text: text[:-3]),
    "type": ("pooled/zarr.json", lambda text: text.replace("float16", "float32")),
    "layout": ("pooled/zarr.json", lambda text: text.replace("128", "256")),
    "fill value": ("score/zarr.json", lambda text: text.replace('"NaN"', "0.0")),
    "rank": ("pooled/zarr.json", lambda text: text.replace("258,\n    5", "258")),
}


@pytest.mark.parametrize(("name", "change"), ZARR_DAMAGES.values(), ids=ZARR_DAMAGES)
def test_zarr_documents_that_do_not_fit(
    cache: Path, folder: Path, name: str, change: Callable[[str], str]
) -> None:
    file = folder / name
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    found = [(damage.kind, damage.file) for damage in check(cache).damages if damage.shard is None]
    assert found == [("zarr", file)]


def test_what_others_add_to_zarr_documents_is_no_damage(cache: Path, folder: Path) -> None:
    zarr.open_array(folder / "pooled", mode="r+").attrs["reviewed"] = True
    zarr.open_group(folder, mode="r+").attrs["reviewed"] = True
    document = json.loads((folder / "score" / "zarr.json").read_text())
    document["shape"][0] -= 1  # a writer died between a commit and the count
    (folder / "score" / "zarr.json").write_text(json.dumps(document))
    assert check(cache).damages == ()


def test_chunks_in_another_order_are_read_through_zarr(tmp_path: Path) -> None:
    """A writer that is not ours may put inner chunks in any order, and commit that."""
    folder = write_cache(tmp_path / "cache", MANIFEST, [numbered_texts(0, 100)])
    array = zarr.open_array(folder / "pooled", mode="r+")
    expected = answer(TWO_FEATURES[0], numbered_texts(0, 100))
    array[...] = np.asarray(array[...])[::-1]  # inner chunks written anew, first to last
    (file,) = [p for p in (folder / "pooled" / "c").rglob("*") if p.is_file()]
    data = file.read_bytes()
    assert check(tmp_path / "cache").damages != ()
    commit_again(folder / "commits" / "000000.json", "pooled", data)
    assert check(tmp_path / "cache").damages == ()
    np.testing.assert_array_equal(open_cache(tmp_path / "cache")["pooled"][:], expected[::-1])


def commit_again(record: Path, feature: str, data: bytes) -> None:
    """Let a commit record name other bytes of a feature."""
    import xxhash

    document = json.loads(record.read_text())
    document["features"][feature] = {
        "bytes": len(data),
        "xxh3_128": xxhash.xxh3_128(data).hexdigest(),
    }
    record.write_text(json.dumps(document))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("row", [0, 99])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float, dtype: str, row: int) -> None:
    manifest = make_manifest([FeatureSpec(name="wide", shape=(3, 2), dtype=dtype)])
    values = np.zeros((100, 3, 2), dtype)
    values[:2] = np.finfo(dtype).max, np.finfo(dtype).min
    values[row, 2, 1] = value
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        writer.commit(keys_of(numbered_texts(0, 100)), {"wide": values}, np.zeros(100, bool))
    (found,) = check(tmp_path / "cache").damages
    assert "wide/c/0/0/0: holds numbers that are not finite" in str(found)


def test_large_and_tiny_numbers_are_finite(tmp_path: Path) -> None:
    manifest = make_manifest([FeatureSpec(name="wide", shape=(4,), dtype="float16")])
    limits = np.finfo(np.float16)
    values = np.tile(
        np.array([limits.max, limits.min, limits.smallest_subnormal, -0.0], np.float16), (65, 1)
    )
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        writer.commit(keys_of(numbered_texts(0, 65)), {"wide": values}, np.zeros(65, bool))
    assert check(tmp_path / "cache").damages == ()


def test_keys_that_were_committed_twice(tmp_path: Path) -> None:
    shards = [numbered_texts(0, 20), numbered_texts(20, 30), [*numbered_texts(18, 20), "text 25"]]
    write_cache(tmp_path / "cache", MANIFEST, [*shards, ["new", "new"]])
    write_cache(tmp_path / "cache", OTHER, [numbered_texts(0, 30)])
    found = {damage.shard: str(damage) for damage in check(tmp_path / "cache").damages}
    assert set(found) == {2, 3}
    assert "3 keys are committed already" in found[2]
    assert keys_of(["text 18"]).tobytes().hex() in found[2]
    assert "1 keys are committed already" in found[3]


def test_quick_compares_sizes_only(cache: Path, folder: Path) -> None:
    flip(folder / "pooled" / "c" / "0" / "0")
    assert check(cache, sample=0).damages == ()
    assert check(cache, sample=0).read_bytes == 0
    cut(folder / "pooled" / "c" / "1" / "0")
    assert [damage.shard for damage in check(cache, sample=0).damages] == [1]


def test_a_sample_reads_some_shards_and_sizes_of_all(cache: Path, folder: Path) -> None:
    cut(folder / "score" / "c" / "2")
    for shard in range(3):
        flip(folder / "pooled" / "c" / str(shard) / "0", 5)
    found = {seed: check(cache, sample=2, seed=seed) for seed in range(20)}
    assert {one.read_shards for one in found.values()} == {2}
    assert all(2 in {damage.shard for damage in one.damages} for one in found.values())
    seen = {len(one.damages) for one in found.values()}
    assert seen == {1, 2, 3}  # which shards are read depends on the seed
    assert check(cache, sample=2).damages == check(cache, sample=2).damages
    assert len(check(cache, sample=100).damages) == 3


def test_what_dead_writers_left_is_counted_and_no_damage(cache: Path, folder: Path) -> None:
    (folder / "tables" / "rows" / "000009.parquet").write_bytes(b"")
    (folder / "pooled" / "c" / "7").mkdir()
    (folder / "commits" / "000003.json.partial").write_text("{")
    (cache / "teachers" / ("0" * 32)).mkdir()
    with CacheWriter(cache, OTHER) as writer:
        reservation = writer.reserve(keys_of(["new"]))
        found = check(cache)
        writer.release(reservation)
    assert (found.damages, found.leftovers, found.in_the_making) == ((), 3, 1)


def test_progress_counts_shards(cache: Path) -> None:
    steps: list[int] = []
    check(cache, advance=steps.append)
    assert steps == [1] * 6


def test_an_unknown_teacher_is_refused(cache: Path) -> None:
    with pytest.raises(CacheError, match="teacher 'x': is not in the cache"):
        check(cache, teacher="x")


# On first open.


def read_all(cache: Path) -> None:
    opened = open_cache(cache, MANIFEST.fingerprint, verify=True)
    rows = opened.lookup(numbered_texts(0, 200))
    for name in opened.features:
        expected = answer(opened.feature_spec(name), numbered_texts(0, 200))
        np.testing.assert_array_equal(opened[name][rows], expected, strict=True)
    opened.table("rows", {"truncated": pa.bool_()})


@pytest.mark.parametrize("name", ["pooled/c/1/0", "score/c/1", "tables/rows/000001.parquet"])
def test_checksums_are_compared_on_first_open(cache: Path, folder: Path, name: str) -> None:
    read_all(cache)
    flip(folder / name, 20)
    with pytest.raises(DamagedCacheError, match=f"{name}.*xxh3_128"):
        read_all(cache)


def test_only_what_is_opened_is_compared_and_only_once(cache: Path, folder: Path) -> None:
    feature = open_cache(cache, MANIFEST.fingerprint, verify=True)["pooled"]
    flip(folder / "pooled" / "c" / "1" / "0", 20)
    expected = answer(TWO_FEATURES[0], numbered_texts(0, 128))
    np.testing.assert_array_equal(feature[:128], expected)
    flip(folder / "pooled" / "c" / "0" / "0", 20)
    feature[:128]
    with pytest.raises(DamagedCacheError):
        feature[128:129]


def test_the_check_travels_to_other_processes(cache: Path, folder: Path) -> None:
    feature = open_cache(cache, MANIFEST.fingerprint, verify=True)["pooled"]
    flip(folder / "pooled" / "c" / "0" / "0", 20)
    with pytest.raises(DamagedCacheError):
        pickle.loads(pickle.dumps(feature))[0]


def test_features_of_a_partly_held_teacher(cache: Path, folder: Path) -> None:
    shutil.rmtree(folder / "score")
    assert len(check(cache).damages) == 4
    (folder / "part.json").write_text('{"missing_features": ["score"], "next_shard": 3}')
    assert check(cache).damages == ()
    (folder / "part.json").write_text("{")
    (found,) = check(cache).damages
    assert (found.kind, found.file.name) == ("teacher", "part.json")
