"""`mine`: hard negatives for pairs of a query and its positive, by a teacher's cached embeddings.

In: pairs, maybe further passages, and the embeddings of all of them. Out: a Parquet corpus in the
order of the pairs, and what was left out. Candidates of a query are the passages nearest to it,
found exactly, or with index=ivf most of them; all positives of the query, and the query's own text,
are none of them.

Texts that come several times are one passage, and one query. Memory: the texts in Arrow's, 65,536
queries with their candidates at a time (passages are read once for each such block), and 12 bytes
for each negative; with index=ivf all passages as float32.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache_schemas.errors import JobError
from ...cache_schemas.extras import require_extra
from ...cache_schemas.keys import IntArray, KeyArray, first_occurrences
from ...stages.corpus.corpus import Corpus, corpus_name, read_corpus
from ...stages.retrieval.approximate import InvertedFile, recall_of
from ...stages.retrieval.metrics import pair_scores
from ...stages.retrieval.mining import MiningRules, choose_negatives
from ...stages.retrieval.search import NONE, Found, Pairs, search
from ...stages.store.format.rows import KeyIndex
from ...stages.store.reading.reader import Cache, open_cache
from ..answers import missing_keys
from ..corpora.provenance import parents_of
from ..environment import choose_device, library_versions
from ..messages import CountProgress
from ..outputs import check_new_file, new_file
from ..signals import telling_what_is_kept
from .mine_job import MineJob
from .vectors import CachedVectors

BLOCK_QUERIES = 65_536
BLOCK_ROWS = 8192
RECALL_QUERIES = 256
"""Queries that an approximate search is compared with an exact one on, evenly spaced."""
_RULES = (
    *("negatives", "sampling", "range_min", "range_max"),
    *("max_score", "margin", "relative_margin", "seed"),
)


@dataclass(frozen=True, slots=True)
class MineReport:
    """Result of `mine`. `pairs` of a query and a positive, of which `short` have fewer negatives
    than were to be found, `mined` in all; candidates `too_high` were above max_score, `too_near`
    within a margin of the positive. `recall`: the share of the nearest passages that an approximate
    search has found; None for an exact one."""

    output: str
    pairs: int
    queries: int
    passages: int
    mined: int
    short: int
    too_high: int
    too_near: int
    recall: float | None
    written: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Material:
    """Pairs of a query and a positive, and the pool of passages. By pair: the first pair with the
    same query, and the passage that is the positive's text, or NONE; `itself`: the passage that is
    the query's own text, or NONE."""

    pairs: Corpus
    queries: CachedVectors
    positives: CachedVectors
    pool: CachedVectors
    pool_keys: KeyArray
    first: IntArray
    positive: IntArray
    itself: IntArray


@telling_what_is_kept(lambda: "nothing was written; run the same command again")
def run_mine(job: MineJob, quiet: bool = False) -> MineReport:
    """Write negatives for the pairs of a corpus. Raises an InputError for invalid input."""
    check_new_file(job.output)
    if job.index != "exact":
        require_extra(f"index={job.index}", "faiss", "faiss")
    device = str(choose_device(job.device))
    passages, queries = _open(job)
    material = _read(job, passages, queries)
    mined = _Mined(job, material, device)
    unique = np.flatnonzero(material.first == np.arange(len(material.pairs)))
    with CountProgress("mine", "queries", len(unique), quiet) as progress:
        for start in range(0, len(unique), BLOCK_QUERIES):
            block = unique[start : start + BLOCK_QUERIES]
            mined.add(block)
            progress.advance(len(block))
    return _write(job, material, mined, unique)


def _open(job: MineJob) -> tuple[tuple[Cache, str], tuple[Cache, str]]:
    """The cache and the feature of passages, and those of queries. Raises CacheError and
    JobError."""
    passages = _with_feature(open_cache(job.cache, job.teacher), job)
    queries = passages
    if job.query_cache is not None or job.query_teacher is not None:
        queries = _with_feature(open_cache(job.query_cache or job.cache, job.query_teacher), job)
    widths = [cache.feature_spec(name).shape[0] for cache, name in (passages, queries)]
    if widths[0] != widths[1]:
        raise JobError(
            f"query_teacher: its embeddings have {widths[1]} numbers, those of passages "
            f"{widths[0]}; name one model with two prompts"
        )
    return passages, queries


