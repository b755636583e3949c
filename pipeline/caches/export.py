"""`cache export`: a corpus with its features, row for row, for other tools.

parquet     part-00000-of-00001.parquet, ...: columns of the corpus, key, features
datasets    the same under data/, with a README.md: `datasets.load_dataset(FOLDER)` opens it
npy         features_<name>.npy [N, *shape], keys.npy [N, 16], ids.txt if the corpus has ids

With `precision`, vectors are exported as codes of fewer bytes (`stages/retrieval/quantization.py`),
and with int8 and uint8 ranges_<name>.npy [2, H] is beside them, for later vectors and queries.

The columns of a feature are described in `export_rows.py`; npy cannot hold a feature along an axis.

Row i of the output is row i of the corpus, without the rows skipped by skip_bad_rows, which are
listed. Memory: the corpus, and one batch of features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from ...cache_schemas.errors import JobError
from ...cache_schemas.features import (
    GENERATED_IDS,
    GENERATED_LENGTHS,
    GENERATED_TEXT,
    GENERATED_TEXT_LENGTHS,
)
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.reading import column_name
from ...stages.language.tokens import tokenizer_digest
from ...stages.pretrained import read_tokenizer
from ...stages.retrieval.quantization import (
    Precision,
    Quantizer,
    cut,
    needs_ranges,
    ranges_of,
)
from ...stages.sources import resolve
from ...stages.store.format.rows import Rows
from ...stages.store.reading.feature_array import FeatureArray
from ...stages.store.reading.reader import Cache, open_cache
from ..answers import missing_keys
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys
from ..messages import CountProgress, warn
from ..outputs import check_new_folder, new_folder
from ..signals import telling_what_is_kept
from .export_formats import WRITERS
from .export_rows import (
    BATCH_ROWS,
    AlongAxis,
    ByteText,
    ExportRows,
    FeatureColumns,
    OneRow,
    column_names,
    corpus_columns,
)

_TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


class ExportJob(TextFormatKeys):
    """Keys of an `export`."""

    cache: LocalFolder = Field(description="folder of the cache")
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    corpus: Corpora = Field(min_length=1, description="files or folders of texts")
    text_column: Names = Field(
        min_length=1, description="columns that hold the text segments, in order"
    )
    label_column: str | None = Field(default=None, description="column of labels to keep")
    id_column: str | Literal[False] | None = Field(
        default=None, description="column of unique ids; default `id` if there is one; false: none"
    )
    feature: Names = Field(default=(), description="features; default all of them")
    output: Path = Field(description="new folder to write to")
    tokenizer: str | None = Field(
        default=None,
        description="folder or hub id of the teacher's tokenizer, which decodes what it generated; "
        "default the hub id that the teacher came from",
    )
    format: Literal["parquet", "datasets", "npy"] = Field(description="parquet, datasets or npy")
    precision: Precision = Field(
        default="float32",
        description="codes that vectors are exported as: int8, uint8, binary or ubinary; float32: "
        "the numbers as they are cached",
    )
    truncate_dim: int | None = Field(
        default=None, ge=1, description="cut vectors to so many of their first numbers"
    )
    ranges: Path | None = Field(
        default=None,
        description="ranges_<name>.npy of an earlier export, for codes of int8 and uint8 that are "
        "comparable with it; default: the ranges of the exported rows",
    )
    skip_bad_rows: bool = Field(
        default=False, description="leave bad rows, and rows that are not cached, out and list them"
    )

    @property
    def quantizes(self) -> bool:
        """Whether vectors are exported otherwise than they are cached."""
        return self.precision != "float32" or self.truncate_dim is not None

    @model_validator(mode="after")
    def _has_ranges_for_codes(self) -> "ExportJob":
        if self.ranges is not None and not needs_ranges(self.precision):
            raise ValueError("ranges: are those of int8 and uint8; name such a precision")
        return self


@dataclass(frozen=True, slots=True)
class Exported:
    """Result of an export."""

    output: str
    teacher: str
    features: tuple[str, ...]
    left_out: tuple[str, ...]
    rows: int
    files: int
    bytes: int
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "nothing was written; run the same command again")
def run_export(job: ExportJob, quiet: bool = False) -> Exported:
    """Write the features of a corpus to a new folder; raises an InputError for invalid input."""
    check_new_folder(job.output)
    if job.format == "npy" and job.label_column is not None:
        raise JobError("job key 'label_column': format npy holds no labels; use format parquet")
    cache = open_cache(job.cache, job.teacher)
    names, left_out = _features(job, cache)
    if job.quantizes:
        _require_vectors(job, cache, names)
    features = [_columns(job, cache, name) for name in names]
    corpus, cache_rows = _join(job, cache, names)
    if job.quantizes:
        features = [_quantized(job, cache[name], cache_rows) for name in names]
    columns = corpus_columns(
        corpus,
        list(map(column_name, job.text_column)),
        job.label_column,
        job.id_column or None,
        column_names(features),
    )
    teacher = cache.teacher.fingerprint
    rows = ExportRows(teacher, columns, corpus.ids, corpus.keys(), cache_rows, features)
    with new_folder(job.output) as folder:
        with CountProgress("export", "rows", len(rows), quiet) as progress:
            WRITERS[job.format](folder, rows, progress.advance)
        for each in features:
            quantizer = each.quantizer if isinstance(each, OneRow) else None
            if quantizer is not None and quantizer.ranges_2H is not None:
                file = folder / f"ranges_{each.spec.name}.npy"
                np.save(file, quantizer.ranges_2H, allow_pickle=False)
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    return Exported(
        str(job.output), teacher, names, left_out, len(rows), len(files), size, corpus.skipped
    )


def _features(job: ExportJob, cache: Cache) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The chosen features, or all that the format supports; and those left out."""
    along = [name for name in cache.features if cache.feature_spec(name).axis is not None]
    held = [name for name in cache.features if job.format != "npy" or name not in along]
    names = tuple(dict.fromkeys(job.feature)) or tuple(held)
    unheld = [name for name in names if name in along and name not in held]
    if unheld or not names:
        raise JobError(
            f"format npy: {', '.join(unheld or along)} have several entries for each example; use "
            "format parquet"
        )
    left_out = () if job.feature else tuple(n for n in cache.features if n not in held)
    if left_out:
        warn(
            f"{', '.join(left_out)}: not exported: several entries for each example; format "
            "parquet holds them"
        )
    return names, left_out


