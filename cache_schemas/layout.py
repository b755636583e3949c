"""Layout of a cache. Paths are made here from numbers and checked names only.

    CACHE/
      armada.json                       CacheManifest
      writer.lock                       held by one writer at a time, for moments; notes of commits
      pull.lock                         held by one pull at a time; gone afterwards
      zarr.json                         Zarr group, so that any Zarr tool can walk the cache
      teachers/zarr.json                Zarr group
      teachers/<fingerprint>/
        teacher.json                    TeacherManifest
        zarr.json                       Zarr group; its arrays are the features
        <feature>/zarr.json             Zarr array [rows, *shape]
        <feature>/c/<shard>/0...        one file per shard
        tables/<table>/<shard>.parquet  one row per example of the shard, in order
        commits/<shard>.json            CommitRecord
        runs/<id>.json                  RunRecord
        part.json                       PartRecord, if the cache holds a part of the teacher
        reservations/<shard>/           what a living writer is at; readers never look

Row `i` of the Zarr arrays is row `i % rows_per_shard` of shard `i // rows_per_shard`. A shard that
holds fewer rows than it could is followed by NaN rows up to the next shard. Features along an axis
have several rows for an example, one example after another: there a shard has room for
`rows_per_shard * max_length` rows, most of it empty, and what is empty takes no bytes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

CACHE_MANIFEST = "armada.json"
TEACHER_MANIFEST = "teacher.json"
TEACHER_PART = "part.json"
CACHE_INDEX = "index.json"
MIRROR = "mirror.json"
ZARR_METADATA = "zarr.json"
WRITER_LOCK = "writer.lock"
PULL_LOCK = "pull.lock"
PARTIAL_SUFFIX = ".partial"

ROWS_TABLE = "rows"
"""The table every shard has: columns `key` (16 bytes) and `truncated` (bool); and, for each axis
that features lie along, a column of its name (uint32): how many rows each example has along it."""

ROW_COLUMNS = frozenset({"key", "truncated"})

INNER_CHUNK_ROWS = 64
"""Rows of one inner chunk: small for other Zarr readers, no cost for ours."""

DEFAULT_ROWS_PER_SHARD = 16_384
"""32 MiB of 1024 float16 numbers; a power of two, so that a full shard is whole memory pages."""

FINGERPRINT = re.compile(r"[0-9a-f]{32}", re.ASCII)
"""Names of teachers' folders."""

RESERVED_NAMES = frozenset({"tables", "commits", "runs", "reservations"})
"""Folders beside the features, which a feature therefore cannot be called."""


def teacher_folder(cache: Path, fingerprint: str) -> Path:
    """Folder of one teacher."""
    return cache / "teachers" / fingerprint


def shard_file(teacher: Path, feature: str, shard: int, dims: int) -> Path:
    """Zarr shard file of a feature whose examples have `dims` dimensions."""
    return teacher.joinpath(feature, "c", str(shard), *["0"] * dims)


def table_file(teacher: Path, table: str, shard: int) -> Path:
    """Parquet file of one table of one shard."""
    return teacher / "tables" / table / f"{shard:06d}.parquet"


def commit_file(teacher: Path, shard: int) -> Path:
    """Commit record of one shard."""
    return teacher / "commits" / f"{shard:06d}.json"


def reservation_folder(teacher: Path, shard: int) -> Path:
    """Folder in which the writer of a shard works until it commits."""
    return teacher / "reservations" / f"{shard:06d}"


def numbered(paths: Iterable[Path]) -> dict[int, Path]:
    """Shard number -> path, of those paths whose name is the number of a shard."""
    return {int(path.stem): path for path in paths if re.fullmatch(r"\d{6}", path.stem, re.ASCII)}
