"""Features written file by file: any numbers in any shards, quickly; no keys, nothing synced."""

import struct
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import xxhash
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.layout import ZARR_METADATA, commit_file, shard_file
from armada.cache_schemas.manifest import CommitRecord, FileRecord
from armada.stages.store.format.zarr_shards import array_metadata, shard_parts
from armada.stages.store.reading.feature_array import FeatureArray
from armada.stages.store.writing.writer import CacheWriter
from small_caches import make_manifest

Values = npt.NDArray[Any]
INNER_ROWS = 64


def numbered_rows(count: int, spec: FeatureSpec) -> Values:
    """[count, *shape]; neighbours differ, and so do rows that are not thousands apart."""
    numbers = np.arange(count * spec.values_per_row) % 2039 - 1019
    return numbers.astype(spec.dtype).reshape(count, *spec.shape)


def cut_into_shards(values: Values, rows: Sequence[int]) -> list[Values]:
    """The first rows, the next ones, and so on."""
    return np.split(values, np.cumsum(rows)[:-1]) if rows else []


def write_shards(
    folder: Path,
    spec: FeatureSpec,
    shards: Iterable[Values],
    rows_per_shard: int,
    reordered: Collection[int] = (),
) -> list[tuple[int, int]]:
    """The Zarr array of a feature below a teacher's folder; (number, rows) of its shards. Those in
    `reordered` have their inner chunks last to first: valid, but not plain."""
    made = []
    for shard, values in enumerate(shards):
        data = b"".join(shard_parts(values, spec, rows_per_shard))
        file = shard_file(folder, spec.name, shard, len(spec.shape))
        if shard < 1 or spec.shape:
            file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_last_to_first(data, spec, len(values)) if shard in reordered else data)
        made.append((shard, len(values)))
    rows = (len(made) - 1) * rows_per_shard + made[-1][1] if made else 0
    (folder / spec.name).mkdir(parents=True, exist_ok=True)
    (folder / spec.name / ZARR_METADATA).write_bytes(array_metadata(spec, rows, rows_per_shard))
    return made


def _last_to_first(data: bytes, spec: FeatureSpec, rows: int) -> bytes:
    size, count = INNER_ROWS * spec.row_bytes, -(-rows // INNER_ROWS)
    chunks = [data[at * size : (at + 1) * size] for at in range(count)]
    entries = b"".join(struct.pack("<QQ", (count - 1 - at) * size, size) for at in range(count))
    index = entries + data[count * size + len(entries) : -4]
    crc = struct.pack("<I", google_crc32c.value(index))
    return b"".join(reversed(chunks)) + index + crc


def thin_feature(
    cache: Path, spec: FeatureSpec, shards: Iterable[Values], rows_per_shard: int, **how: Any
) -> FeatureArray:
    """The array over shards written below `cache`."""
    folder = cache / "teachers" / "thin"
    made = write_shards(folder, spec, shards, rows_per_shard)
    return FeatureArray(folder, spec, rows_per_shard, made, **how)


def write_thin_cache(
    cache: Path, spec: FeatureSpec, shards: Iterable[Values], rows_per_shard: int
) -> Path:
    """A cache of one feature that can be opened; returns the teacher's folder."""
    with CacheWriter(cache, make_manifest([spec], rows_per_shard)) as writer:
        folder = writer.folder
    (folder / "commits").mkdir(exist_ok=True)
    for shard, rows in write_shards(folder, spec, shards, rows_per_shard):
        data = shard_file(folder, spec.name, shard, len(spec.shape)).read_bytes()
        record = CommitRecord(
            shard=shard,
            rows=rows,
            features={spec.name: _file_record(data)},
            tables={"rows": _file_record(b"")},
        )
        commit_file(folder, shard).write_bytes(record.to_json())
    return folder


def _file_record(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
