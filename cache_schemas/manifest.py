"""The JSON documents of a cache: what is in it, who answered, what was committed, who paid.

`CacheManifest` and `TeacherManifest` are written once. A `CommitRecord` is written once per shard
and makes it visible. None of the three holds a date, a time or a host, so that equal work leaves
equal bytes; those are in `RunRecord`, one per run, which readers may ignore.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .errors import CacheError, CacheVersionError, DamagedCacheError
from .teachers import Fingerprint, TeacherSpec

FORMAT_NAME = "armada-cache"
FORMAT_VERSION = 1

MAX_ROWS_PER_SHARD = 2**20
MAX_SHARDS = 10**6

RowsPerShard = Annotated[int, Field(ge=64, le=MAX_ROWS_PER_SHARD, multiple_of=64)]
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class Document(BaseModel):
    """Base of all documents: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Indented JSON, keys in declared order, one trailing newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class CacheManifest(Document):
    """`armada.json` at the top of a cache."""

    format: Literal["armada-cache"] = "armada-cache"
    format_version: int = FORMAT_VERSION


class TeacherManifest(Document):
    """`teacher.json` of one teacher: all a reader needs to interpret its shards."""

    fingerprint: Fingerprint
    rows_per_shard: RowsPerShard = Field(description="most rows of one shard; the Zarr chunk grid")
    spec: TeacherSpec

    @model_validator(mode="after")
    def _fingerprint_is_of_spec(self) -> "TeacherManifest":
        if self.fingerprint != self.spec.fingerprint:
            raise ValueError(
                f"fingerprint: {self.fingerprint} is not that of the spec ({self.spec.fingerprint})"
            )
        return self


class FileRecord(Document):
    """Size and checksum of one file of a shard; its path follows from the layout."""

    bytes: int = Field(ge=0)
    xxh3_128: Checksum = Field(description="XXH3 128-bit hash of the whole file, hexadecimal")


class CommitRecord(Document):
    """One committed shard. Its existence is what makes the shard's rows readable."""

    shard: int = Field(ge=0, lt=MAX_SHARDS)
    rows: int = Field(ge=1, le=MAX_ROWS_PER_SHARD)
    features: dict[str, FileRecord] = Field(description="feature -> its Zarr shard file")
    tables: dict[str, FileRecord] = Field(description="table -> its Parquet file")


class CorpusRecord(Document):
    """A corpus a run was asked about."""

    name: str = Field(description="file or folder name, without its path")
    rows: int = Field(ge=0)
    unique_examples: int = Field(ge=0)
    licence: str = Field(default="", description="as declared by who ran the job")


class RunRecord(Document):
    """Provenance and cost of one run of `precompute`; `runs/<id>.json`."""

    started: str = Field(description="UTC, ISO 8601")
    versions: dict[str, str] = Field(description="library -> version")
    hardware: dict[str, str] = Field(description="device, processor, operating system")
    corpora: tuple[CorpusRecord, ...]
    teacher_seconds: dict[int, float] = Field(
        default_factory=dict, description="shard -> seconds spent asking the teacher"
    )
    truncated_examples: int = Field(default=0, ge=0, description="texts longer than it takes")


DocumentT = TypeVar("DocumentT", bound=Document)


def parse_document(model: type[DocumentT], data: bytes, path: Path) -> DocumentT:
    """Read one document; anything but a valid one is a DamagedCacheError that names the field."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise DamagedCacheError(f"{path}: {where}: {first['msg']}") from error


def check_cache_manifest(data: bytes, path: Path) -> CacheManifest:
    """Read `armada.json`; another format version is refused before anything else is looked at."""
    try:
        raw: Any = json.loads(data)
    except ValueError as error:
        raise DamagedCacheError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT_NAME:
        raise CacheError(f"{path}: format is not {FORMAT_NAME!r}; this is not an armada cache")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise CacheVersionError(
            f"{path}: format_version {version!r}; this armada reads version {FORMAT_VERSION}; "
            "use the armada that wrote the cache, or precompute into a new folder"
        )
    return parse_document(CacheManifest, data, path)
