"""A cache opens in tools that are not ours: Zarr libraries, Dask, Arrow. They read the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
import tensorstore
import zarr
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.reading.reader import Cache, open_cache
from small_caches import answer, keys_of, make_manifest, numbered_texts, write_cache

FEATURES = (
    FeatureSpec(name="pooled", shape=(5,), dtype="float16"),
    FeatureSpec(name="latent", shape=(2, 3, 4), dtype="float32"),
    FeatureSpec(name="score", shape=(), dtype="float32"),
)
TEXTS = numbered_texts(0, 300)
"""Shards of 128, 128 and 44 rows."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    path = tmp_path_factory.mktemp("other tools") / "cache"
    shards = [TEXTS[start : start + 128] for start in range(0, 300, 128)]
    write_cache(path, make_manifest(FEATURES), shards)
    return open_cache(path)


def with_zarr(path: Path) -> Any:
    return zarr.open_array(path, mode="r")[:]


def with_zarrs(path: Path) -> Any:
    import zarrs  # noqa: F401  # makes its pipeline known to zarr

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(path, mode="r")[:]


def with_tensorstore(path: Path) -> Any:
    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


def with_dask(path: Path) -> Any:
    return dask.array.from_zarr(str(path)).compute(scheduler="synchronous")


@pytest.mark.parametrize("read", [with_zarr, with_zarrs, with_tensorstore, with_dask])
@pytest.mark.parametrize("spec", FEATURES, ids=lambda spec: spec.name)
def test_features(cache: Cache, spec: FeatureSpec, read: Callable[[Path], Any]) -> None:
    values = read(cache.folder / spec.name)
    np.testing.assert_array_equal(values, answer(spec, TEXTS), strict=True)


# Zarr says of each folder beside the features that it is none of its own.
@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component:UserWarning")
def test_all_of_it_as_a_zarr_group(cache: Cache) -> None:
    group = zarr.open_group(cache.path, mode="r")
    teacher = group[f"teachers/{cache.teacher.fingerprint}"]
    assert isinstance(teacher, zarr.Group)
    assert sorted(name for name, _ in teacher.arrays()) == ["latent", "pooled", "score"]


def test_keys_with_arrow(cache: Cache) -> None:
    table = pyarrow.dataset.dataset(cache.folder / "tables" / "rows").to_table()
    assert table.schema == pa.schema({"key": pa.binary(16), "truncated": pa.bool_()})
    keys = [bytes(key) for key in keys_of(TEXTS)]
    assert sorted(table["key"].to_pylist()) == sorted(keys)


def test_documents_with_json(cache: Cache) -> None:
    records = sorted((cache.folder / "commits").glob("*.json"))
    assert [json.loads(record.read_bytes())["rows"] for record in records] == [128, 128, 44]
