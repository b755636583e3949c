"""`evaluate` of a language model: how well it predicts a corpus, and its own responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cache_schemas.errors import JobError
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.labels import MISSING, NO_LABELS
from ...stages.distill.batches import DistillDataset
from ...stages.distill.language.batches import pack
from ...stages.distill.language.evaluation import TokenSums, respond, response_metrics
from ...stages.distill.language.export import LanguageCard, load_language_folder
from ...stages.distill.language.student import LanguageStudent
from ...stages.distill.language.trainer import LanguageModel
from ...stages.distill.objectives.base import Sizes
from ...stages.distill.objectives.options import ObjectiveOptions
from ...stages.distill.objectives.undistilled import UndistilledObjective
from ...stages.language.recipe import response_of
from ...stages.language.tokens import TokenTexts, encode_texts, end_ids
from ..environment import choose_device
from ..student_jobs import EvaluateJob


def evaluate_language(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of a finished student on a corpus."""
    model, tokenizer, card = load_language_folder(folder)
    corpus = _corpus(job, card)
    corpus.require_format(card.recipe.text_format, f"student {job.student}")
    texts = encode_texts(tokenizer, card.recipe, _examples(corpus), card.max_length)
    if not texts.predicted.sum():
        raise JobError(f"corpus {job.corpus[0]}: has nothing to predict within {card.max_length}")
    student = LanguageStudent(model.to(choose_device(job.device)), NO_LABELS, dropout=0.0)
    metrics = _predicted(student, texts, int(tokenizer.pad_token_id), job.batch_size)
    if job.max_new_tokens is not None:
        metrics |= _responded(job, student, tokenizer, card, corpus, texts)
    return {
        "examples": len(texts),
        "truncated_examples": int(texts.truncated.sum()),
        "skipped_rows": list(corpus.skipped),
        "metrics": metrics,
    }


def _corpus(job: EvaluateJob, card: LanguageCard) -> Corpus:
    columns = job.text_column or card.text_columns
    return read_corpus(
        job.corpus, columns, skip_bad_rows=job.skip_bad_rows, limit=job.limit, form=job.file_format
    )


def _examples(corpus: Corpus) -> list[tuple[str, ...]]:
    return [segments for batch in corpus.batches() for segments in batch]


def _predicted(
    student: LanguageStudent, texts: TokenTexts, pad_id: int, batch_size: int
) -> dict[str, float]:
    """Perplexity and related metrics, over all predicted tokens."""
    sizes = Sizes(student.dim, 1, regression=False, feature_shape=None)
    model = LanguageModel(student, UndistilledObjective(ObjectiveOptions(), sizes)).eval()
    rows, sums = pack(texts, "none", int(texts.lengths.max()), pad_id), TokenSums()
    dataset = DistillDataset(rows, np.full(len(rows), MISSING), {})
    device = next(student.parameters()).device
    for start in range(0, len(dataset), batch_size):
        indices = list(range(start, min(start + batch_size, len(dataset))))
        batch = dataset.__getitems__(indices)
        tensors = {n: each for n, each in batch.items() if isinstance(each, torch.Tensor)}
        moved = batch | {name: tensor.to(device) for name, tensor in tensors.items()}
        sums.add(model, moved, rows)
    return sums.metrics()


def _responded(
    job: EvaluateJob,
    student: LanguageStudent,
    tokenizer: Any,
    card: LanguageCard,
    corpus: Corpus,
    texts: TokenTexts,
) -> dict[str, float]:
    """Metrics of the student's generated responses; for a truncated prompt, the response is
    empty."""
    if not card.recipe.has_prompt:
        raise JobError("max_new_tokens: the student's texts have no prompt to respond to")
    whole = np.flatnonzero(texts.lengths >= texts.prompts)
    prompts: list[Sequence[int]] = [
        texts.of(text)[: texts.prompts[text]].tolist() for text in whole.tolist()
    ]
    assert job.max_new_tokens is not None
    ends = end_ids(tokenizer, card.recipe, student.causal.generation_config)
    responses = respond(
        student.causal, tokenizer, prompts, job.max_new_tokens, job.batch_size, ends
    )
    of_texts = [""] * len(texts)
    for text, response in zip(whole.tolist(), responses, strict=True):
        of_texts[text] = response
    references = [response_of(segments) for segments in _examples(corpus)]
    return response_metrics(of_texts, references)
