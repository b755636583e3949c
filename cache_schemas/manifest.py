"""The JSON documents of a cache: contents, teachers, commits, provenance.

`CacheManifest` and `TeacherManifest` are written once. A `CommitRecord` is written once per shard
and makes it visible. None of the three holds a date, a time or a host, so that equal work leaves
equal bytes; those are in `RunRecord`, one per run, which readers may ignore.

`CacheIndex` is all documents of a cache in one file, `index.json`: what a reader fetches first from
a location that is slow to list or cannot be listed. It holds nothing that the other documents do
not.

A digest names the content of a cache: SHA-256 over one line a commit record, sorted, each the
teacher's fingerprint, a space, and the record as canonical JSON. Records hold the checksum of every
file, so equal digests mean equal answers under equal fingerprints, as far as the checksums can tell
(XXH3 finds damage, not forgery).

Documents may come from strangers: what they claim is bounded here, before anybody allocates it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from . import names
from .codings import Fidelity, combined
from .errors import CacheError, CacheVersionError, DamagedCacheError
from .features import AxisName, FeatureName, FeatureSpec, TableName
from .keys import canonical_json
from .layout import ROWS_TABLE
from .names import either, of_version_1
from .teachers import Fingerprint, TeacherSpec

FORMAT_NAME = "armada-cache"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)

MAX_ROWS_PER_SHARD = 2**20
MAX_SHARDS = 10**6
MAX_SHARD_BYTES = 2**36
"""64 GiB of one feature: a writer holds a shard in memory."""
MAX_FILE_BYTES = 2**50

RowsPerShard = Annotated[int, Field(ge=64, le=MAX_ROWS_PER_SHARD, multiple_of=64)]
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class Document(BaseModel):
    """Base of all documents: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: ClassVar[int] = 2**20
    """A larger file is refused before it is read."""

    def to_json(self) -> bytes:
        """Indented JSON, keys in declared order, one trailing newline."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class CacheManifest(Document):
    """`armada.json` at the top of a cache."""

    format: Literal["armada-cache"] = "armada-cache"
    format_version: int = FORMAT_VERSION


class TeacherManifest(Document):
    """`teacher.json` of one teacher: all a reader needs to interpret its shards.

    A teacher that extends another holds features that were added to the other's later: its spec
    lists those alone, and its rows are joined to the other's by key."""

    max_bytes: ClassVar[int] = 2**24

    fingerprint: Fingerprint
    rows_per_shard: RowsPerShard = Field(
        description="maximum rows of one shard; the Zarr chunk grid"
    )
    spec: TeacherSpec
    extends: Fingerprint | None = Field(
        default=None, description="the teacher whose features these were added to"
    )

    @model_validator(mode="after")
    def _fingerprint_is_of_spec(self) -> "TeacherManifest":
        spec, base = self.spec, self.extends
        expected = spec.fingerprint if base is None else spec.fingerprint_extending(base)
        if self.fingerprint != expected:
            raise ValueError(
                f"fingerprint: {self.fingerprint} is not that of the spec ({expected})"
            )
        return self

    @model_validator(mode="after")
    def _shards_fit_into_memory(self) -> "TeacherManifest":
        for feature in self.spec.features:
            rows = feature.most_rows(self.rows_per_shard)
            if rows * feature.row_bytes > MAX_SHARD_BYTES:
                raise ValueError(
                    f"rows_per_shard: {self.rows_per_shard} examples have up to {rows} rows of "
                    f"{feature.row_bytes} bytes ({feature.name}); a shard has at most "
                    f"{MAX_SHARD_BYTES} bytes of a feature"
                )
        return self

    def array_rows(self, feature: FeatureSpec, last: "CommitRecord | None") -> int:
        """Rows of a feature's Zarr array: up to the last one that is committed."""
        if last is None:
            return 0
        return last.shard * feature.most_rows(self.rows_per_shard) + last.rows_of(feature)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Most teachers extend nothing, and their documents stay what they were.
        document: dict[str, Any] = dump(self)
        return {k: v for k, v in document.items() if (k, v) != ("extends", None)}