def _with_feature(cache: Cache, job: MineJob) -> tuple[Cache, str]:
    vectors = [
        name
        for name in cache.features
        if (spec := cache.feature_spec(name)).axis is None and len(spec.shape) == 1
    ]
    if job.feature is None and len(vectors) != 1:
        raise JobError(
            f"feature: teacher {cache.teacher.fingerprint[:12]} has "
            f"{', '.join(vectors) or 'no vectors'}; name the one that holds the embeddings"
        )
    name = job.feature or vectors[0]
    spec = cache.feature_spec(name)
    if name not in vectors:
        raise JobError(f"feature {name!r}: is {spec.shown}, not one vector for each text")
    return cache, name


def _read(job: MineJob, passages: tuple[Cache, str], queries: tuple[Cache, str]) -> _Material:
    """Texts, and where their embeddings are. Raises CorpusError, JobError, MissingKeysError."""
    pairs = _corpus(job, job.corpus, job.text_column)
    for column, source in enumerate((queries, passages)):
        pairs = _cached(job, pairs, pairs.of_columns([column]), source)
    given = pairs.of_columns([1])
    if job.passages:
        given = _corpus(job, job.passages, (job.passage_column or job.text_column[1],))
        given = _cached(job, given, given, passages)
    keys = given.keys()
    firsts = first_occurrences(keys)
    pool, pool_keys = given.take(firsts), keys[firsts]
    positives = 0 if job.passages else 1
    if job.negatives > len(pool) - positives:
        own = ", one of them the positive" if positives else ""
        raise JobError(
            f"negatives {job.negatives}: there are {len(pool)} different passages{own}; name "
            "more passages, or mine fewer negatives"
        )
    index = KeyIndex(pool_keys)
    query_texts, positive_texts = pairs.of_columns([0]), pairs.of_columns([1])
    query_keys = query_texts.keys()
    return _Material(
        pairs=pairs,
        queries=_vectors(job, query_texts, queries),
        positives=_vectors(job, positive_texts, passages),
        pool=_vectors(job, pool, passages),
        pool_keys=pool_keys,
        first=KeyIndex(query_keys).find(query_keys),
        positive=index.find(positive_texts.keys()),
        itself=index.find(query_keys),
    )


def _corpus(job: MineJob, sources: Sequence[str], columns: Sequence[str]) -> Corpus:
    corpus = read_corpus(
        sources,
        columns,
        id_column=job.id_column if sources is job.corpus else False,
        skip_bad_rows=job.skip_bad_rows,
        limit=job.limit if sources is job.corpus else None,
        form=job.file_format,
    )
    corpus.require_format(None, "mine")
    return corpus


def _cached(job: MineJob, corpus: Corpus, texts: Corpus, source: tuple[Cache, str]) -> Corpus:
    """The rows of a corpus whose text in `texts` has its embedding in the cache."""
    cache, feature = source
    missing = np.flatnonzero(cache.find(texts.keys(), feature) < 0)
    if len(missing) and (len(missing) == len(texts) or not job.skip_bad_rows):
        raise missing_keys(cache, texts, missing, [feature])
    return corpus.without(missing, "not in the cache") if len(missing) else corpus


def _vectors(job: MineJob, texts: Corpus, source: tuple[Cache, str]) -> CachedVectors:
    cache, feature = source
    rows = cache.find(texts.keys(), feature)
    return CachedVectors(texts, cache, feature, rows, zero_is_wrong=job.similarity == "cosine")


