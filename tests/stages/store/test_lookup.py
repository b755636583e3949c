"""From texts and keys to rows."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import (
    CacheError,
    MissingFeatureError,
    MissingKeysError,
)
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.store.format.rows import KeyIndex
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.writer import CacheWriter
from hypothesis import given
from hypothesis import strategies as st
from small_caches import answer, keys_of, make_manifest, numbered_texts, write_cache

TEXTS = numbered_texts(0, 150)
PAIRS = [("ab", "c"), ("a", "bc"), ("c", "ab")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """150 texts in two shards, then three pairs of segments."""
    path = tmp_path_factory.mktemp("store") / "cache"
    manifest = make_manifest()
    write_cache(path, manifest, [TEXTS[:128], TEXTS[128:]])
    with CacheWriter(path, manifest) as writer:
        features = {spec.name: answer(spec, ["p", "q", "r"]) for spec in manifest.spec.features}
        keys = keys_to_array(example_key(pair) for pair in PAIRS)
        writer.commit(keys, features, np.zeros(3, dtype=bool))
    return open_cache(path)


REQUESTS: dict[str, tuple[Any, list[int]]] = {
    "text": ("text 7", [7]),
    "texts": (["text 149", "text 0", "text 149"], [149, 0, 149]),
    "tuple of texts": (("text 3", "text 4"), [3, 4]),
    "segments": ([("a", "bc"), ["ab", "c"]], [151, 150]),
    "one segment": ([("text 5",)], [5]),
    "keys": ([example_key("text 8"), example_key(PAIRS[2])], [8, 152]),
    "key array": (keys_of(["text 128", "text 127"]), [128, 127]),
    "text array": (np.array(["text 1", "text 2"]), [1, 2]),
    "mixed": (["text 9", example_key("text 10"), ("c", "ab")], [9, 10, 152]),
    "nothing": ([], []),
    "no keys": (keys_of([]), []),
}


@pytest.mark.parametrize(("request_", "rows"), REQUESTS.values(), ids=REQUESTS)
def test_rows_are_found(cache: Cache, request_: Any, rows: list[int]) -> None:
    found = cache.lookup(request_)
    assert found.dtype == np.int64
    assert found.tolist() == rows


def test_rows_lead_to_the_answers(cache: Cache) -> None:
    spec = cache.feature_spec("pooled")
    wanted = ["text 140", "text 2"]
    np.testing.assert_array_equal(
        cache["pooled"][cache.lookup(wanted)], answer(spec, wanted), strict=True
    )


def test_find_marks_what_is_missing(cache: Cache) -> None:
    assert cache.find(keys_of(["text 1", "nowhere"])).tolist() == [1, -1]


def test_missing_texts_are_counted_and_five_are_named(cache: Cache) -> None:
    wanted = ["text 0", *(f"unseen {number}" for number in range(7)), "text 1"]
    with pytest.raises(MissingKeysError) as caught:
        cache.lookup(wanted)
    message = str(caught.value)
    assert caught.value.positions == list(range(1, 8))
    assert "7 of 9 examples are not in the cache" in message
    assert [f"{i}: 'unseen {i - 1}'" in message for i in range(1, 9)] == [True] * 5 + [False] * 3
    assert cache.teacher.fingerprint[:12] in message


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ([("un", "seen")], "0: 'un | seen'"),
        ([b"k" * 16], "0: " + "6b" * 16),
        (np.full((1, 16), 107, dtype=np.uint8), "0: " + "6b" * 16),
        (["x" * 100], f"0: '{'x' * 57}...'"),
        ("unseen", "0: 'unseen'"),
    ],
    ids=["segments", "key", "key array", "long text", "bare text"],
)
def test_missing_examples_are_shown_readably(cache: Cache, wanted: Any, shown: str) -> None:
    with pytest.raises(MissingKeysError) as caught:
        cache.lookup(wanted)
    assert str(caught.value).endswith(f"First: {shown}")


@pytest.mark.parametrize(
    "wanted", [[b"short"], np.zeros((2, 15), np.uint8), np.zeros(16, np.uint8)], ids=repr
)
def test_what_is_no_key_is_refused(cache: Cache, wanted: Any) -> None:
    with pytest.raises(CacheError, match="16"):
        cache.lookup(wanted)


def test_unknown_features_are_refused_by_name(cache: Cache) -> None:
    with pytest.raises(MissingFeatureError, match=r"'pool'.*\(made_up\) has pooled, score"):
        cache["pool"]


def test_keys_and_tables_are_in_row_order(cache: Cache) -> None:
    np.testing.assert_array_equal(cache.keys[:150], keys_of(TEXTS))
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"].to_pylist()
    assert truncated == [text.endswith("7") for text in TEXTS] + [False] * 3


HALF = st.sampled_from([b"\0" * 8, b"\xff" * 8, b"abcdefgh", b"abcdefgi"])
KEY = st.tuples(HALF, HALF).map(b"".join)


@given(st.lists(KEY, unique=True), st.lists(KEY, max_size=20))
def test_index_is_a_dictionary_even_when_upper_words_collide(
    keys: list[bytes], wanted: list[bytes]
) -> None:
    rows = {key: row for row, key in enumerate(keys)}
    index = KeyIndex(keys_to_array(keys))
    assert len(index) == len(keys)
    found = index.find(keys_to_array(wanted))
    assert found.tolist() == [rows.get(key, -1) for key in wanted]


def test_index_finds_a_thousand_keys_of_one_upper_word() -> None:
    keys = np.zeros((1000, 16), dtype=np.uint8)
    keys[:, 8:] = (
        np.random.default_rng(0).permutation(1000).astype(">u8").view(np.uint8).reshape(-1, 8)
    )
    assert KeyIndex(keys).find(keys).tolist() == list(range(1000))


def many_keys(count: int) -> npt.NDArray[np.uint8]:
    """Random keys, of which some start alike, some share a whole word, and some are given twice."""
    keys = np.random.default_rng(0).integers(0, 256, (count, 16), dtype=np.uint8)
    keys[::7, :2] = keys[0, :2]
    keys[::11, :8] = keys[0, :8]
    keys[-50:] = keys[:50]
    return keys


@pytest.mark.parametrize("asked", [1, 20, 3000, 6000])
def test_index_of_many_keys_is_a_dictionary_however_few_or_often_it_is_asked(asked: int) -> None:
    keys = many_keys(5000)
    rows: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key.tobytes(), row)
    index = KeyIndex(keys)
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        wanted = keys[drawn.integers(0, len(keys), asked)].copy()
        wanted[::3, drawn.integers(16)] ^= 1
        expected = [rows.get(key.tobytes(), -1) for key in wanted]
        assert index.find(wanted).tolist() == expected
        assert index.found(wanted).tolist() == [row for row in expected if row >= 0]


def test_a_few_keys_are_found_without_sorting_all() -> None:
    """Sorted, a key takes 24 bytes."""
    keys = np.random.default_rng(0).integers(0, 256, (200_000, 16), dtype=np.uint8)
    tracemalloc.start()
    try:
        assert KeyIndex(keys).find(keys[100:1100]).tolist() == list(range(100, 1100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(keys)


def test_a_cache_can_be_asked_for_its_features(cache: Cache) -> None:
    assert "pooled" in cache
    assert "latent" not in cache
    assert list(cache) == list(cache.features)


@pytest.mark.parametrize(
    ("example", "known"),
    [
        ("text 7", True),
        ("unseen", False),
        (("a", "bc"), True),
        (["ab", "c"], True),
        (("a", "b"), False),
        (example_key("text 8"), True),
        (example_key("unseen"), False),
        (b"short", False),
        (7, False),
        (None, False),
        (("a", 7), False),
        (keys_of(["text 7"]), False),
    ],
    ids=repr,
)
def test_a_cache_can_be_asked_for_an_example(cache: Cache, example: Any, known: bool) -> None:
    assert (example in cache) is known


def test_caches_and_features_say_what_they_are(cache: Cache) -> None:
    assert repr(cache) == (
        f"<Cache {cache.path}: teacher {cache.teacher.fingerprint[:12]} (made_up:made up), "
        "153 rows, pooled float16[5], score float32[]>"
    )
    assert repr(cache["pooled"]) == "<FeatureArray pooled: float16 [153, 5]>"


def test_a_table_that_a_shard_was_committed_without_is_not_read(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, make_manifest(), [["a text"]])
    stray = folder / "tables" / "images" / "000000.parquet"
    stray.parent.mkdir()
    pq.write_table(pa.table({"png": pa.array([b"of somebody else"])}), stray)
    with pytest.raises(CacheError, match=r"table 'images': shard 0 of teacher .* without it"):
        open_cache(tmp_path).table("images", {"png": pa.binary()})
