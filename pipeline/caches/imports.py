"""`cache import`: features that were computed elsewhere.

Their teacher has only what was declared: kind `imported`, no weights, and as settings the name, the
layout of the source, and the `declare`d keys. So imports are distinguished by declarations: another
model, other options, another version need another name or other declarations. Importing with the
same declarations again adds missing texts. A run record has corpora, time and versions, and no
teacher time. Truncation is unknown, so no text is marked as truncated. Memory: the corpus, and one
shard.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from ...cache_schemas.errors import (
    CorpusError,
    JobError,
    ReservationLostError,
    TeacherMismatchError,
)
from ...cache_schemas.features import FeatureName, FeatureSpec, StoredDtype
from ...cache_schemas.keys import first_occurrences
from ...cache_schemas.layout import DEFAULT_ROWS_PER_SHARD, INNER_CHUNK_ROWS
from ...cache_schemas.manifest import CorpusRecord, RowsPerShard, RunRecord, TeacherManifest
from ...cache_schemas.teachers import SettingValue, TeacherSpec, differences
from ...stages.corpus.corpus import Corpus, corpus_name, read_corpus
from ...stages.store.format.manifests import list_teachers
from ...stages.store.format.rows import Rows
from ...stages.store.format.zarr_shards import DenseArray
from ...stages.store.writing.reservations import Reservation
from ...stages.store.writing.teacher_folder import check_teacher, is_new
from ...stages.store.writing.writer import CacheWriter, Work
from ..environment import library_versions, new_run_id, now
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys, make
from ..messages import SHOWN_PROBLEMS, CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept
from .import_sources import FeatureSource, NpyPerExample, NpyRows, ParquetRows, check_dtype

KIND = "imported"
SHARD_BYTES = 256 * 2**20
LIBRARIES = ("python", "armada-kd", "numpy", "pyarrow")

Layout = Literal["npy_per_example", "npy_rows", "parquet"]


class ImportJob(TextFormatKeys):
    """Keys of an `import`."""

    cache: LocalFolder = Field(description="folder of the cache; made if it is not there")
    source: Path = Field(
        description="a folder of .npy files, one .npy array of all rows, or Parquet"
    )
    name: str = Field(min_length=1, description="name of the import; part of its fingerprint")
    declare: dict[str, SettingValue] = Field(
        default_factory=dict, description="where the features come from, as keys and values"
    )
    corpus: Corpora = Field(
        default=(),
        description="files or folders of the texts; may be left out if they are in the Parquet",
    )
    text_column: Names = Field(
        min_length=1, description="columns that hold the text segments, in order"
    )
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    ids: Path | None = Field(
        default=None, description="text file with the id of each row of one .npy array, one a line"
    )
    column: str | None = Field(
        default=None, description="Parquet column of the features; default the feature's name"
    )
    feature: FeatureName = Field(default="embedding", description="name of the feature")
    store_dtype: StoredDtype | None = Field(
        default=None, description="float32 or float16; default as found; required for float64"
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="maximum rows of a shard; a multiple of 64"
    )
    skip_bad_rows: bool = Field(
        default=False, description="leave bad rows, and rows without features, out and list them"
    )

    @field_validator("declare")
    @classmethod
    def _can_be_hashed(cls, declared: dict[str, SettingValue]) -> dict[str, SettingValue]:
        return check_declared(declared, "name", "layout")

    @model_validator(mode="after")
    def _source_is_known(self) -> "ImportJob":
        layout = self.layout
        if self.ids is not None and layout != "npy_rows":
            raise ValueError("job key 'ids': is for one .npy array of all rows")
        if self.column is not None and layout != "parquet":
            raise ValueError("job key 'column': is for Parquet")
        return self

    @property
    def layout(self) -> Layout:
        """Layout of the source, inferred from names."""
        if self.source.is_dir():
            return "parquet" if any(self.source.glob("*.parquet")) else "npy_per_example"
        if not self.source.is_file():
            raise ValueError(f"job key 'source': {self.source} is not there")
        if self.source.suffix not in (".npy", ".parquet"):
            raise ValueError(f"job key 'source': {self.source} is neither .npy nor .parquet")
        return "npy_rows" if self.source.suffix == ".npy" else "parquet"

    def stored_dtype(self, found: np.dtype[Any]) -> str:
        """The type in which the cache keeps what was found."""
        return self.store_dtype or found.newbyteorder("=").name


def check_declared(declared: dict[str, SettingValue], *own: str) -> dict[str, SettingValue]:
    """Declarations that can be hashed. Raises ValueError, also for the import's `own` keys."""
    for key, value in declared.items():
        if key in own:
            raise ValueError(f"{key} is set by the import itself; choose another key")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is not a finite number")
    return declared