class FileRecord(Document):
    """Size and checksum of one file of a shard; its path follows from the layout."""

    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)
    xxh3_128: Checksum = Field(description="XXH3 128-bit hash of the whole file, hexadecimal")


class CommitRecord(Document):
    """One committed shard. Its existence is what makes the shard's rows readable."""

    shard: int = Field(ge=0, lt=MAX_SHARDS)
    rows: int = Field(ge=1, le=MAX_ROWS_PER_SHARD)
    features: dict[FeatureName, FileRecord] = Field(description="feature -> its Zarr shard file")
    tables: dict[TableName, FileRecord] = Field(description="table -> its Parquet file")
    lengths: dict[AxisName, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        validation_alias=either("lengths", names.COMMIT),
        description="axis -> the lengths of all examples of the shard, summed",
    )

    fidelity: dict[FeatureName, Fidelity] = Field(
        default_factory=dict, description="coded feature -> error of decoded predictions"
    )

    def identity(self) -> dict[str, Any]:
        """Fields of the digest, by their names in version 1."""
        return of_version_1(self.model_dump(mode="json"), names.COMMIT)

    def rows_of(self, feature: FeatureSpec) -> int:
        """Number of rows of a feature: examples, or rows along its axis."""
        return self.rows if feature.axis is None else self.lengths[feature.axis]

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = dump(self)
        return {k: v for k, v in document.items() if v or k not in ("lengths", "fidelity")}

    @model_validator(mode="after")
    def _has_keys(self) -> "CommitRecord":
        if ROWS_TABLE not in self.tables:
            raise ValueError(f"tables: {ROWS_TABLE!r} is not among them; it holds the keys")
        return self


class CorpusRecord(Document):
    """A corpus of a run."""

    name: str = Field(description="file or folder name, without its path")
    rows: int = Field(ge=0)
    unique_examples: int = Field(ge=0)
    licence: str = Field(default="", description="as declared in the job")


class PartRecord(Document):
    """`part.json` of a teacher of which a cache holds a part; where there is none, it holds all.

    The commit records are the origin's and name every file of a shard; the files of what is missing
    are not here."""

    missing_features: tuple[FeatureName, ...] = Field(
        default=(), description="features whose files are missing here"
    )
    missing_tables: tuple[TableName, ...] = Field(
        default=(), description="tables whose files are missing here; never `rows`"
    )
    next_shard: int = Field(
        ge=0, le=MAX_SHARDS, description="shards below it are the origin's, whether here or not"
    )

    @model_validator(mode="after")
    def _has_rows(self) -> "PartRecord":
        if ROWS_TABLE in self.missing_tables:
            raise ValueError(f"missing_tables: {ROWS_TABLE!r} holds the keys; it is never missing")
        return self


class BatchFigures(Document):
    """What the batches of a run were like, on all its devices; of the whole run, whichever of its
    shards are here."""

    batches: int = Field(default=0, ge=0)
    rows: int = Field(default=0, ge=0, description="examples in these batches")
    tokens: int = Field(default=0, ge=0, description="tokens of these examples, if known")
    padded_tokens: int = Field(default=0, ge=0, description="the same with padding")
    refused: int = Field(default=0, ge=0, description="batches that did not fit into memory")
    seconds: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="seconds of devices of this run"
    )
    busy_seconds: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="of these, running a batch"
    )
    auto_limit: int = Field(
        default=0,
        ge=0,
        description="padded tokens of a batch, or rows, that batch_size=auto found; of several "
        "devices the largest",
    )

    @classmethod
    def together(cls, figures: Sequence["BatchFigures"]) -> "BatchFigures":
        """The figures of several runs, devices or chunks, added up."""
        fields = [each.model_dump() for each in figures]
        joined = {name: sum(each[name] for each in fields) for name in cls.model_fields}
        return cls(**joined | {"auto_limit": max(each["auto_limit"] for each in fields)})


class RequestFigures(Document):
    """The requests of a run to a server, and the model that it names."""

    requests: int = Field(default=0, ge=0)
    repeated: int = Field(default=0, ge=0, description="of them, again after a failure")
    kept: int = Field(default=0, ge=0, description="examples answered by an earlier run's requests")
    refused: int = Field(default=0, ge=0, description="examples that the server refused")
    input_tokens: int = Field(default=0, ge=0, description="as the server says")
    output_tokens: int = Field(default=0, ge=0, description="as the server says")
    cost: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="by the job's prices")
    model: str = Field(default="", description="model that the server names")
    system_fingerprint: str | None = Field(default=None, description="of the server")


