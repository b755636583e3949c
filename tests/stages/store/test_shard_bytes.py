"""Shards as bytes: what is written is what zarr-python reads, and what it would have written."""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import xxhash
import zarr
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.layout import shard_file
from armada.stages.store.format.zarr_shards import array_metadata, shard_bytes
from armada.stages.store.reading.reader import open_cache
from small_caches import answer, make_manifest, numbered_texts, write_cache

ROWS_PER_SHARD = 128
SPECS = pytest.mark.parametrize(
    "spec",
    [
        FeatureSpec(name="feature", shape=shape, dtype=dtype)
        for shape in ((), (5,), (4, 3, 3))
        for dtype in ("float16", "float32")
    ],
    ids=lambda spec: f"{spec.dtype}{list(spec.shape)}",
)
SHARDS = pytest.mark.parametrize(
    "shards", [(1,), (63,), (64,), (65,), (128,), (128, 1, 64, 128, 3)], ids=str
)


def texts_of(shards: tuple[int, ...]) -> list[list[str]]:
    """Lists of texts of these lengths, all different."""
    ends = np.cumsum([0, *shards]).tolist()
    return [numbered_texts(*pair) for pair in pairwise(ends)]


def expected_grid(spec: FeatureSpec, texts: list[list[str]]) -> np.ndarray[Any, Any]:
    """The Zarr array, in NumPy: each shard's answers, NaN up to the next shard."""
    rows = ROWS_PER_SHARD * (len(texts) - 1) + len(texts[-1])
    grid = np.full((rows, *spec.shape), np.nan, spec.dtype)
    for shard, listed in enumerate(texts):
        start = shard * ROWS_PER_SHARD
        grid[start : start + len(listed)] = answer(spec, listed)
    return grid


@SPECS
@SHARDS
def test_zarr_reads_what_was_written(
    spec: FeatureSpec, shards: tuple[int, ...], tmp_path: Path
) -> None:
    texts = texts_of(shards)
    folder = write_cache(tmp_path / "cache", make_manifest([spec], ROWS_PER_SHARD), texts)
    array = zarr.open_group(tmp_path / "cache", mode="r")[f"teachers/{folder.name}/feature"]
    np.testing.assert_array_equal(array[...], expected_grid(spec, texts), strict=True)
    ours = open_cache(tmp_path / "cache")["feature"]
    expected = answer(spec, [text for listed in texts for text in listed])
    np.testing.assert_array_equal(np.asarray(ours), expected, strict=True)


@SPECS
@SHARDS
def test_zarr_would_have_written_the_same_bytes(
    spec: FeatureSpec, shards: tuple[int, ...], tmp_path: Path
) -> None:
    texts = texts_of(shards)
    folder = write_cache(tmp_path / "cache", make_manifest([spec], ROWS_PER_SHARD), texts)
    grid = expected_grid(spec, texts)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "zarr.json").write_bytes(array_metadata(spec, len(grid), ROWS_PER_SHARD))
    zarr.open_array(theirs, mode="r+")[...] = grid
    for shard in range(len(texts)):
        name = Path("c", str(shard), *["0"] * len(spec.shape))
        assert (folder / "feature" / name).read_bytes() == (theirs / name).read_bytes()


@SPECS
@pytest.mark.parametrize("rows", [1, 64, 65, 128])
def test_shard_is_one_block_and_an_index(spec: FeatureSpec, rows: int, tmp_path: Path) -> None:
    texts = numbered_texts(0, rows)
    folder = write_cache(tmp_path / "cache", make_manifest([spec], ROWS_PER_SHARD), [texts])
    path = shard_file(folder, "feature", 0, len(spec.shape))
    data = path.read_bytes()
    chunks = -(-rows // 64)
    chunk_bytes = 64 * spec.row_bytes
    padding = np.full((chunks * 64 - rows, *spec.shape), np.nan, spec.dtype)
    payload = answer(spec, texts).tobytes() + padding.tobytes()
    entries = [(i * chunk_bytes, chunk_bytes) for i in range(chunks)]
    entries += [(2**64 - 1, 2**64 - 1)] * (ROWS_PER_SHARD // 64 - chunks)
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    assert data == payload + index + struct.pack("<I", google_crc32c.value(index))
    assert len(data) == shard_bytes(rows, spec, ROWS_PER_SHARD)
    mapped = open_cache(tmp_path / "cache")["feature"].mapped
    assert mapped is not None
    assert mapped.tobytes() == answer(spec, texts).tobytes()


def test_commit_records_size_and_checksum_of_each_file(tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", make_manifest(), texts_of((128, 40)))
    for commit in open_cache(tmp_path / "cache").commits:
        files = {
            folder / "pooled" / "c" / str(commit.shard) / "0": commit.features["pooled"],
            folder / "score" / "c" / str(commit.shard): commit.features["score"],
            folder / "tables" / "rows" / f"{commit.shard:06d}.parquet": commit.tables["rows"],
        }
        for path, record in files.items():
            assert record.bytes == path.stat().st_size
            assert record.xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())
