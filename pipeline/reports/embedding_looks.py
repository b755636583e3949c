"""Embeddings of finished students for some texts, beside those of their teacher.

A sample of the training rows, of each its first text: the query of a pair. Each student embeds it
behind its own prompt of queries, by its tower of queries. Texts without labels are coloured by
where they lie in the teacher's space, so that one sees who stays whose neighbour.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import ArmadaError, CorpusError, JobError
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.distill.export import tower_folders
from ...stages.distill.saved_student import load_embedder
from ...stages.retrieval.search import neighbour_overlap
from ...stages.store.format.rows import Rows
from ..distill_job import DistillJob
from ..embedding.data import EmbeddingData, read_embedding_data
from ..embedding.joining import is_of_texts
from ..environment import choose_device
from ..findings.conditions import Condition
from ..findings.findings import Study
from ..terms import terms_of
from .drawing import main_components
from .looks import Looks, Points, StudentLook, UnknownColumn, chosen_students
from .tradeoff import embed

_NEAREST = 10


def look_at_embeddings(
    study: Study, colour_by: str | None, texts: int, device: str, cache: Path | None
) -> Looks | None:
    """Load one student of each kind, as many as `look` does; None if none was trained.

    Raises UnknownColumn, or another ArmadaError if corpus or cache are not where they were, or none
    of the students."""
    if study.distilled is None:
        return None
    reference = study.distilled.condition.first
    job = reference.readable_job(cache)
    data = read_embedding_data(job, terms_of(job))
    rows = _sample(len(data.joined.groups), texts)
    numbers = data.joined.groups.places[rows, 0]
    sample = data.joined.groups.texts.take(numbers)
    seen = tuple(segments for batch in sample.batches() for segments in batch)
    teacher = _teacher(data, numbers)
    students, missing = [], []
    for condition in chosen_students(study, study.distilled):
        try:
            students.append(_student(condition, seen, teacher, device))
        except (ArmadaError, OSError) as error:
            missing.append(f"{condition.name}: {error}")
    if not students:
        raise CorpusError(f"no student can be loaded: {missing[0]}")
    if colour_by is None:
        whose = students[0].points if teacher is None else teacher
        colours = main_components(whose).points[:, 0]
        title = f"{'student' if teacher is None else 'teacher'}'s component 1"
    else:
        colours, title = _colours(job, data.train.corpus.take(rows), colour_by), colour_by
    return Looks(
        reference=reference,
        texts=seen,
        teacher=teacher,
        students=tuple(students),
        colours=colours,
        colours_title=title,
        agreement="neighbours",
        missing=tuple(missing),
        teacher_value=_teacher_value(data),
    )


def _sample(count: int, most: int) -> Rows:
    """At most so many rows, sampled with a fixed seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _student(
    condition: Condition, texts: tuple[tuple[str, ...], ...], teacher: Points | None, device: str
) -> StudentLook:
    folder = tower_folders(condition.first.folder)[0]
    student = load_embedder(folder)
    if student is None:
        raise JobError(f"student {folder}: has no embeddings to plot")
    points = embed(student.to(choose_device(device)), texts)
    if student.of_tokens:  # a text is one point
        points = points.sum(axis=1) / points.any(axis=-1).sum(axis=1, keepdims=True)
    overlap = None if teacher is None else neighbour_overlap(points, teacher, _NEAREST)
    return StudentLook(condition, condition.first.seed, points, overlap, None)


def _teacher(data: EmbeddingData, numbers: Rows) -> Points | None:
    """The vectors [N, H] of texts, of the first source that has some."""
    for name, rows in data.rows_of_texts.items():
        found = data.sources[name].feature.gather(rows[numbers])
        return found.reshape(len(found), -1).astype(np.float32)
    return None


def _teacher_value(data: EmbeddingData) -> float | None:
    """The metric of the teacher's own vectors, where all validation texts are cached."""
    if data.validation is None or data.held_out is None:
        return None
    for name, source in data.sources.items():
        rows, of_rows = data.held_out.rows[name], name in data.held_out.targets
        if is_of_texts(source.spec) and not of_rows and (rows >= 0).all():
            vectors = source.feature.gather(rows)
            flat = vectors.reshape(len(vectors), -1).astype(np.float32)
            return data.task_figures(flat, data.validation.labels).get(data.metric)
    return None


def _colours(job: DistillJob, sample: Corpus, column: str) -> npt.NDArray[Any]:
    """The values of another column of the corpus for a sample of its rows: numbers with a decimal
    point as such, all else as names."""
    try:
        corpus = read_corpus(
            job.train,
            job.text_column,
            label_column=column,
            id_column=job.id_column,
            skip_bad_rows=job.skip_bad_rows,
            limit=job.limit,
            form=job.file_format,
        )
    except CorpusError as error:
        raise UnknownColumn(f"colour_by {column!r}: {error}") from error
    known, wanted = corpus.keys(), sample.keys()
    index = {key.tobytes(): row for row, key in enumerate(known)}
    rows = [index.get(key.tobytes()) for key in wanted]
    assert corpus.labels is not None
    values = corpus.labels.take(pa.array(rows, pa.int64()))
    if pa.types.is_floating(values.type):
        numbers: npt.NDArray[Any] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return numbers
    return np.array(["no label" if value is None else str(value) for value in values.to_pylist()])
