"""Dense features as Zarr v3 shards whose payload is one plain C-order block.

A shard file is the rows of a shard, little-endian, padded with NaN rows to a whole inner chunk,
followed by the index: (offset, bytes) of every inner chunk as unsigned 64-bit little-endian
numbers, both 2^64 - 1 for an absent chunk, and the crc32c of the index. Inner chunks span rows
only and lie in row order, so `payload` is an array [rows, *shape] that can be mapped as it is.
Any Zarr v3 library reads it (codec `sharding_indexed`, inner codec `bytes`).
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from ....cache_schemas.features import FeatureSpec

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
    """What stands for an absent row; whole numbers have nothing better than zeros."""
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
            # An absent row must never pass for zeros, where that can be said.
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
    """Whether two `zarr.json` say the same of how rows lie in files; they may differ in the rest.

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
