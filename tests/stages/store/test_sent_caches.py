"""A cache can be sent to other processes, however they were started, whatever was read of it."""

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.features import FeatureSpec
from armada.stages.ragged import Ragged
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.writer import CacheWriter
from small_caches import THREE_SHARDS, keys_of, make_manifest, write_cache

TEXTS = [text for shard in THREE_SHARDS for text in shard]

STATES: dict[str, Callable[[Cache], object]] = {
    "opened": lambda cache: None,
    "lookup": lambda cache: cache.lookup(TEXTS),
    "find": lambda cache: cache.find(keys_of(TEXTS), "pooled"),
    "keys": lambda cache: cache.keys,
    "feature": lambda cache: cache["pooled"][np.arange(len(TEXTS))],
    "mapped": lambda cache: cache["pooled"].mapped,
    "runs": lambda cache: cache.runs(),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sent") / "cache"
    write_cache(path, make_manifest(), THREE_SHARDS)
    return path


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_cache_can_be_pickled_whatever_was_read_of_it(
    path: Path, state: str, verify: bool
) -> None:
    cache = open_cache(path, verify=verify)
    STATES[state](cache)
    arrived = pickle.loads(pickle.dumps(cache))
    rows = arrived.lookup(TEXTS)
    assert rows.tolist() == list(range(200))
    np.testing.assert_array_equal(arrived["pooled"][rows], cache["pooled"][:], strict=True)


def test_a_feature_along_an_axis_can_be_pickled_with_its_cache(tmp_path: Path) -> None:
    spec = FeatureSpec(name="words", shape=(2,), dtype="float32", axis="word", max_length=4)
    manifest = make_manifest((spec,))
    lengths = np.array([1, 3])
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    with CacheWriter(tmp_path, manifest) as writer:
        writer.commit(keys_of(["a", "b"]), {"words": Ragged(values, lengths)}, np.zeros(2, bool))
    cache = open_cache(tmp_path)
    cache.ragged("words")[cache.lookup("b")[0]]
    arrived = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(arrived.ragged("words")[1], values[1:], strict=True)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_were_not_forked_read_a_cache_that_is_in_use(
    path: Path, method: str
) -> None:
    cache = open_cache(path)
    rows = cache.lookup(TEXTS[:3])
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(cache.lookup, TEXTS[:3]).result().tolist() == rows.tolist()
        there = pool.submit(cache["pooled"].gather, rows).result()
    np.testing.assert_array_equal(there, cache["pooled"][rows], strict=True)
