"""`export`: a finished student that embeds as an ONNX model, in the folder `onnx` of its own.

    onnx/model.onnx          where sentence-transformers, Optimum and others look for it
    onnx/model_int8.onnx     with quantize=int8
    onnx/checked.json        what each gives beside the student itself, on which texts

Each file is read again by ONNX Runtime and compared with the student, on texts of a corpus or,
without one, on words of its vocabulary, from one to as many as it reads. A model of float32 that
differs is not kept. All appears at once, or nothing.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from ..cache_schemas.errors import JobError, RunError
from ..cache_schemas.extras import require_extra
from ..cache_schemas.locations import Source
from ..stages.corpus.corpus import Corpus, corpus_name, read_corpus
from ..stages.distill.export import CARD, StudentCard, read_card, student_folder
from ..stages.distill.label_metrics import correlations
from ..stages.distill.saved_student import SavedReader, Text, load_embedder
from ..stages.retrieval.metrics import pair_scores
from .jobs import Names, TextFormatKeys
from .messages import LOGGER
from .outputs import check_new_folder, new_folder

ONNX, WHOLE, INT8, CHECKED = "onnx", "model.onnx", "model_int8.onnx", "checked.json"
_MOST_DIFFERENCE = 1e-3
"""Largest difference of a model that is kept, by the largest number of an embedding; rounding gives
a thousandth of it."""
_MOST_TEXTS = 1024
_WORDS = (1, 2, 5, 16, 64, 256)

Floats = npt.NDArray[np.float32]


class StudentExportJob(TextFormatKeys):
    """Export of a student."""

    student: Path = Field(description="folder that `distill` wrote")
    quantize: Literal["int8"] | None = Field(
        default=None, description="int8: write a second model, whose weights are of one byte"
    )
    corpus: tuple[Source, ...] = Field(
        default=(),
        description="files or folders of texts to compare the models on; default: words of the "
        "vocabulary",
    )
    text_column: Names = Field(
        default=(), max_length=2, description="the column of texts, or the two of pairs"
    )
    label_column: str | None = Field(
        default=None, description="column of scores of pairs, for spearman of each model"
    )
    skip_bad_rows: bool = Field(default=False, description="skip invalid rows and list them")
    batch_size: int = Field(default=32, ge=1, description="texts per batch of the comparison")

    @model_validator(mode="after")
    def _has_pairs_for_scores(self) -> "StudentExportJob":
        if bool(self.corpus) != bool(self.text_column):
            absent = "text_column" if self.corpus else "corpus"
            raise ValueError(f"job key {absent!r} is missing; a corpus needs both")
        if self.label_column is not None and len(self.text_column) != 2:
            raise ValueError("label_column: holds the scores of pairs; name two text columns")
        return self


@dataclass(frozen=True, slots=True)
class Compared:
    """A written model beside the student: its bytes, the largest difference of any number, cosines
    of embeddings, and spearman of pairs with scores."""

    bytes: int
    largest_difference: float
    cosine_mean: float
    cosine_least: float
    spearman: float | None


@dataclass(frozen=True, slots=True)
class StudentExport:
    """Result of an `export`. `spearman`: that of the student itself."""

    output: str
    texts: int
    compared_on: str
    spearman: float | None
    models: dict[str, Compared]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Material:
    """Texts to compare on: singles, or the sides of pairs one after another, with their scores."""

    texts: list[Text]
    scores_N: npt.NDArray[np.float64] | None
    about: str
    skipped: tuple[str, ...] = ()

    def spearman(self, vectors_NE: Floats) -> float | None:
        if self.scores_N is None:
            return None
        one, other = np.split(vectors_NE, 2)
        return correlations(pair_scores(one, other), self.scores_N)["spearman"]


def run_student_export(job: StudentExportJob) -> StudentExport:
    """Write a student's ONNX models. Raises an InputError for invalid input, RunError for a model
    that does not give the student's embeddings."""
    packages = ("onnx", "onnxscript", "onnxruntime")
    require_extra("an ONNX model", "onnx", *packages)
    folder = _folder(job)
    check_new_folder(folder / ONNX)
    corpus = _corpus(job)
    _require_whole(folder)
    reader = load_embedder(folder)
    if reader is None:
        raise JobError(
            f"student {folder}: predicts labels and has no embeddings; Optimum writes ONNX models "
            "of classifiers"
        )
    reader.require_one_vector("an ONNX model")
    reader = reader.float()
    material = _words(reader) if corpus is None else _of_corpus(corpus, reader)
    own, _ = reader.outputs(material.texts, job.batch_size)
    with new_folder(folder / ONNX) as partial:
        models = _write(job, folder, partial, reader, material, own)
        found = StudentExport(
            output=str(folder / ONNX),
            texts=len(material.texts),
            compared_on=material.about,
            spearman=material.spearman(own),
            models=models,
            skipped=material.skipped,
        )
        document = asdict(found) | {"versions": _versions(*packages)}
        del document["output"], document["skipped"]
        (partial / CHECKED).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return found


