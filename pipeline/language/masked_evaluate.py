"""`evaluate` of a masked language model: how well it predicts the masked tokens of a corpus."""

from pathlib import Path
from typing import Any

from ...cache_schemas.errors import JobError, StudentSourceError
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.labels import NO_LABELS
from ...stages.distill.language.evaluation import MaskedTokenSums
from ...stages.distill.language.export import load_masked_folder
from ...stages.distill.language.student import MaskedStudent
from ...stages.distill.language.teachers import Answering
from ...stages.distill.objectives.options import SOURCE
from ...stages.language.masking import Masker
from ...stages.store.format.rows import Rows
from ..answers import open_answers
from ..environment import choose_device
from ..jobs import make
from ..objective_keys import CacheKeys
from ..sources import Source
from ..student_jobs import EvaluateJob
from .evaluate import compared_source, distributions, predicted
from .masked_data import MaskedEncoding, compared_masks


def evaluate_masked(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of a finished student on a corpus, each text under its first mask."""
    if job.max_new_tokens is not None:
        raise JobError("max_new_tokens: a masked language model generates no text; leave it out")
    if job.rejected_column is not None:
        raise JobError("rejected_column: a masked language model has no responses; leave it out")
    model, tokenizer, card = load_masked_folder(folder)
    columns = job.text_column or card.text_columns
    corpus = read_corpus(
        job.corpus, columns, skip_bad_rows=job.skip_bad_rows, limit=job.limit, form=job.file_format
    )
    corpus.require_format(None, f"student {job.student}")
    masker = Masker.of(tokenizer, card.masks, StudentSourceError, f"student {folder}")
    encoding = MaskedEncoding(tokenizer, masker, card.max_length)
    texts = encoding.texts(corpus)
    if not texts.predicted.any():
        raise JobError(f"corpus {job.corpus[0]}: has no token to mask")
    answers: dict[str, Answering] = {}
    compared = {}
    if job.cache is not None:
        source, rows = _teacher(job, corpus)
        answers[SOURCE] = compared_masks(source, rows, texts, corpus, encoding)
        compared = {"compared_examples": int((rows >= 0).sum())}
    student = MaskedStudent(model.to(choose_device(job.device)), NO_LABELS, dropout=0.0)
    tokens = encoding.rows(texts, answers)
    metrics = predicted(student, tokens, job.batch_size, MaskedTokenSums())
    return {
        "examples": len(texts),
        "masked_tokens": int(texts.predicted.sum()),
        **compared,
        "truncated_examples": int(texts.truncated.sum()),
        "skipped_rows": list(corpus.skipped),
        "metrics": metrics,
    }


def _teacher(job: EvaluateJob, corpus: Corpus) -> tuple[Source, Rows]:
    """The teacher to compare with, and its cache rows, -1 for texts without. Raises JobError for
    one that has no distributions, and MissingKeysError where none of the texts is cached."""
    answers = open_answers(make(CacheKeys, job.cache_keys))
    known = distributions(answers.cache)
    feature = job.feature or (known[0] if len(known) == 1 else None)
    if feature not in known:
        raise JobError(
            f"feature: {'is missing' if feature is None else repr(feature)}; to compare a masked "
            f"language model with, the teacher has {', '.join(known) or 'nothing'}"
        )
    assert feature is not None
    return compared_source(answers, corpus, feature)
