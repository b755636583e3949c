"""Partial pulls: what is missing is known to readers and writers, and can be filled up later."""

from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import CacheError, DamagedCacheError, MissingFeatureError
from armada.cache_schemas.layout import TEACHER_PART
from armada.cache_schemas.manifest import PartRecord, TeacherManifest
from armada.stages.store.format.manifests import read_commits, read_part
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from file_server import serving
from small_caches import answer, commit, keys_of, numbered_texts, stored_bytes, write_cache
from transfers import FOLDER, MANIFEST, OTHER, bring, serve_ready, visible

ONE = {"teachers": (MANIFEST.fingerprint,)}
SOME = {"keys": keys_of(numbered_texts(60, 70))}  # of the first two shards


def shards(cache: Path, teacher: TeacherManifest = MANIFEST) -> list[int]:
    return [record.shard for record in read_commits(cache, teacher)]


def test_one_feature_then_the_rest(shared: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(shared) as server:
        bring(server.url, cache, features=("score",), **ONE)
        assert not any("pooled" in name for name in server.asked)
        opened = open_cache(cache)
        assert opened.features == ("score",)
        texts = numbered_texts(0, 100)
        spec = MANIFEST.spec.features[1]
        np.testing.assert_array_equal(opened["score"][opened.lookup(texts)], answer(spec, texts))
        with pytest.raises(MissingFeatureError, match=r"has score; this one was not pulled"):
            opened["pooled"]
        assert not (cache / FOLDER / "pooled").exists()
        server.asked.clear()
        bring(server.url, cache, **ONE)
        assert len(server.asked) == 1 + 5
        assert all("pooled" in name for name in server.asked[1:])
    assert open_cache(cache).features == ("pooled", "score")
    expected = {
        n: d for n, d in visible(stored_bytes(shared)).items() if OTHER.fingerprint not in n
    }
    assert visible(stored_bytes(cache)) == expected


def test_nothing_can_be_added_where_features_are_missing(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, features=("score",), **ONE)
    with pytest.raises(CacheError, match=r"without pooled, so nothing can be added; pull the rest"):
        CacheWriter(tmp_path, MANIFEST)


def test_shards_of_a_corpus_then_the_rest(shared: Path, tmp_path: Path) -> None:
    with serving(shared) as server:
        bring(server.url, tmp_path, **ONE, **SOME)
        assert shards(tmp_path) == [0, 1]
        assert len(server.asked) == 1 + 5 + 2 * 2  # the keys of all shards, features of two
        assert len(list(tmp_path.glob(f"{FOLDER}/tables/rows/*"))) == 2
        assert read_part(tmp_path, MANIFEST.fingerprint) == PartRecord(next_shard=5)
        server.asked.clear()
        bring(server.url, tmp_path)
        assert len(server.asked) == 1 + 3 * 3 + 2 * 3
    assert visible(stored_bytes(tmp_path)) == visible(stored_bytes(shared))


def test_texts_that_nobody_was_asked_about(shared: Path, tmp_path: Path) -> None:
    keys = keys_of(["never asked"])
    with pytest.raises(CacheError, match="holds none of the 1 texts of the corpus"):
        bring(shared, tmp_path / "cache", keys=keys)
    assert not (tmp_path / "cache").exists()


def test_another_feature_comes_for_all_shards_that_are_here(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, features=("score",), **ONE, **SOME)
    later = {"keys": keys_of(numbered_texts(200, 201))}
    bring(shared, tmp_path, features=("pooled",), **ONE, **later)
    assert shards(tmp_path) == [0, 1, 3]
    cache = open_cache(tmp_path)
    for spec in MANIFEST.spec.features:
        texts = [*numbered_texts(0, 128), *numbered_texts(192, 256)]
        np.testing.assert_array_equal(cache[spec.name][:], answer(spec, texts))
    assert not read_part(tmp_path, MANIFEST.fingerprint).missing_features


def test_a_writer_numbers_beyond_the_shards_that_were_not_pulled(
    shared: Path, tmp_path: Path
) -> None:
    bring(shared, tmp_path, **ONE, **SOME)
    with CacheWriter(tmp_path, MANIFEST) as writer:
        assert commit(writer, numbered_texts(900, 910)).shard == 5
    bring(shared, tmp_path, **ONE)
    assert shards(tmp_path) == [0, 1, 2, 3, 4, 5]
    assert open_cache(tmp_path).lookup(["text 905", "text 300"]).tolist() == [318, 300]


def test_features_cannot_be_added_to_shards_that_are_not_there(
    shared: Path, source: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    write_cache(small, MANIFEST, [numbered_texts(0, 64)])
    cache = tmp_path / "cache"
    bring(shared, cache, features=("score",), **ONE)
    with pytest.raises(CacheError, match=r"shard 1 of teacher .* is not at .*, so pooled cannot"):
        bring(small, cache)


def test_a_place_that_lacks_what_every_shard_here_has(shared: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    bring(shared, part, features=("score",), **ONE)
    bring(shared, tmp_path / "cache", features=("pooled",), **ONE, **SOME)
    with pytest.raises(MissingFeatureError, match=r"lacks pooled, which every shard here has"):
        bring(part, tmp_path / "cache")
    with pytest.raises(MissingFeatureError, match=r"feature 'pooled': .* has score"):
        bring(part, tmp_path / "other", features=("pooled",))


def test_a_part_of_a_part_says_what_is_missing(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path / "part", features=("score",), **ONE)
    served = serve_ready(tmp_path / "part", tmp_path / "served")
    with serving(served) as server:
        bring(server.url, tmp_path / "cache")
    assert open_cache(tmp_path / "cache").features == ("score",)
    assert visible(stored_bytes(tmp_path / "cache")) == visible(stored_bytes(tmp_path / "part"))


def test_a_cut_pull_of_a_feature_trusts_no_file_by_its_size(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, features=("score",), **ONE)
    whole, damaged = tmp_path / FOLDER / "pooled/c/0/0", tmp_path / FOLDER / "pooled/c/1/0"
    for number, path in enumerate((whole, damaged)):
        path.parent.mkdir(parents=True)
        data = bytearray((shared / FOLDER / f"pooled/c/{number}/0").read_bytes())
        data[0] ^= number
        path.write_bytes(data)
    with serving(shared) as server:
        bring(server.url, tmp_path, **ONE)
        assert f"{FOLDER}/pooled/c/0/0" not in server.asked
        assert f"{FOLDER}/pooled/c/1/0" in server.asked


def test_a_feature_is_held_only_when_all_of_it_is_here(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, features=("score",), **ONE)
    with serving(shared) as server:
        server.faults = {f"{FOLDER}/pooled/c/4/0": "gone"}
        with pytest.raises(DamagedCacheError, match="pooled/c/4/0: is committed but missing"):
            bring(server.url, tmp_path, jobs=1, **ONE)
        assert (tmp_path / FOLDER / "pooled/c/0/0").exists()
        assert open_cache(tmp_path).features == ("score",)
        server.faults = {}
        server.asked.clear()
        bring(server.url, tmp_path, **ONE)
        assert server.asked == ["index.json", f"{FOLDER}/pooled/c/4/0"]
    assert open_cache(tmp_path).features == ("pooled", "score")


def test_the_document_is_gone_when_nothing_is_missing(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, features=("score",), **ONE)
    assert (tmp_path / FOLDER / TEACHER_PART).exists()
    bring(shared, tmp_path, **ONE)
    assert not (tmp_path / FOLDER / TEACHER_PART).exists()


def test_the_keys_are_never_missing() -> None:
    with pytest.raises(ValueError, match="it is never missing"):
        PartRecord(missing_tables=("rows",), next_shard=0)


def test_shards_that_somebody_is_writing_are_waited_for(shared: Path, tmp_path: Path) -> None:
    with CacheWriter(tmp_path, MANIFEST) as writer:
        writer.reserve(keys_of(["another text"]))
        with pytest.raises(CacheError, match=r"another process is writing shard 0 of teacher"):
            bring(shared, tmp_path)
    bring(shared, tmp_path)


def test_a_refused_pull_of_a_feature_hides_nothing_from_a_living_writer(
    shared: Path, tmp_path: Path
) -> None:
    with CacheWriter(tmp_path, MANIFEST) as writer:
        writer.reserve(keys_of(["another text"]))
        with pytest.raises(CacheError, match="another process is writing shard 0"):
            bring(shared, tmp_path, features=("score",), **ONE)
        assert not (tmp_path / FOLDER / TEACHER_PART).exists()
    write_cache(tmp_path, MANIFEST, [["another text"]])
    assert open_cache(tmp_path, MANIFEST.fingerprint).features == ("pooled", "score")


def test_writers_at_the_same_time_get_other_numbers(shared: Path, tmp_path: Path) -> None:
    bring(shared, tmp_path, **ONE, **SOME)
    with CacheWriter(tmp_path, MANIFEST) as writer:
        reservation = writer.reserve(keys_of(numbered_texts(900, 910)))
        bring(shared, tmp_path, **ONE)
        assert reservation.shard == 5
    assert shards(tmp_path) == [0, 1, 2, 3, 4]