class BudgetRecord(Document):
    """Which texts of its corpora a run was to compute, if not all."""

    rule: str = Field(description="how they were chosen")
    seed: int = Field(ge=0)
    based_on: str = Field(
        default="", description="column, feature or predictions that it looked at"
    )
    chosen: int = Field(ge=1, description="distinct texts")
    of: int = Field(ge=1, description="distinct texts that there were")
    keys_digest: str = Field(description="BLAKE2b, 128 bits, of the chosen keys in byte order")


class RunRecord(Document):
    """Provenance and cost of one run of `precompute`; `runs/<id>.json`."""

    max_bytes: ClassVar[int] = 2**26

    started: str = Field(description="UTC, ISO 8601")
    versions: dict[str, str] = Field(description="library -> version")
    hardware: dict[str, str] = Field(description="device, processor, operating system")
    corpora: tuple[CorpusRecord, ...]
    teacher_seconds: dict[int, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="shard -> seconds of the teacher"
    )
    truncated_examples: int = Field(default=0, ge=0, description="truncated texts")
    batches: BatchFigures | None = None
    requests: RequestFigures | None = None
    budget: BudgetRecord | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = dump(self)
        absent = {name for name in ("batches", "requests", "budget") if document[name] is None}
        return {k: v for k, v in document.items() if k not in absent}


DocumentT = TypeVar("DocumentT", bound=Document)


def parse_document(model: type[DocumentT], data: bytes, path: Path | str) -> DocumentT:
    """Read one document; anything but a valid one is a DamagedCacheError that names the field."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise DamagedCacheError(f"{path}: {where:.100}: {first['msg']:.200}") from error


def check_cache_manifest(data: bytes, path: Path | str) -> CacheManifest:
    """Read `armada.json`; another format version is refused before anything else is looked at."""
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedCacheError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT_NAME:
        raise CacheError(f"{path}: format is not {FORMAT_NAME!r}; this is not an armada cache")
    version = raw.get("format_version")
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        raise CacheVersionError(
            f"{path}: format_version {version!r:.40}; this armada reads versions "
            f"{', '.join(map(str, READABLE_VERSIONS))}; "
            "use the armada that wrote the cache, or precompute into a new folder"
        )
    return parse_document(CacheManifest, data, path)


def fidelity_of(commits: Iterable[CommitRecord]) -> dict[str, Fidelity]:
    """Coded feature -> its fidelity in all shards where it was measured."""
    samples: dict[str, list[Fidelity]] = {}
    for commit in commits:
        for name, measured in commit.fidelity.items():
            samples.setdefault(name, []).append(measured)
    return {name: combined(each) for name, each in sorted(samples.items())}


RunId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$")]
"""Also the name of the run's document."""


def content_digest(commits: Iterable[tuple[Fingerprint, CommitRecord]]) -> str:
    """64 hexadecimal digits that name a set of commits, in whatever order they are given."""
    lines = sorted(
        fingerprint.encode() + b" " + canonical_json(record.identity()) + b"\n"
        for fingerprint, record in commits
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()


class TeacherIndex(Document):
    """One teacher of a cache: its manifest, commits in shard order, runs by id, and what is missing
    if the cache holds a part."""

    manifest: TeacherManifest
    commits: tuple[CommitRecord, ...]
    runs: dict[RunId, RunRecord] = Field(default_factory=dict)
    part: PartRecord | None = None


class CacheIndex(Document):
    """`index.json`: every document of a cache."""

    max_bytes: ClassVar[int] = 2**27
    """128 MiB, about 200,000 shards."""

    cache: CacheManifest = CacheManifest()
    teachers: tuple[TeacherIndex, ...]

    @property
    def digest(self) -> str:
        """The content digest of all that is listed."""
        return content_digest(
            (teacher.manifest.fingerprint, record)
            for teacher in self.teachers
            for record in teacher.commits
        )