class _Mined:
    """The negatives of all pairs, a block of queries at a time."""

    def __init__(self, job: MineJob, material: _Material, device: str) -> None:
        self._job, self._material, self._device = job, material, device
        self._index: InvertedFile | None = None
        if job.index == "ivf":
            self._index = InvertedFile(material.pool, job.similarity, job.seed)
        count = len(material.pairs)
        self.rules = MiningRules(**{name: getattr(job, name) for name in _RULES})
        self.rows_RN = np.full((count, job.negatives), NONE, dtype=np.int64)
        self.scores_RN = np.full((count, job.negatives), np.nan, dtype=np.float32)
        self.positives_R = np.zeros(count)
        self.too_high, self.too_near = 0, 0
        self._by_query = np.argsort(material.first, kind="stable")
        self._keys = material.pairs.keys()

    def add(self, queries: IntArray) -> None:
        """Mine for the queries of these pairs, the first ones with their query, ascending."""
        known = self._material
        pairs, owners, left_out = self._left_out(queries)
        vectors_QH = known.queries[queries]
        found = self._search(vectors_QH, left_out)
        for start in range(0, len(pairs), BLOCK_ROWS):
            part, owner = (each[start : start + BLOCK_ROWS] for each in (pairs, owners))
            candidates = Found(found.rows_QK[owner], found.scores_QK[owner])
            self._choose(part, vectors_QH[owner], candidates)

    def recall(self, unique: IntArray) -> float | None:
        """The share of the nearest passages of some queries that were found; None if the search is
        exact."""
        if self._index is None:
            return None
        spaced = np.linspace(0, len(unique) - 1, min(len(unique), RECALL_QUERIES)).round()
        queries = unique[spaced.astype(np.int64)]
        vectors_QH, left_out = self._material.queries[queries], self._left_out(queries)[2]
        exact = self._search(vectors_QH, left_out, exact=True)
        return recall_of(self._search(vectors_QH, left_out), exact)

    def _search(self, vectors_QH: npt.NDArray[Any], left_out: Pairs, exact: bool = False) -> Found:
        pool, similarity = self._material.pool, self._job.similarity
        most = min(self._job.range_max, len(pool))
        if self._index is not None and not exact:
            return self._index.search(vectors_QH, most, left_out)
        return search(vectors_QH, pool, most, similarity, left_out, self._device)

    def _left_out(self, queries: IntArray) -> tuple[IntArray, IntArray, Pairs]:
        """The pairs of queries, the number of the query of each, and what these may not find."""
        known = self._material
        ends = np.searchsorted(known.first[self._by_query], [queries[0], queries[-1] + 1])
        pairs = self._by_query[slice(*ends)]
        owners = np.searchsorted(queries, known.first[pairs])
        left_out = np.concatenate([known.positive[pairs], known.itself[queries]])
        of_query = np.concatenate([owners, np.arange(len(queries))])
        there = left_out != NONE
        return pairs, owners, Pairs(of_query[there], left_out[there])

    def _choose(self, pairs: IntArray, queries_RH: npt.NDArray[Any], candidates: Found) -> None:
        known = self._material
        positives_R = pair_scores(queries_RH, known.positives[pairs], self._job.similarity)
        chosen = choose_negatives(
            candidates, positives_R, self._keys[pairs], known.pool_keys, self.rules
        )
        self.positives_R[pairs] = positives_R
        self.rows_RN[pairs], self.scores_RN[pairs] = chosen.rows_RN, chosen.scores_RN
        self.too_high += chosen.too_high
        self.too_near += chosen.too_near


def _write(job: MineJob, material: _Material, mined: _Mined, unique: IntArray) -> MineReport:
    """Write the file; raises JobError if no pair has a negative."""
    found = int((mined.rows_RN != NONE).sum())
    if not found:
        raise JobError(
            f"negatives: none is left of the candidates of {len(material.pairs)} pairs "
            f"({mined.too_high} above max_score, {mined.too_near} too near to the positive); "
            "loosen max_score, margin or relative_margin, or raise range_max"
        )
    report = MineReport(
        output=str(job.output),
        pairs=len(material.pairs),
        queries=len(unique),
        passages=len(material.pool),
        mined=found,
        short=int((mined.rows_RN[:, -1] == NONE).sum()),
        too_high=mined.too_high,
        too_near=mined.too_near,
        recall=mined.recall(unique),
        written=len(material.pairs) + (found if job.layout == "pairs" else 0),
        skipped=material.pairs.skipped + (material.pool.corpus.skipped if job.passages else ()),
    )
    document = _provenance(job, material, report)
    with new_file(job.output) as write:
        for start in range(0, len(material.pairs), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(material.pairs)))
            table = (_pairs if job.layout == "pairs" else _columns)(job, material, mined, rows)
            write(table.replace_schema_metadata({"armada": document}))
    return report


