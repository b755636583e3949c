"""Dense features as Zarr v3 shards whose payload is one plain C-order block.

A shard file is the rows of a shard, little-endian, padded with NaN rows to a whole inner chunk,
followed by the index: (offset, bytes) of every inner chunk as unsigned 64-bit little-endian
numbers, both 2^64 - 1 for an absent chunk, and the crc32c of the index. Inner chunks span rows
only and lie in row order, so `payload` is an array [rows, *shape] that can be mapped as it is.
Any Zarr v3 library reads it (codec `sharding_indexed`, inner codec `bytes`).

That a file is so is proven from its size and its index before it is mapped. An index that is not
whole, or a file too short for its rows, is damage; a whole index that says anything else than rows
in order is what another Zarr writer may leave, and is for a Zarr library to read.

The `zarr.json` documents let any Zarr tool open the cache. All they say follows from manifests and
commits, so a damaged one can be written anew; of one that others may have edited, only what tells
where rows lie has to be as it was.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import ZARR_METADATA
from ..files.plain_files import plain_size, read_bytes, read_error

ABSENT = 2**64 - 1
CRC_BYTES = 4
_ENTRY_BYTES = 16

DenseArray = npt.NDArray[Any]


def shard_parts(rows: DenseArray, spec: FeatureSpec, rows_per_shard: int) -> Iterator[memoryview]:
    """The bytes of a shard file holding `rows` [N, *shape], those of at most `rows_per_shard`
    examples."""
    little = np.ascontiguousarray(rows, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    yield little.reshape(-1).view(np.uint8).data
    padding = -len(rows) % spec.chunk_rows(rows_per_shard)
    absent = np.full((padding, *spec.shape), fill_value(spec), little.dtype)
    yield absent.reshape(-1).view(np.uint8).data
    yield memoryview(shard_index(len(rows), spec, rows_per_shard))


def fill_value(spec: FeatureSpec) -> float:
    """Fill value of an absent row: NaN, or 0 for integers."""
    return 0 if spec.whole else float("nan")


@lru_cache(maxsize=8)
def shard_index(rows: int, spec: FeatureSpec, rows_per_shard: int) -> bytes:
    """The index of a shard that holds `rows` plain rows, with its checksum: a file's last bytes."""
    chunk_rows = spec.chunk_rows(rows_per_shard)
    chunk_bytes = chunk_rows * spec.row_bytes
    present = -(-rows // chunk_rows)
    entries = np.full((_chunks(spec, rows_per_shard), 2), ABSENT, dtype="<u8")
    entries[:present, 0] = np.arange(present, dtype="<u8") * chunk_bytes
    entries[:present, 1] = chunk_bytes
    data: bytes = entries.tobytes()
    crc: int = google_crc32c.value(data)
    return data + crc.to_bytes(CRC_BYTES, "little")


def _chunks(spec: FeatureSpec, rows_per_shard: int) -> int:
    return spec.most_rows(rows_per_shard) // spec.chunk_rows(rows_per_shard)


def index_bytes(spec: FeatureSpec, rows_per_shard: int) -> int:
    """Size of the index at the end of a shard file."""
    return _chunks(spec, rows_per_shard) * _ENTRY_BYTES + CRC_BYTES


def shard_bytes(rows: int, spec: FeatureSpec, rows_per_shard: int) -> int:
    """Size of a shard file that holds `rows` rows."""
    chunk_rows = spec.chunk_rows(rows_per_shard)
    whole = -(-rows // chunk_rows) * chunk_rows
    return whole * spec.row_bytes + index_bytes(spec, rows_per_shard)


def array_metadata(spec: FeatureSpec, rows: int, rows_per_shard: int) -> bytes:
    """`zarr.json` of a feature array with `rows` rows."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [spec.chunk_rows(rows_per_shard), *spec.shape],
        "codecs": [little],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _to_json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *spec.shape],
            "data_type": spec.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [spec.most_rows(rows_per_shard), *spec.shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            # An absent row must never look like zeros, if the dtype allows.
            "fill_value": 0 if spec.whole else "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": _attributes(spec),
            "storage_transformers": [],
        }
    )


def _attributes(spec: FeatureSpec) -> dict[str, str]:
    axis = {"axis": spec.axis} if spec.axis else {}
    return {"description": spec.description, **axis}


def same_layout(one: bytes, other: bytes) -> bool:
    """Whether two `zarr.json` describe the same row layout; they may differ in the rest.

    False, too, for what is not JSON."""
    try:
        layouts = [
            [document.get(part) for part in ("data_type", "chunk_grid", "codecs")]
            for document in map(json.loads, (one, other))
        ]
    except (ValueError, AttributeError, RecursionError):
        return False
    return layouts[0] == layouts[1]


def group_metadata() -> bytes:
    """`zarr.json` of a group."""
    return _to_json({"zarr_format": 3, "node_type": "group", "attributes": {}})


def _to_json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


MAX_ZARR_BYTES = 2**20

LAYOUT = ("data_type", "chunk_grid", "codecs")
"""Fields that another Zarr writer changes if it orders or compresses the rows differently."""

ArrayState = Literal["current", "stale", "foreign"]
"""stale: counts other rows than are committed, as left by a dead writer, or by a running one;
foreign: laid out otherwise, re-written by another tool or damaged."""


def read_json_object(path: Path, cache: Path) -> dict[str, Any]:
    """A JSON object of a cache; raises DamagedCacheError."""
    try:
        document = json.loads(read_bytes(path, cache, MAX_ZARR_BYTES))
    except (ValueError, RecursionError) as cause:
        raise DamagedCacheError(f"{path}: not JSON: {cause!s:.200}") from cause
    if not isinstance(document, dict):
        raise DamagedCacheError(f"{path}: not a JSON object")
    return document


def check_group(path: Path, cache: Path) -> None:
    """Refuse what is not the document of a Zarr group."""
    ours = json.loads(group_metadata())
    _require_equal(path, read_json_object(path, cache), ours, ours.keys() - {"attributes"})


def check_array(
    path: Path, cache: Path, spec: FeatureSpec, rows: int, rows_per_shard: int
) -> ArrayState:
    """Refuse what is not the document of this feature's array of `rows` rows."""
    document = read_json_object(path, cache)
    ours = json.loads(array_metadata(spec, rows, rows_per_shard))
    shape = document.get("shape")
    if not isinstance(shape, list) or not shape or shape[1:] != list(spec.shape):
        raise DamagedCacheError(f"{path}: shape {shape!r:.60} is not [rows, *{list(spec.shape)}]")
    _require_equal(path, document, ours, ours.keys() - {"attributes", "shape", *LAYOUT})
    if any(document.get(part) != ours[part] for part in LAYOUT):
        return "foreign"
    return "current" if shape[0] == rows else "stale"


def stored_rows_per_shard(teacher: Path) -> int | None:
    """Rows per shard by the arrays in a teacher's folder, for when `teacher.json` is lost."""
    for path in sorted(teacher.glob(f"*/{ZARR_METADATA}")):
        try:
            document = read_json_object(path, teacher.parent.parent)
            return _rows_per_shard(document)
        except (DamagedCacheError, LookupError, TypeError, ValueError):
            continue
    return None


def _rows_per_shard(document: dict[str, Any]) -> int:
    if "axis" in document["attributes"]:
        return int(document["codecs"][0]["configuration"]["chunk_shape"][0])
    return int(document["chunk_grid"]["configuration"]["chunk_shape"][0])


def _require_equal(
    path: Path, document: dict[str, Any], ours: dict[str, Any], parts: set[str]
) -> None:
    for part in sorted(parts):
        value = document.get(part)
        if value != ours[part] and (value or ours[part]):
            raise DamagedCacheError(f"{path}: {part} is {value!r:.60}, not {ours[part]!r:.60}")


@contextmanager
def opened(path: Path, cache: Path) -> Iterator[int]:
    """The descriptor of a shard file; raises DamagedCacheError if it is not a file that can be read
    below the folder `cache`."""
    plain_size(path, cache)
    try:
        # Neither a link nor a pipe, should one have come under its name since.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as cause:
        raise read_error(path, cause) from cause
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise DamagedCacheError(f"{path}: is not a file")
        yield file
    finally:
        os.close(file)


def is_plain(file: int, path: Path, spec: FeatureSpec, rows: int, rows_per_shard: int) -> bool:
    """Whether the first bytes of an open shard file are its `rows` rows, one after another.

    Raises DamagedCacheError, naming `path`, if the file is cut or its index is damaged."""
    index = _read_index(file, path, index_bytes(spec, rows_per_shard))
    if index != shard_index(rows, spec, rows_per_shard):
        return False
    if os.fstat(file).st_size < shard_bytes(rows, spec, rows_per_shard):
        raise DamagedCacheError(f"{path}: shorter than its {rows} rows; recompute the shard")
    return True


def _read_index(file: int, path: Path, length: int) -> bytes:
    try:
        index = os.pread(file, length, max(os.fstat(file).st_size - length, 0))
    except OSError as cause:
        raise DamagedCacheError(f"{path}: committed but unreadable: {cause.strerror}") from cause
    crc = int.from_bytes(index[-CRC_BYTES:], "little")
    if len(index) != length or google_crc32c.value(index[:-CRC_BYTES]) != crc:
        raise DamagedCacheError(f"{path}: the shard index is damaged (crc32c); recompute the shard")
    return index