def _folder(job: StudentExportJob) -> Path:
    folders = sorted(job.student.glob("seed-*/student"))
    if len(folders) > 1:
        seeds = ", ".join(folder.parent.name for folder in folders)
        raise JobError(f"student {job.student}: holds one student per seed; name one of {seeds}")
    return student_folder(folders[0] if folders else job.student)


def _require_whole(folder: Path) -> None:
    if read_card(folder / CARD, StudentCard).base is not None:
        raise JobError(
            f"student {folder}: has adapters beside its base model, and an ONNX model holds both; "
            "merge them by peft's merge_and_unload, or train without lora_rank"
        )


def _corpus(job: StudentExportJob) -> Corpus | None:
    if not job.corpus:
        return None
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )
    corpus.require_format(None, "export")
    if corpus.labels is None:
        return corpus
    if not (pa.types.is_integer(corpus.labels.type) or pa.types.is_floating(corpus.labels.type)):
        raise JobError(
            f"label_column {job.label_column!r}: holds {corpus.labels.type}, and pairs need a score"
        )
    known = np.flatnonzero(np.isfinite(_scores(corpus)))
    if len(known) < 2:
        raise JobError(f"label_column {job.label_column!r}: {len(known)} pairs have a score")
    return corpus.take(known)


def _scores(corpus: Corpus) -> npt.NDArray[np.float64]:
    assert corpus.labels is not None
    found: npt.NDArray[np.float64] = corpus.labels.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def _of_corpus(corpus: Corpus, reader: SavedReader) -> _Material:
    """Texts of a corpus, evenly spaced where there are many; of pairs with scores, all."""
    rows = np.arange(len(corpus))
    if corpus.labels is None:
        spaced = np.linspace(0, len(corpus) - 1, min(len(corpus), _MOST_TEXTS)).round()
        rows = spaced.astype(np.int64)
    sides = list(zip(*corpus.examples(rows), strict=True))
    names: list[Any] = ["query", "document"] if len(sides) == 2 else ["document"]
    texts = [
        text
        for side, name in zip(sides, names, strict=True)
        for text in reader.prompted(side, name)
    ]
    scores = None if corpus.labels is None else _scores(corpus)
    about = ", ".join(map(corpus_name, corpus.sources))
    return _Material(texts, scores, about, corpus.skipped)


def _words(reader: SavedReader) -> _Material:
    """Texts of words of the vocabulary, drawn by a fixed seed: a few of each number of words."""
    tokenizer = reader.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = np.array(sorted(at for at in tokenizer.get_vocab().values() if at not in special))
    drawn = np.random.default_rng(0)
    most = max(1, min(reader.card.max_length, _WORDS[-1]))
    texts = [
        tokenizer.decode(drawn.choice(ids, count).tolist())
        for count in sorted({min(each, most) for each in _WORDS})
        for _ in range(4)
    ]
    return _Material(list(texts), None, "words of the vocabulary")


def _write(
    job: StudentExportJob,
    folder: Path,
    partial: Path,
    reader: SavedReader,
    material: _Material,
    own_NE: Floats,
) -> dict[str, Compared]:
    from ..stages.distill.onnx_model import embed_by_onnx, write_int8, write_onnx

    def compared(file: Path) -> Compared:
        found_NE = embed_by_onnx(file, reader, material.texts, job.batch_size)
        cosines_N = pair_scores(found_NE, own_NE)
        zero_N = ~own_NE.any(axis=1) & ~found_NE.any(axis=1)
        cosines_N = np.where(zero_N, 1.0, cosines_N)
        return Compared(
            bytes=sum(each.stat().st_size for each in partial.glob(f"{file.name}*")),
            largest_difference=float(np.abs(found_NE - own_NE).max()),
            cosine_mean=float(cosines_N.mean()),
            cosine_least=float(cosines_N.min()),
            spearman=material.spearman(found_NE),
        )

    LOGGER.info("export: PyTorch's exporter takes its time, half a minute or more")
    write_onnx(reader, folder, partial / WHOLE)
    models = {WHOLE: compared(partial / WHOLE)}
    largest = float(np.abs(own_NE).max(initial=0.0))
    if not models[WHOLE].largest_difference <= _MOST_DIFFERENCE * largest:
        raise RunError(
            f"student {folder}: its ONNX model gives other embeddings than itself, with a largest "
            f"difference of {models[WHOLE].largest_difference:.2g}; nothing was written"
        )
    if job.quantize is not None:
        write_int8(partial / WHOLE, partial / INT8)
        models[INT8] = compared(partial / INT8)
    return models


def _versions(*packages: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", *packages)}