def _columns(job: MineJob, material: _Material, mined: _Mined, rows: IntArray) -> pa.Table:
    """A row for each pair."""
    corpus, rows_RN = material.pairs, mined.rows_RN[rows]
    columns = {} if corpus.ids is None else {"id": corpus.ids.take(pa.array(rows))}
    columns["query"], columns["positive"] = _texts(corpus, 0, rows), _texts(corpus, 1, rows)
    for number, passages in enumerate(rows_RN.T, 1):
        columns[f"negative_{number}"] = _texts(material.pool.corpus, 0, passages)
    if job.scores:
        scores_RM = _with_positives(mined, rows)
        there_RM = ~np.isnan(scores_RM)
        ends = np.append(0, np.cumsum(there_RM.sum(axis=1))).astype(np.int32)
        values = pa.array(scores_RM[there_RM])
        columns["scores"] = pa.ListArray.from_arrays(pa.array(ends), values)
    return pa.table(columns)


def _pairs(job: MineJob, material: _Material, mined: _Mined, rows: IntArray) -> pa.Table:
    """A row for each query with a passage: the positive, then the negatives."""
    there_RM = np.insert(mined.rows_RN[rows] != NONE, 0, True, axis=1)
    owner, place = np.nonzero(there_RM)
    positives = np.where(place == 0, rows[owner], NONE)
    negatives = np.where(place == 0, NONE, mined.rows_RN[rows[owner], place - 1])
    columns = {
        "query": _texts(material.pairs, 0, rows[owner]),
        "passage": pc.coalesce(
            _texts(material.pairs, 1, positives), _texts(material.pool.corpus, 0, negatives)
        ),
        "relevant": pa.array((place == 0).astype(np.int8)),
    }
    if job.scores:
        columns["score"] = pa.array(_with_positives(mined, rows)[there_RM])
    return pa.table(columns)


def _with_positives(mined: _Mined, rows: IntArray) -> npt.NDArray[np.float32]:
    """Scores of the positive and the negatives [R, 1 + N]."""
    positives_R1 = mined.positives_R[rows, None].astype(np.float32)
    return np.concatenate([positives_R1, mined.scores_RN[rows]], axis=1)


def _texts(corpus: Corpus, column: int, rows: IntArray) -> pa.Array:
    """The texts of rows; null for NONE."""
    return corpus.segments[column].take(pa.array(rows, mask=rows == NONE)).cast(pa.string())


def _provenance(job: MineJob, material: _Material, report: MineReport) -> str:
    """What the metadata of the file says about where its rows come from; see
    `corpora/provenance.py`."""
    parents = parents_of([*job.corpus, *job.passages])
    options = {name: getattr(job, name) for name in (*_RULES, "similarity", "layout", "scores")}
    counts = ("pairs", "queries", "mined", "short", "too_high", "too_near")
    document = {
        "command": "mine",
        "version": library_versions()["armada-kd"],
        "corpora": [corpus_name(source) for source in job.corpus],
        "passages": [corpus_name(source) for source in job.passages],
        "parents": parents,
        "round": 1 + max((parent["round"] for parent in parents), default=0),
        "text_columns": list(job.text_column),
        "teacher": _teacher(material.pool),
        "query_teacher": _teacher(material.queries),
        **options,
        **({} if report.recall is None else {"index": job.index, "recall": report.recall}),
        "counts": {name: getattr(report, name) for name in (*counts, "passages")},
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def _teacher(vectors: CachedVectors) -> dict[str, str]:
    teacher = vectors.cache.teacher
    return {
        "fingerprint": teacher.fingerprint,
        "kind": teacher.spec.kind,
        "name": teacher.spec.name,
        "feature": vectors.feature,
    }
