"""Files that are cut while they are mapped: who asks first is told; who reads would be ended."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.ragged import Ragged
from armada.stages.store.reading.feature_array import FeatureArray, JoinedArray
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from small_caches import THREE_SHARDS, keys_of, make_manifest, write_cache

ROWS = np.arange(200)
SECOND = np.arange(128, 198)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache", make_manifest(), THREE_SHARDS)


@pytest.fixture
def feature(folder: Path) -> FeatureArray:
    """All of it is mapped."""
    found = open_cache(folder.parent.parent)["pooled"]
    found.gather(ROWS)
    return found


def test_a_whole_feature_is_whole(feature: FeatureArray) -> None:
    feature.require_whole(ROWS)


@pytest.mark.parametrize("left", [0, 100])
def test_a_cut_file_is_named(feature: FeatureArray, folder: Path, left: int) -> None:
    file = folder / "pooled" / "c" / "1" / "0"
    os.truncate(file, left)
    with pytest.raises(DamagedCacheError) as caught:
        feature.require_whole(SECOND[-1:])
    assert str(caught.value).startswith(f"{file}: was truncated to {left} bytes while in use; ")
    assert "`armada cache verify`" in str(caught.value)
    feature.require_whole(np.setdiff1d(ROWS, SECOND))


def test_rows_that_are_elsewhere_are_looked_for_there(feature: FeatureArray, folder: Path) -> None:
    joined = JoinedArray(feature, ROWS[::-1].copy(), "")
    os.truncate(folder / "pooled" / "c" / "1" / "0", 0)
    joined.require_whole(np.array([0, 1]))
    with pytest.raises(DamagedCacheError, match="was truncated"):
        joined.require_whole(np.array([71]))


def test_a_file_that_took_its_name_is_another(feature: FeatureArray, folder: Path) -> None:
    before, file = feature.gather(ROWS), folder / "pooled" / "c" / "1" / "0"
    (folder / "shorter").write_bytes(b"")
    (folder / "shorter").replace(file)
    feature.require_whole(ROWS)
    np.testing.assert_array_equal(feature.gather(ROWS), before)
    shutil.rmtree(folder)
    feature.require_whole(ROWS)


def test_a_feature_along_an_axis(tmp_path: Path) -> None:
    spec = FeatureSpec(name="words", shape=(2,), dtype="float32", axis="word", max_length=4)
    with CacheWriter(tmp_path, make_manifest((spec,))) as writer:
        for texts in (["a", "b"], ["c", "d"]):
            values = Ragged(np.ones((3, 2), np.float32), np.array([3, 0]))
            writer.commit(keys_of(texts), {"words": values}, np.zeros(2, dtype=bool))
        folder = writer.folder
    words = open_cache(tmp_path).ragged("words")
    words.gather(np.arange(4))
    os.truncate(folder / "words" / "c" / "1" / "0", 0)
    words.require_whole(np.array([0, 1, 3]))  # that of "d" has no place
    with pytest.raises(DamagedCacheError, match="was truncated"):
        words.require_whole(np.array([0, 2]))
