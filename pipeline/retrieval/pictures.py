"""`evaluate` of a student of captions beside cached embeddings of pictures: retrieval both ways,
and zero-shot classification (CLIP, arXiv 2103.00020).

captions    each different caption among all different pictures (`text_to_image_...`), and each
            picture among all captions (`image_to_text_...`); a caption of several rows has the
            pictures of all of them, and a picture its captions
zero-shot   accuracy; top_5_accuracy, of more than 5 classes; mean_per_class_recall. The class of a
            picture is the one whose embedding is nearest: the mean of the embeddings, of length 1,
            of its name in each of the templates

With a cache of another teacher's embeddings of the captions, or of the classes' texts (those of a
CLIP's own text tower), its figures are there as `teacher_...`. Searches are exact, block by block.
Shapes: N rows, T different captions, R different pictures, K classes, M templates, E numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import IntArray, KeyArray, example_key, keys_to_array
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.label_kinds import MISSING, LabelSpace, is_text, named_labels
from ...stages.corpus.labels import label_space, label_values
from ...stages.corpus.reading import PICTURES
from ...stages.retrieval.metrics import Judgements, depth_of, retrieval_metrics
from ...stages.retrieval.search import BLOCK_PASSAGES, Vectors, search
from ..answers import missing_keys, open_answers
from ..embedding.own_columns import targets_of_rows
from ..jobs import make
from ..objective_keys import CacheKeys
from ..sources import Columns
from ..student_jobs import EvaluateJob
from .evaluate import Embedder, require_one_segment
from .vectors import CachedVectors, of_length_1, open_vectors

CAPTION_METRICS = (
    *("success@1", "success@5", "success@10", "recall@1", "recall@5", "recall@10"),
    *("ndcg@10", "mrr@10"),
)
"""What is measured of captions and pictures where nothing else is named."""
_TOP = 5

Array = npt.NDArray[np.float32]


def evaluate_pictures(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of a student's captions, or classes, beside pictures. Raises JobError, CorpusError
    and MissingKeysError."""
    if job.label_column is None:
        return _evaluate_captions(job, folder)
    return _evaluate_zero_shot(job, folder)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The rows of a corpus whose pictures are cached, without these: `corpus` has captions, if any
    were named, and labels; `numbers` [N] tell which of the R different pictures a row has."""

    corpus: Corpus
    numbers: IntArray
    vectors: CachedVectors

    def require_width(self, width: int) -> None:
        """Raises JobError for embeddings of another width than the pictures'."""
        own = self.vectors[:1].shape[1]
        if own != width:
            raise JobError(
                f"feature {self.vectors.feature!r}: has {own} numbers, and the embeddings to "
                f"compare it with {width}; name the cache and feature that they were aligned to"
            )


def _read(job: EvaluateJob, folder: Path, captions: Sequence[str]) -> _Pictures:
    assert job.picture_column is not None
    columns = Columns.of(captions, [job.picture_column])
    corpus = read_corpus(
        job.corpus,
        columns.names,
        label_column=job.label_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        form=job.file_format,
    )
    corpus.require_format(None, f"student {folder}")
    pictures = corpus.of_columns(columns.sources[0])
    cache, feature = open_vectors(make(CacheKeys, job.cache_keys), job.feature, pictures)
    keys = pictures.keys()
    corpus = corpus.of_columns(columns.student)
    rows = cache.find(keys, feature)
    if (absent := np.flatnonzero(rows < 0)).size:
        if not job.skip_bad_rows or len(absent) == len(rows):
            raise missing_keys(cache, corpus, absent, [feature])
        keys = np.delete(keys, absent, axis=0)
        corpus = corpus.without(absent, "its picture is not in the cache")
    first, numbers = targets_of_rows(keys, np.zeros((len(keys), 1), np.int64))
    found = cache.find(keys[first], feature)
    vectors = CachedVectors(corpus.take(first), cache, feature, found, job.similarity == "cosine")
    return _Pictures(corpus, numbers[:, 0], vectors)


