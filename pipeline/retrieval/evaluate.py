"""`evaluate` of a student that embeds: search in a BEIR folder, pairs of texts, or the teacher's
embeddings in a cache.

beir     metrics of retrieval (`stages/retrieval/metrics.py`), exact, over all passages
pairs    of scores: spearman, pearson; of 0 and 1: average_precision, and the best f1 with its
         threshold; each of the similarity of a pair; with a cache, the teacher's own beside them
cache    cosine, mse; cka and neighbour_overlap@10 of the two spaces

With `precision` or `truncate_dim`, `by_precision` has the metrics of a search or of pairs for
vectors in fewer bytes (`precisions.py`), and their differences to those of whole embeddings.

Each result has `texts_per_second` of this machine, tokens included, and `model_bytes`, the bytes of
the student's weights. Passages are embedded and searched block by block: memory holds their texts,
the queries' embeddings and a block.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import JobError
from ...cache_schemas.keys import IntArray
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.distill.export import tower_folders
from ...stages.distill.label_metrics import correlations
from ...stages.distill.measures import cosines, linear_cka
from ...stages.distill.saved_student import SavedReader, Text, load_embedder
from ...stages.embeddings.prompts import PromptName
from ...stages.retrieval.beir import read_beir
from ...stages.retrieval.late_interaction import BLOCK_TEXTS, BestByTokens, pairs_of_tokens
from ...stages.retrieval.metrics import (
    average_precision,
    best_f1,
    depth_of,
    pair_scores,
    retrieval_metrics,
)
from ...stages.retrieval.search import BLOCK_PASSAGES, BestPassages, Pairs, neighbour_overlap
from ..answers import missing_keys, open_answers
from ..distill_job import CorpusKeys
from ..environment import choose_device
from ..jobs import make
from ..labelled_corpus import read_labelled
from ..objective_keys import CacheKeys
from ..student_jobs import EvaluateJob
from .precisions import (
    KeptSearch,
    PairScores,
    by_precision,
    calibration_rows,
    needs_calibration,
    ways_to_keep,
)
from .vectors import CachedVectors, of_length_1, open_vectors

NEIGHBOURS = 10
CKA_TEXTS = 1024
"""The most texts that CKA compares, evenly spaced."""

Array = npt.NDArray[Any]


class Embedder:
    """A finished student on its device, or one for queries and one for passages, which counts its
    texts and seconds."""

    def __init__(self, job: EvaluateJob, folder: Path) -> None:
        device = choose_device(job.device)
        self.towers = [_load(each).to(device) for each in tower_folders(folder)]
        self.batch_size = job.batch_size
        self.texts, self.seconds, self.truncated = 0, 0.0, 0

    @property
    def student(self) -> SavedReader:
        """The student, or that of queries."""
        return self.towers[0]

    def __call__(
        self, texts: Sequence[Text], name: PromptName | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings [N, H] of texts, which are queries or documents where these are read in two
        ways."""
        return self._read(self.towers[-1 if name == "document" else 0], texts, name)

    def pairs(
        self, queries: Sequence[Text], passages: Sequence[Text]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Embeddings [N, H] of both sides; what comes several times is embedded once."""
        if len(self.towers) > 1:
            return self._once(queries, "query"), self._once(passages, "document")
        prompted = self.student.prompted
        sides = [*prompted(queries, "query"), *prompted(passages, "document")]
        found = _of_different(sides, lambda own: self._embed(self.student, own))
        return found[: len(queries)], found[len(queries) :]

    def _once(self, texts: Sequence[Text], name: PromptName) -> npt.NDArray[np.float32]:
        return _of_different(texts, lambda own: self(own, name))

    def _read(
        self, tower: SavedReader, texts: Sequence[Text], name: PromptName | None
    ) -> npt.NDArray[np.float32]:
        return self._embed(tower, tower.prompted(texts, name))

    def _embed(self, tower: SavedReader, texts: Sequence[Text]) -> npt.NDArray[np.float32]:
        started = time.perf_counter()
        found, truncated = tower.outputs(texts, self.batch_size)
        self.seconds += time.perf_counter() - started
        self.texts += len(texts)
        self.truncated += truncated
        return found

    def figures(self) -> dict[str, float]:
        """Speed, and bytes of the weights."""
        return {
            "texts_per_second": self.texts / max(self.seconds, 1e-9),
            "model_bytes": sum(each.weights_bytes for each in self.towers),
        }


def _load(folder: Path) -> SavedReader:
    student = load_embedder(folder)
    if student is None:
        raise JobError(
            f"student {folder}: predicts labels and has no embeddings to compare (no "
            "modules.json); with a cache, name a feature of its classes or numbers (a "
            "classifier's logits, a score); otherwise leave cache and beir out"
        )
    return student


def _of_different(
    texts: Sequence[Text], embed: Callable[[list[Text]], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """The embeddings of texts, each different one embedded once."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return embed(list(rows))[[rows[text] for text in texts]]


def evaluate_beir(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of search among the passages of a BEIR folder. Raises JobError and CorpusError."""
    assert job.beir is not None
    asked = read_beir(job.beir, job.split, job.skip_bad_rows)
    relevant = int((asked.judged.relevant_Q() > 0).sum())
    if not relevant:
        raise JobError(f"beir {job.beir}: no query of split {job.split!r} has a relevant passage")

    embed = Embedder(job, folder)
    require_one_segment(embed.student, folder)
    _require_what_is_measured(job, embed.student)
    cached = None if job.cache is None else _cached_passages(job, asked.passages)

    def passages_of(rows: IntArray) -> npt.NDArray[np.float32]:
        if cached is not None:
            return cached[rows].astype(np.float32)
        return embed(asked.passage_texts(rows), "document")

    count, same = len(asked.passages), asked.same_ids()
    k, device = min(depth_of(job.retrieval_metrics), count), embed.student.device
    queries_QH = embed(asked.query_texts(), "query")
    width = queries_QH.shape[-1]
    if cached is not None and (own := cached[:1].shape[1]) != width:
        raise JobError(
            f"feature {cached.feature!r}: passages have {own} numbers, and the student's queries "
            f"{width}; name the cache and feature that it learned from"
        )

    def kept_of(found_NH: Array) -> Array:
        # Codes of both sides are of the passages' ranges: a teacher's may be of another length.
        return of_length_1(found_NH) if cached is not None and cosine else found_NH

    cosine = job.similarity == "cosine"
    sample = passages_of(calibration_rows(count)) if needs_calibration(job) else None
    best, block = _search(job, embed.student, queries_QH, k, same)
    ways = [
        KeptSearch(kept, kept_of(queries_QH), k, job, same, device)
        for kept in ways_to_keep(job, width, None if sample is None else kept_of(sample))
    ]
    for start in range(0, count, block):
        if sample is not None and len(sample) == count:
            found_PH = sample
        else:
            found_PH = passages_of(np.arange(start, min(start + block, count)))
        best.add(found_PH)
        for way in ways:
            way.add(kept_of(found_PH))

    def measured(rows_QK: IntArray) -> dict[str, float]:
        return retrieval_metrics(rows_QK, asked.judged, job.retrieval_metrics)

    metrics = measured(best.found().rows_QK)
    return {
        "examples": len(asked.queries),
        "passages": len(asked.passages),
        "queries_without_relevant": len(asked.queries) - relevant,
        "truncated_examples": embed.truncated,
        "skipped_rows": list(asked.skipped),
        "metrics": metrics,
        **_told(by_precision(ways, metrics, width, measured)),
        **embed.figures(),
    }


def _cached_passages(job: EvaluateJob, passages: Corpus) -> CachedVectors:
    """The embeddings of passages by a teacher. Raises MissingKeysError for passages without."""
    cache, feature = open_vectors(make(CacheKeys, job.cache_keys), job.feature, passages)
    rows = cache.find(passages.keys(), feature)
    if (absent := np.flatnonzero(rows < 0)).size:
        raise missing_keys(cache, passages, absent, [feature])
    return CachedVectors(passages, cache, feature, rows, job.similarity == "cosine")


def evaluate_pairs(job: EvaluateJob, folder: Path) -> dict[str, Any]:
    """Metrics of the similarities of pairs of texts. Raises JobError and CorpusError."""
    if not isinstance(job.label_column, str):
        raise JobError(
            f"text_column {list(job.text_column)}: pairs are measured by their scores; name one "
            "label_column of numbers, or of 0 and 1"
        )
    corpus = read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit,
        form=job.file_format,
    )
    corpus.require_format(None, f"student {folder}")
    labels_N = _numbers(corpus, job)
    known = np.flatnonzero(~np.isnan(labels_N))
    labels_N = labels_N[known]
    if len(known) < 2:
        raise JobError(f"corpus {job.corpus[0]}: {len(known)} pairs have a label; it takes 2")
    teachers = {} if job.cache is None else _of_teacher(job, corpus.take(known), labels_N)
    embed = Embedder(job, folder)
    of_tokens = embed.student.of_tokens
    _require_what_is_measured(job, embed.student)
    ways: list[PairScores] | None = None
    if needs_calibration(job):
        sides = _sides(embed, corpus.examples(known[calibration_rows(len(known))]))
        ways = _ways(job, *sides)
    scores, width = [], 0
    block = BLOCK_TEXTS if of_tokens else BLOCK_PASSAGES
    for start in range(0, len(known), block):
        sides = _sides(embed, corpus.examples(known[start : start + block]))
        width = sides[0].shape[-1]
        if of_tokens:
            scores.append(pairs_of_tokens(*sides))
            continue
        ways = _ways(job, *sides) if ways is None else ways
        scores.append(pair_scores(*sides, job.similarity))
        for way in ways:
            way.add(*sides)
    metrics = _of_pairs(np.concatenate(scores), labels_N)
    compared = {name: value for name, value in metrics.items() if name != "f1_threshold"}
    table = by_precision(ways or [], compared, width, lambda found: _of_pairs(found, labels_N))
    return {
        "examples": len(known),
        "unlabelled_examples": len(corpus) - len(known),
        "truncated_examples": embed.truncated,
        "skipped_rows": list(corpus.skipped),
        "metrics": metrics | teachers,
        **_told(table),
        **embed.figures(),
    }


def _search(
    job: EvaluateJob, student: SavedReader, queries: Array, k: int, same: Pairs
) -> tuple[BestPassages, int]:
    """The search for passages that are made block by block, and how many are in one."""
    if student.of_tokens:
        return BestByTokens(queries, k, same, student.device), BLOCK_TEXTS
    return BestPassages(queries, k, job.similarity, same, student.device), BLOCK_PASSAGES


def _require_what_is_measured(job: EvaluateJob, student: SavedReader) -> None:
    """Refuse what is not measured of a student with a vector for each token."""
    asked = {"precision": job.precision, "truncate_dim": job.truncate_dim}
    for key, value in asked.items():
        if value:
            student.require_one_vector(key)
    if job.beir is not None and job.cache is not None:
        student.require_one_vector("cache")
    if job.similarity != "cosine":
        student.require_one_vector(f"similarity={job.similarity}")


def _told(table: dict[str, Any]) -> dict[str, Any]:
    return {"by_precision": table} if table else {}


def _ways(job: EvaluateJob, *sides: Array) -> list[PairScores]:
    """The ways to keep vectors whose ranges are those of both sides of pairs."""
    sample = np.concatenate(sides)
    return [PairScores(kept, job) for kept in ways_to_keep(job, sample.shape[1], sample)]


def _numbers(corpus: Corpus, job: EvaluateJob) -> npt.NDArray[np.float64]:
    """The labels; NaN where there is none."""
    labels = corpus.labels
    assert labels is not None
    kind = labels.type
    if pa.types.is_boolean(kind):
        labels = labels.cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise JobError(
            f"label_column {job.label_column!r}: holds {kind}, and pairs of texts need a number: a "
            "score, or 0 and 1"
        )
    numbers: npt.NDArray[np.float64] = labels.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise JobError(f"label_column {job.label_column!r}: {corpus.where(row)} is not finite")
    return numbers


def _sides(
    embed: Embedder, pairs: Sequence[tuple[str, ...]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Embeddings [N, H] of both texts of pairs, the first a query and the second a passage where
    these are read in two ways."""
    queries, passages = (list(column) for column in zip(*pairs, strict=True))
    return embed.pairs(queries, passages)


def _of_pairs(
    scores_N: npt.NDArray[np.float64], labels_N: npt.NDArray[np.float64]
) -> dict[str, float]:
    if not np.isin(labels_N, (0, 1)).all():
        return correlations(scores_N, labels_N)
    holds_N = labels_N == 1
    if holds_N.all() or not holds_N.any():
        raise JobError(f"label_column: all labels are {labels_N[0]:g}; nothing to tell apart")
    f1, threshold = best_f1(scores_N, holds_N)
    precision = average_precision(scores_N, holds_N)
    return {"average_precision": precision, "f1": f1, "f1_threshold": threshold}


def _of_teacher(
    job: EvaluateJob, corpus: Corpus, labels_N: npt.NDArray[np.float64]
) -> dict[str, float]:
    """The metrics of the embeddings that a cache holds of both texts of each pair. Raises
    MissingKeysError for pairs without them."""
    answers = open_answers(make(CacheKeys, job.cache_keys))
    feature = job.feature or answers.cache.features[0]
    sides = [corpus.of_columns([column]) for column in range(2)]
    cache = answers.of(feature, sides).cache
    vectors = list[Array]()
    for side in sides:
        rows = cache.find(side.keys(), feature)
        if (rows < 0).any():
            raise missing_keys(cache, side, np.flatnonzero(rows < 0), [feature])
        vectors.append(cache[feature].gather(rows).reshape(len(rows), -1))
    found = _of_pairs(pair_scores(vectors[0], vectors[1], job.similarity), labels_N)
    return {f"teacher_{name}": value for name, value in found.items()}


def evaluate_embeddings(job: EvaluateJob, keys: CorpusKeys, folder: Path) -> dict[str, Any]:
    """`cosine`, the mean over texts, `mse`, over all numbers, `cka` and `neighbour_overlap@10`; the
    teacher's embeddings come from the job's cache. The last two are left out for fewer than 2
    texts. Raises JobError for a feature of another width, and for a student that learned none."""
    embed = Embedder(job, folder)
    embed.student.require_one_vector("cache")
    labelled = read_labelled(keys, job.corpus, embed.student.card.space)
    answers = open_answers(make(CacheKeys, job.cache_keys))
    feature = job.feature or answers.cache.features[0]
    cache = answers.of(feature, [labelled.corpus]).cache
    corpus = labelled.corpus
    rows = cache.find(corpus.keys(), feature)
    labelled = labelled.with_rows(
        {feature: rows},
        job.skip_bad_rows,
        lambda: missing_keys(cache, corpus, np.flatnonzero(rows < 0), [feature]),
    )
    wanted = cache[feature].gather(labelled.cache_rows[feature]).astype(np.float64)
    wanted = wanted.reshape(len(wanted), -1)
    texts = [segments for batch in labelled.corpus.batches() for segments in batch]
    found = embed(texts, job.prompt_name).astype(np.float64)
    if found.shape != wanted.shape:
        raise JobError(
            f"feature {feature!r}: has {wanted.shape[1]} numbers, and the student's embeddings "
            f"{found.shape[1]}; name the feature and the teacher that it learned from"
        )
    metrics = {
        "cosine": float(cosines(found, wanted).mean()),
        "mse": float(np.square(found - wanted).mean()),
    }
    if len(texts) > 1:
        spaced = np.linspace(0, len(texts) - 1, min(len(texts), CKA_TEXTS)).round().astype(np.int64)
        metrics["cka"] = linear_cka(found[spaced], wanted[spaced])
        overlap = neighbour_overlap(found, wanted, NEIGHBOURS)
        metrics[f"neighbour_overlap@{NEIGHBOURS}"] = overlap
    return {
        "examples": len(texts),
        "truncated_examples": embed.truncated,
        "skipped_rows": list(labelled.corpus.skipped),
        "metrics": metrics,
        **embed.figures(),
    }


def require_one_segment(student: SavedReader, folder: Path) -> None:
    """Raises JobError for a student of several segments."""
    columns = student.card.text_columns
    if len(columns) != 1:
        raise JobError(
            f"student {folder}: reads {len(columns)} segments ({', '.join(columns)}), and queries "
            "and passages are single texts; use a student of one text column"
        )
