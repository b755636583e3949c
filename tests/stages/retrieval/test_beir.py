"""BEIR folders: what is read of them, and what is refused."""

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.retrieval.beir import read_beir
from beir_folders import write_beir, write_lines, write_qrels

PASSAGES = {
    "d1": ("Otters", "swim"),
    "d10": ("", "a river"),
    "d9": ("Maps", ""),
    "q3": ("", "what a map is"),
}
QUERIES = {"q1": "where do otters live", "12": "what is a map", "q3": "what a map is"}
JUDGED = [("q3", "d9", 1), ("12", "d9", 2), ("12", "q3", 1), ("12", "d1", 0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "beir", PASSAGES, QUERIES, JUDGED)


def test_a_folder_is_read(folder: Path) -> None:
    found = read_beir(folder)
    assert found.passages.ids is not None
    assert found.passages.ids.to_pylist() == ["q3", "d9", "d10", "d1"]  # the last one first
    assert found.passage_texts(np.arange(4)) == ["what a map is", "Maps", "a river", "Otters swim"]
    assert found.query_texts() == [QUERIES["12"], QUERIES["q3"]]  # q1 is not judged
    judged = found.judged
    rows = zip(judged.queries_J, judged.passages_J, judged.grades_J, strict=True)
    assert sorted(rows) == [(0, 0, 1), (0, 1, 2), (0, 3, 0), (1, 1, 1)]
    same = found.same_ids()
    assert (same.queries.tolist(), same.passages.tolist()) == ([1], [0])
    assert found.skipped == ()


def test_files_may_be_compressed_and_without_titles(folder: Path) -> None:
    write_lines(folder / "corpus.jsonl", ({"_id": n, "text": "a b"} for n in PASSAGES))
    plain = (folder / "corpus.jsonl").read_bytes()
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(plain))
    assert read_beir(folder).passage_texts(np.arange(2)) == ["a b", "a b"]


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", {"7": ("", "a")}, {"1": "b"}, [("1", "7", 1)])
    write_lines(folder / "corpus.jsonl", [{"_id": 7, "text": "a"}])
    write_lines(folder / "queries.jsonl", [{"_id": 1, "text": "b"}])
    assert read_beir(folder).judged.grades_J.tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*JUDGED, ("12", "d9", 1)], "test.tsv row 5: query '12' and passage 'd9' are also judged"),
        ([*JUDGED, ("12", "d9", 1)], "in row 2; fix the file, or set skip_bad_rows=true"),
        ([*JUDGED, ("q7", "d9", 1)], "row 5: 'q7' is not in queries.jsonl"),
        ([*JUDGED, ("12", "d7", 1)], "row 5: 'd7' is not in corpus.jsonl"),
        ([*JUDGED, ("q1", "d1", 0.5)], "row 5: column 'score' is not a whole number"),
        ([("q1", "d1", "yes")], "row 1: column 'score' is not a whole number"),
        ([("q1", "", 1)], "row 1: column 'corpus-id' is empty"),
    ],
)
def test_bad_judgements_are_refused(
    folder: Path, rows: Iterable[tuple[str, str, object]], words: str
) -> None:
    write_qrels(folder, rows)
    with pytest.raises(CorpusError) as caught:
        read_beir(folder)
    assert words in str(caught.value)


def test_bad_judgements_may_be_left_out(folder: Path) -> None:
    write_qrels(folder, [*JUDGED, ("12", "d9", 1), ("q7", "d9", 1), ("12", "d10", 0.5)])
    found = read_beir(folder, skip_bad_rows=True)
    assert len(found.judged.grades_J) == 4
    assert found.judged.grades_J.max() == 2
    assert [line.partition(": ")[0].rpartition("row ")[2] for line in found.skipped] == list("567")


def test_what_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no corpus\.jsonl; a BEIR folder holds"):
        read_beir(tmp_path)
    with pytest.raises(CorpusError, match="has no split 'dev'; it has test"):
        read_beir(folder, "dev")
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(CorpusError, match=r"has no qrels/test\.tsv"):
        read_beir(folder)
    write_qrels(folder, [("q7", "d7", 1)])
    with pytest.raises(CorpusError, match="judges no query"):
        read_beir(folder, skip_bad_rows=True)
    (folder / "qrels" / "test.tsv").write_text("12\t0\td9\t1\n")
    with pytest.raises(CorpusError, match="no column 'query-id'"):
        read_beir(folder)
    write_lines(folder / "queries.jsonl", [{"_id": "12", "text": "a"}, {"_id": "12", "text": "b"}])
    with pytest.raises(CorpusError, match="id '12' is also that of row 1"):
        read_beir(folder)
