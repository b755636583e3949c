"""The `zarr.json` documents of a cache against what its manifests and commits say.

They are there so that any Zarr tool can open the cache; all they say follows from other documents,
so a damaged one can be written anew. Of a document that others may have edited, only what tells
where rows lie has to be as it was.
"""

import json
from pathlib import Path
from typing import Any, Literal

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import ZARR_METADATA
from ..files.plain_files import read_bytes
from .dense import array_metadata, group_metadata

MAX_ZARR_BYTES = 2**20

LAYOUT = ("data_type", "chunk_grid", "codecs")
"""What another Zarr writer changes if it orders or compresses the rows differently."""

ArrayState = Literal["current", "stale", "foreign"]
"""stale: counts other rows than are committed, as a writer that died leaves it, or one at work;
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
    """What the arrays in a teacher's folder say of its shards, for when `teacher.json` is lost."""
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
