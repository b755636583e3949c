"""`predict`: predictions of a finished student of any task for each row of a corpus.

One row per example, in the order of the corpus: its id, or its row number in the file if there are
no ids, and

classification   class, as the labels have it; probabilities, in the order of the classes' numbers
multilabel       classes, those of a probability above 1/2; probabilities, likewise
regression       score; of several outputs scores
embedding        embedding
language         generated_text

In: texts, without labels. Out: a Parquet or JSON lines file, which gets its name only when it is
complete. The corpus is read once to check it, before anything is predicted, and then again, block
by block. Memory: the model and a block of rows, however many there are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import expit, softmax

from ..cache_schemas.errors import JobError
from ..stages.corpus.corpus import Corpus, CorpusStream, stream_corpus
from ..stages.corpus.reading import CorpusRequest
from ..stages.distill.saved_student import (
    HOLDS,
    SavedLanguageModel,
    SavedReader,
    SavedStudent,
    load_student,
)
from ..stages.distill.settings import DEFAULT_NEW_TOKENS
from ..stages.embeddings.prompts import PromptName
from ..stages.memory import out_of_memory_as
from ..stages.retrieval.late_interaction import BLOCK_TEXTS
from ..stages.store.format.rows import Rows
from .environment import choose_device
from .messages import CountProgress
from .outputs import check_new_file, new_file
from .signals import telling_what_is_kept
from .student_jobs import PredictJob, batch_too_large

BLOCK_ROWS = 4096

Examples = list[tuple[str, ...]]
Columns = dict[str, pa.Array]
Predictor = Callable[[Examples], tuple[Columns, int]]
"""Predictions for examples, and how many of these were truncated."""


@dataclass(frozen=True, slots=True)
class PredictReport:
    """Result of `predict`. `truncated` counts texts truncated at the student's max_length."""

    output: str
    kind: str
    rows: int
    truncated: int
    skipped: tuple[str, ...]


@telling_what_is_kept(lambda: "nothing was written; run the same command again")
def run_predict(job: PredictJob, quiet: bool = False) -> PredictReport:
    """Write a student's predictions for a corpus; raises an InputError for invalid input."""
    with out_of_memory_as(lambda: batch_too_large(job.batch_size)):
        return _predict(job, quiet)


def _predict(job: PredictJob, quiet: bool) -> PredictReport:
    check_new_file(job.output)
    student = _open(job)
    request = CorpusRequest(
        text_columns=_text_columns(job, student),
        label_column=None,
        id_column=job.id_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        prompts_only=True,
        form=job.file_format,
    )
    corpus = stream_corpus(job.corpus, request)
    chats = isinstance(student, SavedLanguageModel) and student.reads_chats
    corpus.head.require_format("chat" if chats else None, f"student {job.student}")
    if chats and not corpus.head.chats:
        raise JobError(f"student {job.student}: was trained on chats; name a column of turns")
    predictor = _predictor_of(job, student)
    truncated = 0
    with (
        new_file(job.output) as write,
        CountProgress("predict", "rows", corpus.rows, quiet) as progress,
    ):
        for block, rows in _blocks(corpus, student):
            columns, cut = predictor(block.examples(rows))
            write(_table(job, block, rows, columns))
            progress.advance(len(rows))
            truncated += cut
    return PredictReport(str(job.output), student.kind, corpus.rows, truncated, corpus.skipped)


def _blocks(corpus: CorpusStream, student: SavedStudent) -> Iterator[tuple[Corpus, Rows]]:
    of_tokens = isinstance(student, SavedReader) and student.of_tokens
    rows = BLOCK_TEXTS if of_tokens else BLOCK_ROWS
    for block in corpus.blocks():
        for start in range(0, len(block), rows):
            yield block, np.arange(start, min(start + rows, len(block)))


def _open(job: PredictJob) -> SavedStudent:
    folders = sorted(job.student.glob("seed-*/student"))
    if len(folders) > 1:
        seeds = ", ".join(folder.parent.name for folder in folders)
        raise JobError(f"student {job.student}: holds one student per seed; name one of {seeds}")
    student = load_student(folders[0] if folders else job.student)
    if job.prompt_name is not None and getattr(student.card, "embedding", None) is None:
        raise JobError(
            "prompt_name: is for students of task=embedding, which may read queries and passages "
            "behind prompts; leave it out"
        )
    if job.max_new_tokens is not None and student.kind != "language":
        raise JobError("max_new_tokens: is for language models; this student generates no text")
    return student.to(choose_device(job.device))


