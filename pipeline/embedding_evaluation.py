"""How near a student's embeddings are to its teacher's, on a corpus that the cache knows."""

from pathlib import Path
from typing import Any

import numpy as np

from ..cache_schemas.errors import JobError
from ..stages.distill.saved_student import load_embedder
from .answers import open_answers
from .distill_job import CorpusKeys
from .environment import choose_device
from .evaluate_job import EvaluateJob
from .jobs import make
from .missing import missing_keys
from .objective_keys import CacheKeys
from .student_data import read_labelled


def evaluate_embeddings(job: EvaluateJob, keys: CorpusKeys, folder: Path) -> dict[str, Any]:
    """`cosine`, the mean over examples, and `mse`, over all numbers; the teacher's embeddings come
    from the job's cache. Raises JobError for a feature of another width, and for a student that
    learned none."""
    student = load_embedder(folder)
    if student is None:
        raise JobError(
            f"cache: student {folder} predicts labels, and has no embeddings to compare "
            "(modules.json, which objective=feature writes); leave cache, teacher and feature out"
        )
    student = student.to(choose_device(job.device))
    labelled = read_labelled(keys, job.corpus, student.card.space)
    named = {"cache": job.cache, "teacher": job.teacher, "feature": job.feature}
    answers = open_answers(make(CacheKeys, named))
    feature = job.feature or answers.cache.features[0]
    cache = answers.of(feature, [labelled.corpus]).cache
    rows = cache.find(labelled.corpus.keys(), feature)
    missing = np.flatnonzero(rows < 0)
    if len(missing) and not (job.skip_bad_rows and len(missing) < len(rows)):
        raise missing_keys(cache, labelled.corpus, missing, [feature])
    labelled, rows = labelled.without(missing, "not in the cache"), rows[rows >= 0]
    wanted = cache[feature].gather(rows).astype(np.float64)
    wanted = wanted.reshape(len(wanted), -1)
    texts = [segments for batch in labelled.corpus.batches() for segments in batch]
    said = student.predict(texts, job.batch_size)
    found = np.stack([each["embedding"] for each in said]).astype(np.float64)
    if found.shape != wanted.shape:
        raise JobError(
            f"feature {feature!r}: has {wanted.shape[1]} numbers, and the student's embeddings "
            f"{found.shape[1]}; name the feature and the teacher that it learned from"
        )
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = (found * wanted).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    dataset = labelled.dataset(student.tokenizer, student.card.max_length, {})
    return {
        "examples": len(texts),
        "truncated_examples": dataset.truncated,
        "skipped_rows": list(labelled.corpus.skipped),
        "metrics": {"cosine": float(cosine.mean()), "mse": float(((found - wanted) ** 2).mean())},
    }
