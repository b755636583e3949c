"""Shards mapped side by side are one array: whatever they are, and however they are read."""

import gc
import os
import pickle
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from armada.cache_schemas.errors import DamagedCacheError
from armada.cache_schemas.features import FeatureSpec
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import open_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from thin_caches import (
    INNER_ROWS,
    Values,
    cut_into_shards,
    numbered_rows,
    thin_feature,
    write_shards,
    write_thin_cache,
)

ROWS_PER_SHARD = 128
PAGE = resource.getpagesize()
WIDE = FeatureSpec(name="wide", shape=(PAGE // 2,), dtype="float16")
"""One row is one page."""
NARROW = FeatureSpec(name="narrow", shape=(3,), dtype="float16")
"""Shards end within pages, and none but the first begins where the one before ended."""
NUMBERS = FeatureSpec(name="number", shape=(), dtype="float32")

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def make(
    path: Path, spec: FeatureSpec, rows: list[int], size: int = ROWS_PER_SHARD, **how: Any
) -> tuple[FeatureArray, Values]:
    """A feature in shards of so many rows, and what it holds."""
    values = numbered_rows(sum(rows), spec)
    return thin_feature(path, spec, cut_into_shards(values, rows), size, **how), values


# --- any shards, any rows


@st.composite
def features(draw: st.DrawFn) -> tuple[FeatureSpec, list[int], set[int], bool]:
    """A feature, rows of its shards, which of these are not plain, and whether all are zipped."""
    shape = draw(st.sampled_from([(), (3,), (16,), (2, 4), (PAGE // 2,)]))
    spec = FeatureSpec(name="any", shape=shape, dtype=draw(st.sampled_from(["float16", "float32"])))
    full = st.just(ROWS_PER_SHARD)
    shards = draw(st.lists(full | st.integers(1, ROWS_PER_SHARD), min_size=1, max_size=6))
    # One inner chunk alone has no other order.
    several = [number for number, rows in enumerate(shards) if rows > INNER_ROWS]
    some = st.sets(st.sampled_from(several)) if several else st.just(set())
    reordered = draw(st.just(set()) | some)
    return spec, shards, reordered, draw(st.sampled_from([False] * 7 + [True]))


@settings(max_examples=60)
@given(features(), st.data())
def test_any_shards_are_the_array_they_were_cut_from(
    feature: tuple[FeatureSpec, list[int], set[int], bool], data: st.DataObject
) -> None:
    spec, shards, reordered, zipped = feature
    values = numbered_rows(sum(shards), spec)
    access = data.draw(st.sampled_from(["warm", "cold"]))
    some = st.lists(st.integers(0, len(values) - 1), max_size=40).map(np.int64)
    everything = st.permutations(range(len(values))).map(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "teachers" / "thin"
        parts = cut_into_shards(values, shards)
        made = write_shards(teacher, spec, parts, ROWS_PER_SHARD, reordered)
        if zipped:
            zip_array(teacher / spec.name)
        array = FeatureArray(teacher, spec, ROWS_PER_SHARD, made, access=access)
        for rows in data.draw(st.lists(some | everything, min_size=1, max_size=4)):
            array.will_need(rows)
            np.testing.assert_array_equal(array.gather(rows), values[rows], strict=True)
            room = np.zeros((len(rows), *spec.shape), spec.dtype)
            assert array.gather(rows, out=room) is room
            np.testing.assert_array_equal(room, values[rows])
        with pytest.raises(IndexError):
            array.gather(np.array([0, len(values)]))
        if array.mapped is not None:
            assert not reordered
            np.testing.assert_array_equal(array.mapped, values, strict=True)


def zip_array(folder: Path) -> None:
    """All shards written anew by zarr-python, compressed."""
    values = zarr.open_array(folder, mode="r")[...]
    array = zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        fill_value=float("nan"),
        shards=(ROWS_PER_SHARD, *values.shape[1:]),
        chunks=(64, *values.shape[1:]),
        compressors=zarr.codecs.ZstdCodec(level=1),
        overwrite=True,
    )
    array[...] = values


# --- one array


@pytest.mark.parametrize(
    ("spec", "rows"),
    [(WIDE, [128, 128, 7]), (WIDE, [128, 3, 128]), (NARROW, [5])],
    ids=["full shards", "shards of whole pages", "one shard"],
)
def test_shards_are_one_array_without_a_copy(
    tmp_path: Path, spec: FeatureSpec, rows: list[int]
) -> None:
    feature, values = make(tmp_path, spec, rows)
    mapped = feature.mapped
    assert mapped is not None
    np.testing.assert_array_equal(mapped, values, strict=True)
    assert np.shares_memory(mapped, feature.mapped)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        mapped.flags.writeable = True


def test_torch_selects_from_it(tmp_path: Path) -> None:
    feature, values = make(tmp_path, WIDE, [128, 128, 7])
    rows = torch.tensor([262, 0, 128, 127])
    selected = torch.from_dlpack(feature.mapped).index_select(0, rows)
    np.testing.assert_array_equal(selected.numpy(), values[rows.numpy()])


@pytest.mark.parametrize(
    ("spec", "rows", "size"),
    [(WIDE, [512, 3, 512], 512), (NARROW, [128, 128], 128), (NARROW, [2048, 1, 5, 2048], 2048)],
    ids=["a short shard on a huge page", "shards of less than a page", "short shards on pages"],
)
def test_where_there_are_gaps_rows_are_gathered(
    tmp_path: Path, spec: FeatureSpec, rows: list[int], size: int
) -> None:
    feature, values = make(tmp_path, spec, rows, size)
    some = np.array([0, sum(rows) - 1, rows[0], rows[0] - 1])
    np.testing.assert_array_equal(feature.gather(some), values[some], strict=True)
    assert feature.mapped is None
    np.testing.assert_array_equal(feature[:], values, strict=True)


@LINUX_ONLY
def test_it_is_given_back_with_the_last_array_over_it(tmp_path: Path) -> None:
    feature, values = make(tmp_path, WIDE, [128, 128, 7])
    row = feature.mapped[140]
    assert mappings_of(tmp_path) == 3
    del feature
    gc.collect()
    np.testing.assert_array_equal(row, values[140])  # the range lives as long as one row of it
    assert mappings_of(tmp_path) == 3
    del row
    gc.collect()
    assert mappings_of(tmp_path) == 0


def mappings_of(folder: Path) -> int:
    """How many files below a folder this process has mapped."""
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- many shards


@LINUX_ONLY
def test_a_shard_is_opened_when_it_is_first_touched(tmp_path: Path) -> None:
    opened: list[int] = []
    feature, values = make(
        tmp_path, WIDE, [128] * 5, prepare=lambda name, shard: opened.append(shard)
    )
    assert opened == []
    feature.gather(np.array([130, 600, 129]))
    assert opened == [1, 4]
    assert mappings_of(tmp_path) == 2
    feature.will_need(np.array([300, 130]))
    assert opened == [1, 4, 2]
    np.testing.assert_array_equal(feature[:], values)
    assert opened == [1, 4, 2, 0, 3]
    np.testing.assert_array_equal(feature[:], values)
    assert feature.mapped is not None
    assert len(opened) == 5


def test_opening_a_thousand_shards_reads_none(tmp_path: Path) -> None:
    rows = [3] * 1000
    values = numbered_rows(3000, NUMBERS)
    shards = cut_into_shards(values, rows)
    folder = write_thin_cache(tmp_path / "cache", NUMBERS, shards, ROWS_PER_SHARD)
    chunks = folder / "number" / "c"
    chunks.rename(tmp_path / "elsewhere")
    feature = open_cache(tmp_path / "cache")["number"]
    assert feature.shape == (3000,)
    with pytest.raises(DamagedCacheError, match="number/c/333"):
        feature[1000]
    (tmp_path / "elsewhere").rename(chunks)
    np.testing.assert_array_equal(feature[:], values, strict=True)


@LINUX_ONLY
def test_ten_thousand_shards_take_no_descriptors(tmp_path: Path) -> None:
    most = 0

    def count(name: str, shard: int) -> None:
        nonlocal most
        if shard % 100 == 99:
            most = max(most, descriptors())

    before = descriptors()
    ten = numbered_rows(20, NUMBERS)
    teacher = tmp_path / "teachers" / "thin"
    made = write_shards(teacher, NUMBERS, cut_into_shards(ten, [2] * 10), 64)
    for shard in range(10, 10_000):
        os.link(teacher / f"number/c/{shard % 10}", teacher / f"number/c/{shard}")
        made.append((shard, 2))
    values = np.tile(ten, 1000)
    feature = FeatureArray(teacher, NUMBERS, 64, made, prepare=count)
    order = np.random.default_rng(0).permutation(len(values))
    for rows in np.array_split(order, 20):
        np.testing.assert_array_equal(feature.gather(rows), values[rows])
    assert 0 < most <= before + 5  # the one that lists them, and those of a library or two
    assert descriptors() <= before + 5


# --- processes and threads


def test_a_forked_child_reads_what_its_parent_mapped(tmp_path: Path) -> None:
    feature, values = make(tmp_path, NARROW, [128, 9, 128])
    feature[:130]  # two are mapped, the last one is not
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(feature[:], values) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(feature[:], values)


@LINUX_ONLY
def test_mappings_do_not_travel(tmp_path: Path) -> None:
    feature, values = make(tmp_path, WIDE, [128, 128], access="cold")
    assert feature.mapped is not None
    sent = pickle.dumps(feature)
    assert len(sent) < 2_000
    del feature
    gc.collect()
    arrived = pickle.loads(sent)
    assert mappings_of(tmp_path) == 0
    assert arrived.access == "cold"
    np.testing.assert_array_equal(arrived[:], values, strict=True)
