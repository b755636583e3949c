"""A feature as an array-like, against the same rows held by NumPy."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import Cache, open_cache
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_caches import TWO_FEATURES, answer, make_manifest, numbered_texts, write_cache

ROWS = 128 + 30 + 64
TEXTS = numbered_texts(0, ROWS)
POOLED = TWO_FEATURES[0]

INDICES: dict[str, Any] = {
    "first": 0,
    "last": -1,
    "NumPy integer": np.int32(130),
    "all": slice(None),
    "across shards": slice(120, 170),
    "steps": slice(1, None, 50),
    "backwards": slice(None, None, -1),
    "beyond the end": slice(200, 10_000),
    "empty slice": slice(5, 5),
    "list": [3, 221, 3, -222, 128],
    "empty list": [],
    "unsigned": np.array([5, 157], dtype=np.uint64),
    "small integers": np.array([-1, 100], dtype=np.int8),
    "mask": np.arange(ROWS) % 7 == 0,
    "nothing": np.zeros(ROWS, dtype=bool),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Two features in shards of 128, 30 and 64 rows."""
    path = tmp_path_factory.mktemp("store") / "cache"
    write_cache(path, make_manifest(), [TEXTS[:128], TEXTS[128:158], TEXTS[158:]])
    return open_cache(path)


@pytest.fixture(scope="module")
def feature(cache: Cache) -> FeatureArray:
    """[222, 5]."""
    return cache["pooled"]


@pytest.fixture(scope="module")
def expected() -> np.ndarray[Any, Any]:
    return answer(POOLED, TEXTS)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_rows_are_those_of_numpy(
    feature: FeatureArray, expected: np.ndarray[Any, Any], index: Any
) -> None:
    # NumPy takes an empty list for numbers of the wrong kind.
    rows = np.zeros(0, dtype=int) if isinstance(index, list) and not index else index
    np.testing.assert_array_equal(feature[index], expected[rows], strict=True)


@given(arrays(np.int64, st.integers(0, 40), elements=st.integers(-ROWS, ROWS - 1)))
def test_any_rows_are_those_of_numpy(
    feature: FeatureArray, expected: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]
) -> None:
    np.testing.assert_array_equal(feature[rows], expected[rows], strict=True)