def _evaluate_captions(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    if len(job.text_column) != 1 or job.text_column[0].startswith(PICTURES):
        raise JobError(
            f"text_column {list(job.text_column)}: name the one column of the captions, beside "
            "picture_column; or name label_column, to classify the pictures"
        )
    read = _read(job, folder, job.text_column)
    encoded = read.corpus.segments[0].dictionary_encode()
    texts: list[str] = encoded.dictionary.to_pylist()
    own_N = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = np.unique(np.stack([own_N, read.numbers], axis=1), axis=0)
    teacher = _of_teacher(job, texts)
    embed = Embedder(job, folder)
    embed.student.require_one_vector("picture_column")
    require_one_segment(embed.student, folder)
    metrics = _both_ways(job, read, _embedded(embed, texts, job), pairs)
    if teacher is not None:
        beside = _both_ways(job, read, teacher, pairs)
        metrics |= {f"teacher_{name}": value for name, value in beside.items()}
    return {
        "examples": len(read.corpus),
        "captions": len(texts),
        "pictures": len(read.vectors),
        "truncated_examples": embed.truncated,
        "skipped_rows": list(read.corpus.skipped),
        "metrics": metrics,
        **embed.figures(),
    }


def _embedded(embed: Embedder, texts: Sequence[str], job: EvaluateJob) -> Array:
    """Embeddings [T, E] of texts, block by block."""
    starts = range(0, len(texts), BLOCK_PASSAGES)
    parts = [embed(texts[n : n + BLOCK_PASSAGES], job.prompt_name) for n in starts]
    return np.concatenate(parts)


def _both_ways(
    job: EvaluateJob, read: _Pictures, texts_TE: Array, pairs: IntArray
) -> dict[str, float]:
    """Metrics of texts among pictures, and of pictures among texts; pairs [P, 2] of a text and a
    picture belong together."""
    read.require_width(texts_TE.shape[1])
    named = job.retrieval_metrics if "retrieval_metrics" in job.model_fields_set else ()
    names = named or CAPTION_METRICS
    found = dict[str, float]()
    ways: list[tuple[str, Array, Vectors, int]] = [
        ("text_to_image", texts_TE, read.vectors, 0),
        ("image_to_text", read.vectors[:], texts_TE, 1),
    ]
    for way, queries_QE, passages, column in ways:
        depth = min(depth_of(names), len(passages))
        best = search(queries_QE, passages, depth, job.similarity)
        judged = Judgements(
            pairs[:, column], pairs[:, 1 - column], np.ones(len(pairs), np.int64), len(queries_QE)
        )
        measured = retrieval_metrics(best.rows_QK, judged, names)
        found |= {f"{way}_{name}": value for name, value in measured.items()}
    return found


def _of_teacher(job: EvaluateJob, texts: Sequence[str]) -> Array | None:
    """The embeddings [T, E] of texts in the cache of captions; None without one. Raises JobError
    for texts that it lacks."""
    if job.caption_cache is None:
        return None
    keys = {"cache": job.caption_cache, "teacher": job.caption_teacher}
    answers = open_answers(make(CacheKeys, keys))
    feature = answers.cache.features[0]
    wanted: KeyArray = keys_to_array(example_key((text,)) for text in texts)
    rows = answers.cache.find(wanted, feature)
    if (absent := np.flatnonzero(rows < 0)).size:
        raise JobError(
            f"caption_cache: lacks {len(absent)} of {len(texts)} texts, such as "
            f"{texts[int(absent[0])]!r:.80}; precompute them as texts of one column, or leave "
            "caption_cache out"
        )
    found = answers.cache[feature].gather(rows)
    return found.reshape(len(found), -1).astype(np.float32)


def _evaluate_zero_shot(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    read = _read(job, folder, ())
    classes = _classes(job, read.corpus)
    named = is_text(named_labels(read.corpus).type)
    space = LabelSpace(
        task="classification", num_labels=len(classes), names=classes if named else None
    )
    labels_N = label_values(read.corpus, space)
    known = np.flatnonzero(labels_N != MISSING)
    if not len(known):
        raise JobError(f"label_column {job.label_column!r}: no picture has a label")
    prompts = [text.replace("{}", name) for name in classes for text in job.templates]
    of_teacher = _of_teacher(job, prompts)
    embed = Embedder(job, folder)
    embed.student.require_one_vector("picture_column")
    require_one_segment(embed.student, folder)

    def measured(prompts_E: Array) -> dict[str, float]:
        read.require_width(prompts_E.shape[1])
        unit = of_length_1(prompts_E.reshape(len(classes), len(job.templates), -1))
        return _accuracies(read, of_length_1(unit.mean(axis=1)), labels_N, known, job)

    metrics = measured(_embedded(embed, prompts, job))
    if of_teacher is not None:
        metrics |= {f"teacher_{name}": value for name, value in measured(of_teacher).items()}
    return {
        "examples": len(known),
        "unlabelled_examples": len(labels_N) - len(known),
        "classes": len(classes),
        "truncated_examples": embed.truncated,
        "skipped_rows": list(read.corpus.skipped),
        "metrics": metrics,
        **embed.figures(),
    }


def _classes(job: EvaluateJob, corpus: Corpus) -> tuple[str, ...]:
    """The names of the classes, those of `class_names` or the labels' own. Raises JobError where
    there are none, or only one."""
    if job.class_names is not None:
        names: tuple[str, ...] | None = job.class_names
    else:
        names = label_space(corpus, "classification").names
    if names is None:
        raise JobError(
            f"label_column {job.label_column!r}: holds {named_labels(corpus).type}, numbers of "
            "classes without names; name the classes in class_names, in the order of the numbers"
        )
    if len(names) < 2:
        raise JobError(
            f"label_column {job.label_column!r}: there is one class, {names[0]!r}, and nothing to "
            "tell apart; name others in class_names"
        )
    return names


def _accuracies(
    read: _Pictures, classes_KE: Array, labels_N: IntArray, known: IntArray, job: EvaluateJob
) -> dict[str, float]:
    """Figures of the nearest classes of pictures with a label."""
    count = min(_TOP, len(classes_KE))
    blocks = [
        search(read.vectors[start : start + BLOCK_PASSAGES], classes_KE, count, job.similarity)
        for start in range(0, len(read.vectors), BLOCK_PASSAGES)
    ]
    best_RK = np.concatenate([block.rows_QK for block in blocks])
    right_NK = best_RK[read.numbers[known]] == labels_N[known, None]
    first_N, own_N = right_NK[:, 0], labels_N[known]
    found = {"accuracy": float(first_N.mean())}
    if len(classes_KE) > _TOP:
        found[f"top_{_TOP}_accuracy"] = float(right_NK.any(axis=1).mean())
    recalls = [first_N[own_N == label].mean() for label in np.unique(own_N)]
    return found | {"mean_per_class_recall": float(np.mean(recalls))}