def _require_vectors(job: ExportJob, cache: Cache, names: Sequence[str]) -> None:
    for name in names:
        spec = cache.feature_spec(name)
        if spec.axis is not None or len(spec.shape) != 1 or spec.whole or spec.coding:
            raise JobError(
                f"precision, truncate_dim: are of vectors, and feature {name!r} is {spec.shown}; "
                "name features that are vectors with --feature"
            )
        if job.truncate_dim is not None and job.truncate_dim >= spec.shape[0]:
            raise JobError(
                f"truncate_dim {job.truncate_dim}: feature {name!r} has {spec.shape[0]} numbers; "
                "choose fewer"
            )
    if job.ranges is not None and len(names) > 1:
        raise JobError(f"ranges: are those of one feature; name one of {', '.join(names)}")


def _quantized(job: ExportJob, feature: FeatureArray, rows: Rows) -> OneRow:
    """The codes of a feature of vectors, by the ranges of these rows of the cache."""
    width = job.truncate_dim or feature.spec.shape[0]
    ranges_2H = None
    if job.ranges is not None:
        ranges_2H = _read_ranges(job.ranges)
    elif needs_ranges(job.precision):
        distinct = np.unique(rows)
        for start in range(0, len(distinct), BATCH_ROWS):
            found_BH = feature.gather(distinct[start : start + BATCH_ROWS])
            ranges_2H = ranges_of(cut(found_BH, width), ranges_2H)
    return OneRow(feature, Quantizer(job.precision, width, ranges_2H))


def _read_ranges(file: Path) -> npt.NDArray[np.float32]:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise JobError(f"ranges {file}: is no .npy file of numbers: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise JobError(f"ranges {file}: holds no array of floats [2, H]")
    return found.astype(np.float32)


def _columns(job: ExportJob, cache: Cache, name: str) -> FeatureColumns:
    if cache.feature_spec(name).axis is None:
        return OneRow(cache[name])
    if name == GENERATED_TEXT:
        several = GENERATED_TEXT_LENGTHS in cache.features
        lengths = cache[GENERATED_TEXT_LENGTHS] if several else None
        return ByteText(cache.ragged(name), lengths)
    decodes = name == GENERATED_IDS and GENERATED_TEXT not in cache.features
    tokenizer = _tokenizer(job, cache.holder(name).teacher.spec) if decodes else None
    several = name == GENERATED_IDS and GENERATED_LENGTHS in cache.features
    return AlongAxis(cache.ragged(name), tokenizer, cache[GENERATED_LENGTHS] if several else None)


def _tokenizer(job: ExportJob, teacher: TeacherSpec) -> Any:
    """The tokenizer of a teacher's generated ids; None if it is not available. Raises JobError for
    a named one that is not the teacher's."""
    try:
        return tokenizer_of(job.tokenizer, teacher)
    except JobError as error:
        if job.tokenizer is not None:
            raise
        warn(f"{GENERATED_IDS}: exported as token ids without text: {error}; --tokenizer names it")
        return None


def tokenizer_of(named: str | None, teacher: TeacherSpec) -> Any:
    """The tokenizer of a teacher: as named, or from the teacher's hub id. Raises JobError if it is
    not available, or another than the teacher's."""
    name, _, revision = teacher.name.partition("@")
    source = named or (name if "/" in name else None)
    if source is None:
        raise JobError("the cache records no path to the model folder")
    folder = resolve(source, revision or None, JobError, _TOKENIZER_FILES)
    tokenizer = read_tokenizer(folder, JobError)
    if tokenizer_digest(tokenizer) != teacher.settings.get("tokenizer"):
        raise JobError(f"source {source}: its tokenizer is not that of teacher {teacher.name}")
    return tokenizer


def _join(job: ExportJob, cache: Cache, features: Sequence[str]) -> tuple[Corpus, Rows]:
    """The corpus, and the cache row of each of its rows."""
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )
    rows = cache.find(corpus.keys(), *features)
    missing = np.flatnonzero(rows < 0)
    if len(missing) and (len(missing) == len(rows) or not job.skip_bad_rows):
        raise missing_keys(cache, corpus, missing, features)
    kept = corpus.without(missing, "not in the cache") if len(missing) else corpus
    return kept, rows[rows >= 0]