def test_it_looks_like_an_array(feature: FeatureArray, expected: np.ndarray[Any, Any]) -> None:
    assert feature.shape == expected.shape == (ROWS, 5)
    assert feature.dtype == expected.dtype
    assert feature.ndim == 2
    assert len(feature) == ROWS
    np.testing.assert_array_equal(np.asarray(feature), expected, strict=True)
    np.testing.assert_array_equal(
        np.asarray(feature, dtype=np.float32), expected.astype(np.float32), strict=True
    )


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (ROWS, IndexError),
        (-ROWS - 1, IndexError),
        ([0, ROWS], IndexError),
        (np.ones(ROWS - 1, dtype=bool), IndexError),
        ([0.5], TypeError),
    ],
    ids=["past the end", "before the start", "one of many", "short mask", "float"],
)
def test_what_is_no_row_is_refused(
    feature: FeatureArray, index: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        feature[index]


def test_rows_can_be_gathered_into_room_of_another_type(
    feature: FeatureArray, expected: np.ndarray[Any, Any]
) -> None:
    room = np.empty((4, 5), dtype=np.float32)
    rows = np.array([221, 0, 128, 127])
    assert feature.gather(rows, out=room) is room
    np.testing.assert_array_equal(room, expected[rows].astype(np.float32), strict=True)


@pytest.mark.parametrize(
    "room",
    [
        np.empty((3, 5), np.float16),
        np.empty((4, 4), np.float16),
        np.empty(20, np.float16),
        np.empty((4, 5), np.int16),
        np.broadcast_to(np.float16(0), (4, 5)),
    ],
    ids=["too short", "too narrow", "flat", "of another type", "read-only"],
)
def test_room_that_cannot_take_the_rows_is_refused(
    feature: FeatureArray, room: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(ValueError, match="out: ") as caught:
        feature.gather(np.array([221, 0, 128, 127]), out=room)
    line = str(caught.value)
    assert f"{room.dtype} {list(room.shape)}" in line
    assert line.endswith("to hold 4 rows it has to be a writable one of float16 [4, 5]")
    assert ("read-only" in line) == (not room.flags.writeable)


def test_numbers_are_not_gathered_into_less_precise_ones(cache: Cache) -> None:
    with pytest.raises(ValueError, match="has to be a writable one of float32"):
        cache["score"].gather(np.array([0]), out=np.empty(1, np.float16))


def test_a_cache_maps_a_feature_once(cache: Cache) -> None:
    assert cache["pooled"] is cache["pooled"]


def test_any_room_of_its_type_will_do(
    feature: FeatureArray, expected: np.ndarray[Any, Any]
) -> None:
    rows = np.array([221, 0, 128, 127])
    tensor = torch.empty((4, 5), dtype=torch.float16)
    feature.gather(rows, out=tensor.numpy())
    np.testing.assert_array_equal(tensor.numpy(), expected[rows])
    turned = np.empty((5, 4), np.float16).T
    assert feature.gather(rows, out=turned) is turned
    np.testing.assert_array_equal(turned, expected[rows])


@pytest.mark.parametrize("rows", [[-1], [0, ROWS], [2**62], [-(2**63)]], ids=str)
@pytest.mark.parametrize("method", ["gather", "will_need"])
def test_rows_to_gather_count_from_the_start(
    feature: FeatureArray, rows: list[int], method: str
) -> None:
    """A key that is not cached has row -1: that is not the last row."""
    with pytest.raises(IndexError, match=f"rows {min(rows)} to {max(rows)} of 222"):
        getattr(feature, method)(np.array(rows))


@pytest.mark.parametrize("dtype", [np.int32, np.uint64, np.uint8])
def test_rows_may_be_whole_numbers_of_any_kind(
    feature: FeatureArray, expected: np.ndarray[Any, Any], dtype: type
) -> None:
    rows = np.array([221, 0, 128], dtype=dtype)
    np.testing.assert_array_equal(feature.gather(rows), expected[rows], strict=True)
    with pytest.raises(TypeError):
        feature.gather(rows + 0.5)


def test_what_was_read_is_a_copy(feature: FeatureArray, expected: np.ndarray[Any, Any]) -> None:
    feature[3:5][:] = 0
    np.testing.assert_array_equal(feature[3:5], expected[3:5])


def test_it_travels_without_its_mappings(
    feature: FeatureArray, expected: np.ndarray[Any, Any]
) -> None:
    assert len(feature[:]) == ROWS  # all shards are mapped now
    sent = pickle.dumps(feature)
    assert len(sent) < 2_500  # the numbers alone are more
    np.testing.assert_array_equal(pickle.loads(sent)[:], expected, strict=True)


def test_threads_share_it(feature: FeatureArray, expected: np.ndarray[Any, Any]) -> None:
    fresh = pickle.loads(pickle.dumps(feature))
    batches = [np.arange(start, ROWS, 8) for start in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for rows, got in zip(batches, pool.map(fresh.gather, batches), strict=True):
            np.testing.assert_array_equal(got, expected[rows], strict=True)


def test_a_reader_sees_what_was_committed_when_it_opened(tmp_path: Path) -> None:
    manifest = make_manifest()
    write_cache(tmp_path / "cache", manifest, [TEXTS[:10]])
    opened = open_cache(tmp_path / "cache")
    write_cache(tmp_path / "cache", manifest, [TEXTS[10:20]])
    assert len(opened) == len(opened["pooled"]) == 10
    assert len(open_cache(tmp_path / "cache")) == 20
    np.testing.assert_array_equal(opened["pooled"][:], answer(POOLED, TEXTS[:10]), strict=True)


def test_a_cache_without_commits_has_no_rows(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", make_manifest(), [])
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 0
    assert cache["pooled"][:].shape == (0, 5)
    assert cache.keys.shape == (0, 16)


@pytest.mark.parametrize(
    "index", [(0, 1), ..., None, True, np.array(3), np.array([[0], [1]]), ["a"]], ids=repr
)
def test_what_is_neither_row_nor_rows_is_named(feature: FeatureArray, index: Any) -> None:
    with pytest.raises(IndexError, match="is not a row, a slice or an array of rows"):
        feature[index]


def test_there_is_no_array_without_a_copy(feature: FeatureArray) -> None:
    with pytest.raises(ValueError, match="without a copy"):
        np.array(feature, copy=False)