def _text_columns(job: PredictJob, student: SavedStudent) -> tuple[str, ...]:
    """The columns to read, raises JobError for too few or too many."""
    trained = student.card.text_columns
    responds = (
        isinstance(student, SavedLanguageModel)
        and student.card.recipe.has_prompt
        and not student.reads_chats
    )
    columns = job.text_column or trained
    if responds and len(columns) == len(trained):
        columns = columns[:-1]
    wanted = len(trained) - responds
    if len(columns) != wanted:
        raise JobError(
            f"text_column {list(columns)}: the student was trained on {len(trained)} segments "
            f"({', '.join(trained)})"
        )
    return columns


def _predictor_of(job: PredictJob, student: SavedStudent) -> Predictor:
    if isinstance(student, SavedLanguageModel):
        return partial(_continue, student, job.batch_size, job.max_new_tokens or DEFAULT_NEW_TOKENS)
    assert isinstance(student, SavedReader)
    assert isinstance(student, SavedReader)
    return partial(_read, student, job.batch_size, job.prompt_name)


def _continue(
    student: SavedLanguageModel, batch_size: int, most: int, examples: Examples
) -> tuple[Columns, int]:
    responses, cut = student.respond(examples, batch_size, most)
    return {"generated_text": pa.array(responses, pa.string())}, cut


def _read(
    student: SavedReader, batch_size: int, prompt_name: PromptName | None, examples: Examples
) -> tuple[Columns, int]:
    outputs, truncated = student.outputs(student.prompted(examples, prompt_name), batch_size)
    return _columns(student, outputs), truncated


def _columns(student: SavedStudent, outputs: npt.NDArray[np.float32]) -> Columns:
    """Columns of outputs [N, K]; of embeddings of tokens [N, T, K]."""
    if student.kind == "regression":
        one = outputs.shape[1] == 1
        return {"score": pa.array(outputs[:, 0])} if one else {"scores": _vectors(outputs)}
    if student.kind == "embedding":
        return {"embedding": _vectors(outputs) if outputs.ndim == 2 else _of_tokens(outputs)}
    if student.kind == "multilabel":
        probabilities = expit(outputs.astype(np.float64))
        return {
            "classes": _sets(probabilities > HOLDS, student.classes),
            "probabilities": _vectors(probabilities.astype(np.float32)),
        }
    chosen, names = outputs.argmax(1), student.classes
    classes = pa.array(chosen) if names is None else pa.array(names).take(pa.array(chosen))
    probabilities = softmax(outputs.astype(np.float64), axis=1).astype(np.float32)
    return {"class": classes, "probabilities": _vectors(probabilities)}


def _sets(holds: npt.NDArray[np.bool_], names: tuple[str, ...] | None) -> pa.Array:
    """Lists of the classes that hold, of flags [N, K]."""
    ends = np.cumsum(holds.sum(axis=1), dtype=np.int32)
    classes = pa.array(np.nonzero(holds)[1])
    values = classes if names is None else pa.array(names).take(classes)
    return pa.ListArray.from_arrays(pa.array(np.append(np.int32(0), ends)), values)


def _of_tokens(texts_NTK: npt.NDArray[np.float32]) -> pa.Array:
    """Lists of the vectors of tokens; zeros are none."""
    there_NT = texts_NTK.any(axis=-1)
    ends = np.append(0, np.cumsum(there_NT.sum(axis=1))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), _vectors(texts_NTK[there_NT]))


def _vectors(rows: npt.NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _table(job: PredictJob, corpus: Corpus, rows: Rows, columns: Columns) -> pa.Table:
    """Table of predictions, with ids or row numbers first."""
    if corpus.ids is None:
        name, ids = "row", pa.array(corpus.number_of_row[rows] + 1)
    else:
        name, ids = job.id_column or "id", corpus.ids.take(pa.array(rows))
    if name in columns:
        raise JobError(
            f"id_column {name!r}: clashes with a column of the predictions; rename it in the corpus"
        )
    return pa.table({name: ids, **columns})
