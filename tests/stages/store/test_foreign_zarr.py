"""Shards that another Zarr writer re-wrote are read through zarr-python, with the same values."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from armada.cache_schemas.errors import CacheError, DamagedCacheError
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.reading.reader import open_cache
from armada.stages.store.writing.writer import CacheWriter
from small_caches import TWO_FEATURES, answer, make_manifest, numbered_texts, write_cache

POOLED = TWO_FEATURES[0]
SHARDS = [numbered_texts(0, 256), numbered_texts(256, 300), numbered_texts(300, 500)]
TEXTS = [text for shard in SHARDS for text in shard]
CHUNK_BYTES = 64 * POOLED.row_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher's folder with shards of 256, 44 and 200 rows; room for 256."""
    return write_cache(tmp_path / "cache", make_manifest(rows_per_shard=256), SHARDS)


def feature_of(folder: Path) -> FeatureArray:
    return open_cache(folder.parent.parent)["pooled"]


def with_index(payload: bytes, entries: list[tuple[int, int]]) -> bytes:
    index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    return payload + index + struct.pack("<I", google_crc32c.value(index))


def reverse_chunks(folder: Path) -> None:
    """The first shard with its inner chunks last to first: a valid shard, but not plain."""
    path = folder / "pooled/c/0/0"
    data = path.read_bytes()
    chunks = [data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES] for i in range(4)]
    entries = [((3 - i) * CHUNK_BYTES, CHUNK_BYTES) for i in range(4)]
    path.write_bytes(with_index(b"".join(reversed(chunks)), entries))


def spread_chunks(folder: Path) -> None:
    """The first shard with a gap before its payload."""
    path = folder / "pooled/c/0/0"
    payload = b"gap" + path.read_bytes()[: 4 * CHUNK_BYTES]
    path.write_bytes(with_index(payload, [(3 + i * CHUNK_BYTES, CHUNK_BYTES) for i in range(4)]))


def rewrite(**layout: Any) -> Callable[[Path], None]:
    """All shards written anew by zarr-python in another layout."""

    def rewrite_all(folder: Path) -> None:
        values = zarr.open_array(folder / "pooled", mode="r")[...]
        array = zarr.create_array(
            folder / "pooled",
            shape=values.shape,
            dtype=values.dtype,
            fill_value=float("nan"),
            overwrite=True,
            **layout,
        )
        array[...] = values

    return rewrite_all


SHARDED = {"shards": (256, 5), "chunks": (64, 5)}
REWRITES: dict[str, Callable[[Path], None]] = {
    "chunks last to first": reverse_chunks,
    "chunks after a gap": spread_chunks,
    "same layout": rewrite(**SHARDED, compressors=None),
    "compressed": rewrite(**SHARDED, compressors=zarr.codecs.ZstdCodec(level=1)),
    "smaller inner chunks": rewrite(shards=(256, 5), chunks=(32, 5), compressors=None),
    "other columns of inner chunks": rewrite(shards=(256, 5), chunks=(64, 1), compressors=None),
    "larger shards": rewrite(shards=(512, 5), chunks=(64, 5), compressors=None),
    "no shards": rewrite(chunks=(100, 5), compressors=None),
}


@pytest.mark.parametrize("rewrite_store", REWRITES.values(), ids=REWRITES)
def test_rewritten_shards_have_the_same_values(
    folder: Path, rewrite_store: Callable[[Path], None]
) -> None:
    rewrite_store(folder)
    expected = answer(POOLED, TEXTS)
    feature = feature_of(folder)
    np.testing.assert_array_equal(feature[:], expected, strict=True)
    rows = np.array([499, 0, 255, 256, 299, 300])
    np.testing.assert_array_equal(feature_of(folder)[rows], expected[rows], strict=True)
    gathered = feature_of(folder).gather(rows, out=np.empty((6, 5), np.float32))
    np.testing.assert_array_equal(gathered, expected[rows].astype(np.float32), strict=True)


@pytest.mark.parametrize("name", ["compressed", "smaller inner chunks", "no shards"])
def test_nothing_is_added_to_another_layout(folder: Path, name: str) -> None:
    REWRITES[name](folder)
    metadata = (folder / "pooled/zarr.json").read_bytes()
    with pytest.raises(CacheError, match=r"pooled/zarr\.json.*another Zarr writer"):
        CacheWriter(folder.parent.parent, make_manifest(rows_per_shard=256))
    assert (folder / "pooled/zarr.json").read_bytes() == metadata
    np.testing.assert_array_equal(feature_of(folder)[:], answer(POOLED, TEXTS), strict=True)


def test_attributes_of_others_do_not_matter(folder: Path) -> None:
    zarr.open_array(folder / "pooled", mode="r+").attrs["reviewed"] = True
    with CacheWriter(folder.parent.parent, make_manifest(rows_per_shard=256)) as writer:
        assert [record.shard for record in writer.commits] == [0, 1, 2]
    np.testing.assert_array_equal(feature_of(folder)[:], answer(POOLED, TEXTS), strict=True)


def lose_a_chunk(folder: Path) -> None:
    """A valid shard that lacks its second inner chunk: Zarr fills in what is not there."""
    path = folder / "pooled/c/0/0"
    payload = path.read_bytes()[: 4 * CHUNK_BYTES]
    entries = [(i * CHUNK_BYTES, CHUNK_BYTES) for i in range(4)]
    entries[1] = (2**64 - 1, 2**64 - 1)
    path.write_bytes(with_index(payload, entries))


def lose_a_shard(folder: Path) -> None:
    REWRITES["compressed"](folder)
    (folder / "pooled/c/0/0").unlink()


def cut_a_shard(folder: Path) -> None:
    REWRITES["compressed"](folder)
    path = folder / "pooled/c/0/0"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [lose_a_chunk, lose_a_shard, cut_a_shard])
def test_absent_rows_never_pass_for_answers(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(DamagedCacheError, match="pooled"):
        feature_of(folder)[64:70]
