"""A BEIR folder: passages, queries and judgements of who answers whom.

corpus.jsonl       _id, title (or none), text; read as "title text"
queries.jsonl      _id, text; those that the split judges are used
qrels/SPLIT.tsv    query-id, corpus-id, score, with that header

Files may be compressed (`corpus.jsonl.gz`). Passages are sorted by id, the last one first, so that
`search`, which puts the lower row first among equal scores, ranks as trec_eval does. Memory: all
texts and ids once, in Arrow's, and sorted.

Source: Thakur et al., BEIR, arXiv 2104.08663.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import CorpusError
from ...cache_schemas.keys import IntArray
from ..corpus.corpus import Corpus, read_corpus
from ..corpus.json_files import read_json
from ..corpus.reading import first_of
from ..corpus.text_files import TextFormat
from .metrics import Judgements
from .search import Pairs

_ID = "_id"
_MOST = 2**31


@dataclass(frozen=True, slots=True)
class BeirFolder:
    """What a split of a BEIR folder asks: passages by id, the last one first, queries that it
    judges in the order of their file, and its judgements by row. `skipped` are rows left out."""

    passages: Corpus
    queries: Corpus
    judged: Judgements
    skipped: tuple[str, ...]

    def passage_texts(self, rows: IntArray) -> list[str]:
        """Title and text of passages, with a space between."""
        return [" ".join(filter(None, segments)) for segments in self.passages.examples(rows)]

    def query_texts(self) -> list[str]:
        """The texts of all queries."""
        return [text for batch in self.queries.batches() for (text,) in batch]

    def same_ids(self) -> Pairs:
        """Queries and passages of one id, which are the same text and no answer: as in BEIR's own
        evaluation, they are left out of what is found."""
        rows = {name: row for row, name in enumerate(_ids(self.passages))}
        pairs = [(q, rows[name]) for q, name in enumerate(_ids(self.queries)) if name in rows]
        found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return Pairs(found[:, 0], found[:, 1])


def read_beir(folder: Path, split: str = "test", skip_bad_rows: bool = False) -> BeirFolder:
    """Read a split of a BEIR folder.

    Raises CorpusError for a file that is not there, an invalid row, a pair that is judged twice, an
    id that no file has, a grade that is no whole number; with `skip_bad_rows` such rows are left
    out and listed, and of a pair that is judged twice the first judgement counts."""
    corpus_file, queries_file = _file(folder, "corpus.jsonl"), _file(folder, "queries.jsonl")
    qrels_file = _qrels(folder, split)
    titled = "title" in next(read_json(corpus_file, TextFormat(), (), False)).column_names
    passages = _read(corpus_file, ("title?", "text?") if titled else ("text",), skip_bad_rows)
    queries = _read(queries_file, ("text",), skip_bad_rows)
    qrels = read_corpus(
        [qrels_file],
        ["query-id", "corpus-id"],
        label_column="score",
        id_column=False,
        skip_bad_rows=skip_bad_rows,
    )
    ids = _ids(passages)
    passages = passages.take(_last_first(ids))
    judged, problems = _judgements(qrels, _ids(queries), _ids(passages))
    if problems and not skip_bad_rows:
        raise CorpusError(first_of(problems))
    if not len(judged.queries_J):
        raise CorpusError(f"corpus {qrels_file}: judges no query of {queries_file}")
    used, places = np.unique(judged.queries_J, return_inverse=True)
    return BeirFolder(
        passages,
        queries.take(used),
        Judgements(places.astype(np.int64), judged.passages_J, judged.grades_J, len(used)),
        (*passages.skipped, *queries.skipped, *qrels.skipped, *problems),
    )


def _read(file: str, columns: Sequence[str], skip_bad_rows: bool) -> Corpus:
    return read_corpus([file], columns, id_column=_ID, skip_bad_rows=skip_bad_rows)


def _file(folder: Path, name: str) -> str:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return str(file)
    raise CorpusError(
        f"beir {folder}: has no {name}; a BEIR folder holds corpus.jsonl, queries.jsonl and "
        "qrels/SPLIT.tsv"
    )


def _qrels(folder: Path, split: str) -> str:
    found = sorted({file.name.partition(".tsv")[0] for file in folder.glob("qrels/*.tsv*")})
    if found and split not in found:
        raise CorpusError(f"beir {folder}: has no split {split!r}; it has {', '.join(found)}")
    return _file(folder, f"qrels/{split}.tsv")


def _ids(corpus: Corpus) -> list[str]:
    assert corpus.ids is not None
    names: list[str] = corpus.ids.to_pylist()
    return names


def _last_first(ids: Sequence[str]) -> IntArray:
    by_id = sorted(range(len(ids)), key=lambda row: ids[row].encode(), reverse=True)
    return np.array(by_id, dtype=np.int64)


def _judgements(
    qrels: Corpus, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> tuple[Judgements, list[str]]:
    """The judgements by row of all queries and passages, and the problems of those left out."""
    grades = _grades(qrels)
    queries = {name: row for row, name in enumerate(query_ids)}
    passages = {name: row for row, name in enumerate(passage_ids)}
    first: dict[tuple[int, int], int] = {}
    problems = list[str]()
    pairs = (pair for batch in qrels.batches() for pair in batch)
    for row, (query, passage) in enumerate(pairs):
        if query not in queries or passage not in passages:
            file, name = ("queries", query) if query not in queries else ("corpus", passage)
            problem = f"{name!r} is not in {file}.jsonl"
        elif np.isnan(grades[row]):
            problem = "column 'score' is not a whole number"
        elif (pair := (queries[query], passages[passage])) in first:
            where = qrels.where(first[pair]).rpartition(" ")[2]
            problem = f"query {query!r} and passage {passage!r} are also judged in row {where}"
        else:
            first[pair] = row
            continue
        problems.append(f"corpus {qrels.where(row)}: {problem}")
    found = np.array([*first], dtype=np.int64).reshape(-1, 2)
    kept = grades[list(first.values())].astype(np.int64)
    return Judgements(found[:, 0], found[:, 1], kept, len(query_ids)), problems


def _grades(qrels: Corpus) -> npt.NDArray[np.float64]:
    """Whole numbers; NaN for what is none."""
    labels = qrels.labels
    assert labels is not None
    if not (pa.types.is_integer(labels.type) or pa.types.is_floating(labels.type)):
        return np.full(len(labels), np.nan)
    grades: npt.NDArray[np.float64] = labels.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where((np.abs(grades) < _MOST) & (grades == np.round(grades)), grades, np.nan)
