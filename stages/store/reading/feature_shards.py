"""The shards of one feature, one by one: prepared, proven plain, or read through a Zarr library.

That library is for arrays that another Zarr writer laid out, and they are looked at first. A cache
may come from strangers, and a Zarr library follows the document: it takes any codec it knows (some
run code), allocates chunks of any shape, follows links, and fills in for what is not there. So the
document must be one of Zarr v3, of the feature's shape and type, with NaN for absent rows, codecs
from a short list, and chunks that fit into memory; and all files must be plain ones.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ....cache_schemas.errors import DamagedCacheError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.layout import INNER_CHUNK_ROWS, ZARR_METADATA, shard_file
from ..files.plain_files import check_folders, read_bytes
from ..format.zarr_shards import (
    MAX_ZARR_BYTES,
    DenseArray,
    array_metadata,
    is_plain,
    opened,
    read_json_object,
    same_layout,
)
from .memory import AddressRange

Prepare = Callable[[str, int], None]
"""Called with feature and shard number before the shard's file is opened: to check it, or to fetch
it. May be called again for a shard, and from several threads and processes at once. May raise any
ArmadaError. Must be safe to pickle."""


Check = Callable[[int], None]
"""Called with a shard number after its file was opened: is it still the right one? May raise any
ArmadaError. Must be safe to pickle."""


@dataclass(frozen=True)
class FeatureShards:
    """Files of a feature in a teacher's folder; `shards` are (number, rows), in row order."""

    folder: Path
    spec: FeatureSpec
    rows_per_shard: int
    shards: tuple[tuple[int, int], ...]
    prepare: Prepare | None
    check: Check | None = None

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """Type of the numbers in the files."""
        return np.dtype(self.spec.dtype).newbyteorder("<")

    @contextmanager
    def plain(self, position: int) -> Iterator[int | None]:
        """The open file of a shard that can be mapped; None for one that a Zarr library has to
        read. Raises DamagedCacheError if it is neither, and whatever `prepare` raises."""
        shard, rows = self.shards[position]
        if self.prepare is not None:
            self.prepare(self.spec.name, shard)
        if not self._layout_is_ours:
            if self.check is not None:
                self.check(shard)
            yield None
            return
        path = shard_file(self.folder, self.spec.name, shard, len(self.spec.shape))
        with opened(path, self._cache) as file:
            if self.check is not None:
                self.check(shard)
            yield file if is_plain(file, path, self.spec, rows, self.rows_per_shard) else None

    def read_alone(self, position: int) -> DenseArray:
        """One shard [rows, *shape], away from the others: mapped if it is plain."""
        rows = self.shards[position][1]
        with self.plain(position) as file:
            if file is None:
                return self._read_through_zarr(*self.shards[position])
            try:
                alone = AddressRange(rows * self.spec.row_bytes)
                alone.map(0, file, rows * self.spec.row_bytes)
            except OSError:  # the process has as many mappings as it may have
                return self._read_plain(file, rows)
            return alone.array((rows, *self.spec.shape), self.stored_dtype)

    def require_length(self, position: int, inode: int) -> None:
        """Raise DamagedCacheError if the file that was mapped is shorter than its rows by now. One
        that has taken its name is another: what is mapped stays what it was."""
        shard, rows = self.shards[position]
        path = shard_file(self.folder, self.spec.name, shard, len(self.spec.shape))
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return
        if found.st_ino == inode and found.st_size < rows * self.spec.row_bytes:
            raise DamagedCacheError(
                f"{path}: was truncated to {found.st_size} bytes while in use; `armada cache "
                "verify` lists further damage, and `armada cache repair` drops it"
            )

    @property
    def _cache(self) -> Path:
        return self.folder.parent.parent

    @cached_property
    def _layout_is_ours(self) -> bool:
        path = self.folder / self.spec.name / ZARR_METADATA
        ours = array_metadata(self.spec, 0, self.rows_per_shard)
        return not path.is_file() or same_layout(
            read_bytes(path, self._cache, MAX_ZARR_BYTES), ours
        )

    def _read_plain(self, file: int, rows: int) -> DenseArray:
        with open(file, "rb", closefd=False) as stream:
            values = np.fromfile(stream, self.stored_dtype, rows * self.spec.values_per_row)
        return values.reshape(rows, *self.spec.shape)

    @cached_property
    def _foreign(self) -> Path:
        """The folder, once it is known to be fit for a Zarr library."""
        folder = self.folder / self.spec.name
        check_foreign(folder, self._cache, self.spec)
        return folder

    def _read_through_zarr(self, shard: int, rows: int) -> DenseArray:
        start = shard * self.spec.most_rows(self.rows_per_shard)
        return read_foreign(self._foreign, self.spec, start, rows)


CODECS = {"bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}
"""Not blosc: its decoder ends the process at chunks that are cut or damaged."""
MAX_CHUNK_BYTES = 2**31
"""Limit of bytes decoded at once."""
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
        return "is laid out by another tool, and integers cannot mark absent rows"
    if document["fill_value"] != "NaN":
        return f"fill_value {document['fill_value']!r:.20}: absent rows would look like features"
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

    Raises DamagedCacheError if they are not all there: stored features are finite, and NaN stands
    where a chunk is absent."""
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
