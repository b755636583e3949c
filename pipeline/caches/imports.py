"""`cache import`: features that were computed elsewhere, taken into a cache for what they are.

The teacher they get claims nothing but what was declared: kind `imported`, no weights, and as
settings the name, the layout they were found in, and the `declare`d keys. So imports are told apart
by what is said of them: another model, other options, another version need another name or other
declarations. Importing with the same declarations again adds the texts that are not there yet.

A run record says which corpora, when, with what; it costs no teacher time. Nobody knows whether the
texts were truncated, so none is marked. Memory: the corpus, and one shard.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...cache_schemas.errors import CorpusError, JobError, TeacherMismatchError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.layout import DEFAULT_ROWS_PER_SHARD, INNER_CHUNK_ROWS
from ...cache_schemas.manifest import TeacherManifest
from ...cache_schemas.teachers import TeacherSpec, differences
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.store.format.index import Rows
from ...stages.store.format.manifests import list_teachers
from ...stages.store.writing.admission import check_teacher, is_new
from ...stages.store.writing.writer import CacheWriter
from ..jobs import make
from ..messages import CountProgress, say_that_it_waits
from ..signals import telling_what_is_kept
from .import_job import ImportJob
from .import_npy import NpyPerExample, NpyRows
from .import_parquet import ParquetRows
from .import_shards import ImportedShards
from .import_source import FeatureSource, check_dtype

KIND = "imported"
SHOWN_PROBLEMS = 5
SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Imported:
    """What was taken in: rows of the corpus, of these imported now, there before, and rows that
    repeat the text of another and so have its features; places of the source that no row used."""

    fingerprint: str
    feature: str
    rows: int
    imported: int
    already_cached: int
    repeated: int
    unused: int
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "shards that were written are kept; the same command goes on")
def run_import(job: ImportJob, quiet: bool = False) -> Imported:
    """Take features into a cache; raises an InputError for what cannot be taken."""
    corpus = _read_corpus(job)
    source = _open(job, corpus)
    check_dtype(source.dtype, job.source, job.store_dtype)
    corpus, places = _with_features(job, corpus, source)
    manifest = _manifest(job, source)
    with CacheWriter(job.cache, manifest) as writer:
        waiting = say_that_it_waits(quiet)
        shards = ImportedShards(corpus, source, places, writer, job.skip_bad_rows, waiting)
        with CountProgress("import", "rows", shards.pending, quiet) as progress:
            shards.write(progress.advance)
    return Imported(
        fingerprint=manifest.fingerprint,
        feature=job.feature,
        rows=len(corpus),
        imported=shards.imported,
        already_cached=shards.unique - shards.pending,
        repeated=len(corpus) - shards.unique,
        unused=source.count - len(np.unique(places)),
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
    """The rows that have features, and the places of these."""
    missing = np.flatnonzero(source.place_of_row < 0)
    if len(missing) and (len(missing) == len(corpus) or not job.skip_bad_rows):
        first = "; ".join(corpus.where(row) for row in missing[:SHOWN_PROBLEMS].tolist())
        raise CorpusError(
            f"{len(missing)} of {len(corpus)} rows have no features in {job.source}; leave such "
            f"rows out with skip_bad_rows=true. First: {first}"
        )
    kept = corpus.without(missing, "no features") if len(missing) else corpus
    return kept, source.place_of_row[source.place_of_row >= 0]


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
    _refuse_same_name(job.cache, spec)
    rows = job.rows_per_shard or _rows_per_shard(spec.features[0].row_bytes)
    return TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=rows, spec=spec)


def _refuse_same_name(path: Path, spec: TeacherSpec) -> None:
    for known in [] if is_new(path) else list_teachers(path):
        if (known.spec.kind, known.spec.name) == (KIND, spec.name):
            raise TeacherMismatchError(
                f"cache {path} holds an import named {spec.name!r} ({known.fingerprint[:12]}) of "
                f"which other things were said: {'; '.join(differences(known.spec, spec))}; say "
                "the same of it, or give this one another name"
            )


def _rows_per_shard(row_bytes: int) -> int:
    fits = SHARD_BYTES // row_bytes // INNER_CHUNK_ROWS * INNER_CHUNK_ROWS
    return min(max(fits, INNER_CHUNK_ROWS), DEFAULT_ROWS_PER_SHARD)
