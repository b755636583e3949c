"""Arrays that another Zarr writer laid out: looked at first, then read through a Zarr library.

A cache may come from strangers, and a Zarr library does what a document says: it takes any codec it
knows (some run code), allocates chunks of any shape, follows links, and fills in for what is not
there. So the document must be one of Zarr v3, of the feature's shape and type, with NaN for absent
rows, codecs from a short list, and chunks that fit into memory; and all files must be plain ones.
"""

import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import INNER_CHUNK_ROWS, ZARR_METADATA
from ..files.plain_files import check_folders
from ..format.zarr_shards import DenseArray, read_json_object

CODECS = {"bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}
"""Not blosc: its decoder ends the process at chunks that are cut or damaged."""
MAX_CHUNK_BYTES = 2**31
"""What is decoded at once."""
MAX_INNER_CHUNKS = 2**24
"""Entries of a shard's index."""

_PIECE_BYTES = 2**28


def check_foreign(folder: Path, cache: Path, spec: FeatureSpec) -> None:
    """Refuse an array in `folder` that should not be given to a Zarr library."""
    path = folder / ZARR_METADATA
    document = read_json_object(path, cache)
    try:
        problem = _problem(document, spec)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise DamagedCacheError(f"{path}: is not a Zarr array's: {cause!r:.100}") from cause
    if problem is not None:
        raise DamagedCacheError(f"{path}: {problem}")
    _check_files(folder, cache)


def _problem(document: dict[str, Any], spec: FeatureSpec) -> str | None:
    grid = document["chunk_grid"]["configuration"]["chunk_shape"]
    shape = document["shape"]
    if (document["zarr_format"], document["node_type"]) != (3, "array"):
        return "is not the document of a Zarr v3 array"
    if shape[1:] != list(spec.shape) or document["data_type"] != spec.dtype:
        return f"is of {document['data_type']!r:.20} {shape!r:.60}, not the feature's"
    if spec.whole:
        return "is laid out by another tool: of whole numbers, absent ones could not be told"
    if document["fill_value"] != "NaN":
        return f"fill_value {document['fill_value']!r:.20}: absent rows would pass for answers"
    codecs = list(_codecs(document["codecs"]))
    unknown = {str(codec["name"]) for codec in codecs} - CODECS
    if unknown:
        return f"codecs {sorted(unknown)!r:.60}: only {', '.join(sorted(CODECS))} are read"
    inner = [c["configuration"]["chunk_shape"] for c in codecs if c["name"] == "sharding_indexed"]
    return _chunk_problem([grid, *inner], len(shape), spec)


def _codecs(codecs: list[Any]) -> Iterator[dict[str, Any]]:
    """All codecs, those inside of others too."""
    for codec in codecs:
        yield codec
        inside = codec.get("configuration", {})
        yield from _codecs([*inside.get("codecs", []), *inside.get("index_codecs", [])])


def _chunk_problem(chunks: list[list[int]], dimensions: int, spec: FeatureSpec) -> str | None:
    """Chunks from the outermost to the innermost."""
    for chunk in chunks:
        if len(chunk) != dimensions or not all(type(side) is int and side > 0 for side in chunk):
            return f"chunk_shape {chunk!r:.60} is not {dimensions} numbers above 0"
    sizes = [math.prod(chunk) for chunk in chunks]
    if sizes[-1] * np.dtype(spec.dtype).itemsize > MAX_CHUNK_BYTES:
        return f"chunk_shape {chunks[-1]!r:.60}: a chunk has at most {MAX_CHUNK_BYTES} bytes"
    if sizes[0] > MAX_INNER_CHUNKS * sizes[-1]:
        return f"chunk_shape {chunks[0]!r:.60}: a shard has at most {MAX_INNER_CHUNKS} chunks"
    return None


def _check_files(folder: Path, cache: Path) -> None:
    check_folders(folder / ZARR_METADATA, cache)
    for path in folder.rglob("*"):
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise DamagedCacheError(f"{path}: is neither a file nor a folder")


def read_foreign(folder: Path, spec: FeatureSpec, start: int, rows: int) -> DenseArray:
    """Rows `start` to `start + rows - 1` of an array that was checked, [rows, *shape].

    Raises DamagedCacheError if they are not all there: stored answers are finite, and not a number
    stands where a chunk is absent."""
    import zarr

    # In pieces: where nothing is there, no memory is filled before that is seen.
    step = max(1, _PIECE_BYTES // spec.row_bytes // INNER_CHUNK_ROWS) * INNER_CHUNK_ROWS
    try:
        array = zarr.open_array(folder, mode="r", zarr_format=3)
        values = np.empty((rows, *spec.shape), spec.dtype)
        for first in range(0, rows, step):
            room = values[first : first + step]
            piece = np.asarray(array[start + first : start + first + len(room)])
            if piece.shape != room.shape or not np.isfinite(piece).all():
                raise ValueError("some are absent or not finite")
            room[...] = piece
    except Exception as cause:  # whatever a library and its codecs raise at damaged bytes
        reason = str(cause).partition("\n")[0]
        raise DamagedCacheError(
            f"{folder}: rows {start} to {start + rows - 1} are committed but cannot be read as "
            f"Zarr: {reason:.200}; recompute the shard"
        ) from cause
    return values