def declared(settings: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE declarations with YAML values; raises JobError."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise JobError(f"--declare {setting}: is not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as cause:
            raise JobError(f"--declare {setting}: the value is not YAML") from cause
    return found


@dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import: rows of the corpus, of these imported now and already cached, rows that
    repeat the text of another and so share its features; unused positions of the source."""

    fingerprint: str
    feature: str
    rows: int
    imported: int
    already_cached: int
    repeated: int
    unused: int
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "written shards are kept; run the same command to continue")
def run_import(job: ImportJob, quiet: bool = False) -> Imported:
    """Take features into a cache; raises an InputError for what cannot be taken."""
    corpus = _read_corpus(job)
    source = _open(job, corpus)
    check_dtype(source.dtype, job.source, job.store_dtype)
    corpus, indices = _with_features(job, corpus, source)
    manifest = _manifest(job, source)
    with CacheWriter(job.cache, manifest) as writer:
        waiting = say_that_it_waits(quiet)
        shards = _ImportedShards(corpus, source, indices, writer, job.skip_bad_rows, waiting)
        with CountProgress("import", "rows", shards.pending, quiet) as progress:
            shards.write(progress.advance)
    return Imported(
        fingerprint=manifest.fingerprint,
        feature=job.feature,
        rows=len(corpus),
        imported=shards.imported,
        already_cached=shards.unique - shards.pending,
        repeated=len(corpus) - shards.unique,
        unused=source.count - len(np.unique(indices)),
        skipped=(*corpus.skipped, *shards.skipped),
    )


def _read_corpus(job: ImportJob) -> Corpus:
    if not job.corpus and job.layout != "parquet":
        raise JobError("job key 'corpus' is missing (files or folders of texts)")
    return read_corpus(
        job.corpus or (str(job.source),),
        job.text_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )


def _open(job: ImportJob, corpus: Corpus) -> FeatureSource:
    if job.layout == "npy_per_example":
        return NpyPerExample(job.source, corpus)
    if job.layout == "npy_rows":
        return NpyRows(job.source, corpus, job.ids)
    ids = (job.id_column or "id") if job.corpus else None
    return ParquetRows(job.source, job.column or job.feature, corpus, ids)


def _with_features(job: ImportJob, corpus: Corpus, source: FeatureSource) -> tuple[Corpus, Rows]:
    """The rows that have features, and their positions."""
    missing = np.flatnonzero(source.position_of_row < 0)
    if len(missing) and (len(missing) == len(corpus) or not job.skip_bad_rows):
        first = "; ".join(corpus.where(row) for row in missing[:SHOWN_PROBLEMS].tolist())
        raise CorpusError(
            f"{len(missing)} of {len(corpus)} rows have no features in {job.source}; skip such "
            f"rows with skip_bad_rows=true. First: {first}"
        )
    kept = corpus.without(missing, "no features") if len(missing) else corpus
    return kept, source.position_of_row[source.position_of_row >= 0]


def _manifest(job: ImportJob, source: FeatureSource) -> TeacherManifest:
    """The teacher as declared; what the cache holds of it, if it does."""
    feature = {"name": job.feature, "shape": source.shape, "dtype": job.stored_dtype(source.dtype)}
    spec = TeacherSpec(
        kind=KIND,
        name=job.name,
        weights={},
        settings={"name": job.name, "layout": source.layout, **job.declare},
        features=(make(FeatureSpec, feature, "feature"),),
    )
    known = check_teacher(job.cache, spec, job.rows_per_shard, add_teacher=True)
    if known is not None:
        return known
    refuse_same_name(job.cache, spec)
    rows = job.rows_per_shard or rows_per_shard(spec.features[0].row_bytes)
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec)


def refuse_same_name(path: Path, spec: TeacherSpec) -> None:
    """Raises TeacherMismatchError for an import of that name with other declarations."""
    for known in [] if is_new(path) else list_teachers(path):
        if (known.spec.kind, known.spec.name) == (KIND, spec.name):
            raise TeacherMismatchError(
                f"cache {path} holds an import named {spec.name!r} ({known.fingerprint[:12]}) with "
                f"other declarations: {'; '.join(differences(known.spec, spec))}; declare the "
                "same, or give this import another name"
            )


def rows_per_shard(row_bytes: int) -> int:
    """Rows of a shard of 256 MiB, in whole chunks; at most the default."""
    fits = SHARD_BYTES // row_bytes // INNER_CHUNK_ROWS * INNER_CHUNK_ROWS
    return min(max(fits, INNER_CHUNK_ROWS), DEFAULT_ROWS_PER_SHARD)


class _ImportedShards:
    """Rows of a corpus are written in the order of their features' positions; of several rows with
    the same text, the first."""

    def __init__(
        self,
        corpus: Corpus,
        source: FeatureSource,
        indices: Rows,
        writer: CacheWriter,
        skip_bad_rows: bool,
        waiting: Callable[[int], None],
    ) -> None:
        """`indices`: position of each row of the corpus; `waiting`: see `Work`."""
        self._corpus, self._source, self._writer = corpus, source, writer
        self._rows = np.argsort(indices, kind="stable")
        self._indices, self._keys = indices[self._rows], corpus.keys()[self._rows]
        self._work = Work(writer, self._keys, waiting)
        self._skip = skip_bad_rows
        self._run_id, self._run = new_run_id(), run_record(corpus)
        self.pending = self._work.pending
        self.unique = len(first_occurrences(self._keys))
        self.imported = 0
        self.skipped: list[str] = []

    def write(self, advance: Callable[[int], None]) -> None:
        """Import what is pending; raises CorpusError for invalid features, unless bad rows are
        skipped."""
        while (task := self._work.reserve()) is not None:
            values, good = self._take(task.rows)
            try:
                self._commit(task.rows[good], values[good], task.reservation)
            except ReservationLostError:
                self._work.put_back(task)
            else:
                advance(len(task.rows))

    def _take(self, positions: Rows) -> tuple[DenseArray, Rows]:
        """Features in the stored type, and which of them are good."""
        found, problems = self._source.take(self._indices[positions])
        with np.errstate(over="ignore"):
            values = found.astype(self._feature.dtype, copy=False)
        finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        for position in np.flatnonzero(~finite).tolist():
            problems.setdefault(position, f"is not finite as {self._feature.dtype}")
        self._refuse_or_skip(
            [
                f"{self._corpus.where(int(self._rows[positions[at]]))}: {problems[at]}"
                for at in sorted(problems)
            ]
        )
        return values, np.setdiff1d(np.arange(len(positions)), np.fromiter(problems, np.int64))

    @property
    def _feature(self) -> FeatureSpec:
        return self._writer.manifest.spec.features[0]

    def _refuse_or_skip(self, problems: list[str]) -> None:
        if problems and not self._skip:
            raise CorpusError(
                f"{len(problems)} rows have invalid features; rows imported so far are kept; skip "
                "invalid rows with skip_bad_rows=true. First: "
                f"{'; '.join(problems[:SHOWN_PROBLEMS])}"
            )
        self.skipped += problems

    def _commit(self, positions: Rows, values: DenseArray, reservation: Reservation) -> None:
        if not len(positions):
            self._writer.release(reservation)
            return
        record = self._writer.commit(
            self._keys[positions],
            {self._feature.name: values},
            np.zeros(len(positions), dtype=bool),
            reservation=reservation,
        )
        self.imported += record.rows
        seconds = self._run.teacher_seconds | {record.shard: 0.0}
        self._run = self._run.model_copy(update={"teacher_seconds": seconds})
        self._writer.record_run(self._run_id, self._run)


def run_record(corpus: Corpus) -> RunRecord:
    """Provenance of an import: hardware and libraries are unknown."""
    keys = corpus.keys()
    rows_of = [np.flatnonzero(corpus.source_of_row == at) for at in range(len(corpus.sources))]
    return RunRecord(
        started=now(),
        versions={name: library_versions()[name] for name in LIBRARIES},
        hardware={},
        corpora=tuple(
            CorpusRecord(
                name=corpus_name(source),
                rows=len(rows),
                unique_examples=len(first_occurrences(keys[rows])),
            )
            for source, rows in zip(corpus.sources, rows_of, strict=True)
        ),
    )
