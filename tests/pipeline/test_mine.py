"""`armada mine`: hard negatives by a teacher's cached embeddings, against all scores in NumPy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada import open_cache
from armada.cache_schemas.features import FeatureSpec
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.pipeline.retrieval import mine
from armada.stages.corpus.corpus import read_corpus
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.writing.writer import CacheWriter
from small_caches import keys_of, make_manifest
from tiny_runs import TEXTS

PAIRS = [(f"{TEXTS[n]} indeed", TEXTS[n]) for n in range(12)]
PAIRS += [(PAIRS[0][0], TEXTS[15]), (PAIRS[1][0], TEXTS[16]), (TEXTS[3], TEXTS[17])]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs.parquet, more.parquet, and a cache of all of their texts."""
    folder = tmp_path_factory.mktemp("mine")
    queries, positives = map(list, zip(*PAIRS, strict=True))
    table = {"question": queries, "answer": positives, "id": [f"r{n}" for n in range(len(PAIRS))]}
    pq.write_table(pa.table(table), folder / "pairs.parquet")
    pq.write_table(pa.table({"passage": TEXTS}), folder / "more.parquet")
    for corpus, column in (("pairs", "question"), ("pairs", "answer"), ("more", "passage")):
        keys = {
            "corpus": str(folder / f"{corpus}.parquet"),
            "text_column": column,
            "teacher": "hash:12",
            "cache": str(folder / "cache"),
        }
        run_precompute(make_precompute_job(keys), quiet=True)
    return folder


@pytest.fixture(scope="module")
def fingerprint(bench: Path) -> str:
    """The `hash` teacher."""
    (found,) = list_teachers(bench / "cache")
    return found.fingerprint


@pytest.fixture
def words(bench: Path, fingerprint: str, tmp_path: Path) -> list[object]:
    return [
        *("mine", "--corpus", bench / "pairs.parquet"),
        *("--text-column", "question", "--text-column", "answer"),
        *("--cache", bench / "cache", "--teacher", fingerprint[:8]),
        *("--output", tmp_path / "mined.parquet", "--quiet"),
    ]


def nearest(bench: Path, fingerprint: str, pool: list[str]) -> dict[str, list[tuple[str, float]]]:
    """Of each query all passages that are neither its positives nor itself, the nearest first."""
    cache = open_cache(bench / "cache", fingerprint)

    def unit(texts: list[str]) -> Any:
        found = cache["embedding"][cache.lookup(texts)].astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    found = {}
    for query, _ in PAIRS:
        own = {query, *(positive for other, positive in PAIRS if other == query)}
        left = [text for text in dict.fromkeys(pool) if text not in own]
        scores = (unit([query]) @ unit(left).T)[0]
        order = np.argsort(-scores, kind="stable")
        found[query] = [(left[at], float(scores[at])) for at in order]
    return found


def test_negatives_are_the_nearest_that_are_no_positives(armada, bench, words, fingerprint):
    report = json.loads(armada.done(*words, "--set", "scores=true", "--json"))
    assert (report["pairs"], report["queries"], report["passages"]) == (15, 13, 15)
    assert (report["mined"], report["short"], report["written"]) == (60, 0, 15)
    table = pq.read_table(report["output"])
    assert table.column_names == [
        *("id", "query", "positive"),
        *(f"negative_{n}" for n in range(1, 5)),
        "scores",
    ]
    wanted = nearest(bench, fingerprint, [positive for _, positive in PAIRS])
    for row, (query, positive) in zip(table.to_pylist(), PAIRS, strict=True):
        assert (row["query"], row["positive"]) == (query, positive)
        expected = wanted[query][:4]
        assert [row[f"negative_{n}"] for n in range(1, 5)] == [text for text, _ in expected]
        assert row["scores"][1:] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert len(row["scores"]) == 5


def test_blocks_of_queries_change_nothing(armada, words, monkeypatch, tmp_path):
    armada.done(*words)
    whole = (tmp_path / "mined.parquet").read_bytes()
    monkeypatch.setattr(mine, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(mine, "BLOCK_ROWS", 3)
    told = [
        tmp_path / "b.parquet" if word == tmp_path / "mined.parquet" else word for word in words
    ]
    armada.done(*told)
    again = pq.read_table(tmp_path / "b.parquet")
    assert again.equals(pq.read_table(tmp_path / "mined.parquet"))
    assert again.schema.metadata == pq.read_schema(tmp_path / "mined.parquet").metadata
    (tmp_path / "b.parquet").unlink()
    monkeypatch.undo()
    armada.done(*told)
    assert (tmp_path / "b.parquet").read_bytes() == whole


def test_passages_of_another_corpus_ranks_and_margins(armada, bench, words, fingerprint):
    told = ("--passages", bench / "more.parquet", "--set", "passage_column=passage")
    told += ("--set", "range_min=1", "--set", "margin=0.1", "--set", "max_score=0.6")
    armada.done(*words, *told, "--negatives", "3", "--set", "scores=true")
    table = pq.read_table(words[words.index("--output") + 1]).to_pylist()
    wanted = nearest(bench, fingerprint, TEXTS)
    some_short = False
    for row in table:
        most = min(0.6, row["scores"][0] - 0.1)
        expected = [text for text, score in wanted[row["query"]][1:] if score <= most][:3]
        found = [row[f"negative_{n}"] for n in range(1, 4)]
        assert found == expected + [None] * (3 - len(expected))
        some_short |= len(expected) < 3
        assert len(row["scores"]) == 1 + len(expected)
    assert some_short


def test_pairs_can_be_read_by_a_cross_encoder(armada, words, tmp_path):
    armada.done(*words, "--set", "layout=pairs", "--negatives", "2", "--set", "scores=true")
    table = pq.read_table(tmp_path / "mined.parquet")
    assert table.column_names == ["query", "passage", "relevant", "score"]
    assert len(table) == 3 * len(PAIRS)
    rows = table.to_pylist()
    assert [(row["query"], row["passage"]) for row in rows[::3]] == PAIRS
    assert [row["relevant"] for row in rows[:6]] == [1, 0, 0, 1, 0, 0]
    assert len(read_corpus([str(tmp_path / "mined.parquet")], ["query", "passage"])) == len(rows)


def test_random_negatives_follow_from_the_seed(armada, words, tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = ("--output", tmp_path / f"{name}.parquet")
        armada.done(
            *words[:-3], *output, "--quiet", "--set", "sampling=random", "--set", f"seed={seed}"
        )
        found.append(pq.read_table(tmp_path / f"{name}.parquet"))
    assert found[0].equals(found[1])
    assert not found[0].equals(found[2])


def test_the_file_says_where_its_rows_come_from(armada, words, fingerprint, tmp_path):
    armada.done(*words, "--set", "margin=0.05")
    said = json.loads(pq.read_schema(tmp_path / "mined.parquet").metadata[b"armada"])
    assert (said["command"], said["round"], said["corpora"]) == ("mine", 1, ["pairs.parquet"])
    assert said["teacher"]["fingerprint"] == said["query_teacher"]["fingerprint"] == fingerprint
    assert (said["margin"], said["counts"]["pairs"]) == (0.05, len(PAIRS))
    assert str(tmp_path) not in json.dumps(said)


def test_lines_for_people(armada, words):
    lines = armada.done(*words, "--set", "margin=0.3").splitlines()
    assert lines[0] == "15 pairs, 13 different query texts, 15 different passages"
    assert lines[1].endswith("with fewer")
    assert lines[2].startswith("left out: 0 candidates above max_score, ")
    assert lines[3].endswith("mined.parquet: 15 rows")


def write(cache: Path, texts: list[str], vectors: Any, **settings: Any) -> str:
    """Embeddings of texts by a made-up teacher, whose fingerprint this is."""
    spec = FeatureSpec(name="embedding", shape=(len(vectors[0]),), dtype="float32")
    manifest = make_manifest([spec], **settings)
    with CacheWriter(cache, manifest) as writer:
        features = {"embedding": np.asarray(vectors, dtype=np.float32)}
        writer.commit(keys_of(texts), features, np.zeros(len(texts), dtype=bool))
    return manifest.fingerprint


def test_queries_may_have_a_teacher_of_their_own(armada, refused, write_parquet, tmp_path):
    """One whose prompt turns a query's embedding away from that of the same text as a passage."""
    queries, positives = ["q one", "q two"], ["p one", "p two"]
    file = write_parquet("pairs", {"question": queries, "answer": positives})
    others = write_parquet("others", {"answer": ["x", "y", *positives]})
    passages = [[1.0, 0.1], [0.1, 1.0], [0.9, 0.3], [0.3, 0.9]]
    by_passage = write(tmp_path / "cache", [*positives, "x", "y"], passages)
    by_query = write(tmp_path / "cache", queries, [[1, 0], [0, 1]], prompt="query: ")
    wide = write(tmp_path / "cache", queries, [[1, 0, 0], [0, 1, 0]], prompt="wide: ")
    words = ("mine", "--corpus", file, "--text-column", "question", "--text-column", "answer")
    words += ("--passages", others, "--cache", tmp_path / "cache", "--teacher", by_passage)
    words += ("--output", tmp_path / "mined.parquet", "--negatives", "2")
    assert "2 of 2 rows are not in the cache" in refused(*words)
    line = refused(*words, "--set", f"query_teacher={wide}")
    assert "query_teacher: its embeddings have 3 numbers, those of passages 2" in line
    armada.done(*words, "--set", f"query_teacher={by_query}")
    found = pq.read_table(tmp_path / "mined.parquet").select(["negative_1", "negative_2"])
    assert [list(row.values()) for row in found.to_pylist()] == [["x", "y"], ["y", "x"]]


@pytest.mark.parametrize(
    ("value", "problem"), [(0.0, "is zero, which has no cosine"), (np.nan, "is not finite")]
)
@pytest.mark.parametrize("at", [1, 4], ids=["query", "passage"])
def test_vectors_without_a_cosine_are_refused(refused, write_parquet, tmp_path, value, problem, at):
    texts = ["q one", "q two", "p one", "p two", "p three"]
    vectors = np.random.default_rng(0).standard_normal((5, 3))
    vectors[at] = value
    write(tmp_path / "cache", texts, vectors)
    file = write_parquet("pairs", {"q": [*texts[:2], "q two"], "p": texts[2:]})
    words = ("mine", "--corpus", file, "--text-column", "q", "--text-column", "p", "--negatives")
    line = refused(
        *words, "1", "--cache", tmp_path / "cache", "--output", tmp_path / "mined.parquet"
    )
    assert f"row {at + 1 if at == 1 else 3} {problem}" in line


def test_what_cannot_be_mined_is_refused(refused, bench, words, write_parquet):
    assert "negatives 15: there are 15 different passages, one of them the positive" in refused(
        *words, "--negatives", "15"
    )
    assert "range_min 98, range_max 100: leave fewer than negatives=4" in refused(
        *words, "--set", "range_min=98"
    )
    assert "passage_column: is of passages" in refused(*words, "--set", "passage_column=x")
    assert "none is left of the candidates" in refused(*words, "--set", "max_score=-2")
    assert "feature 'logits': teacher" in refused(*words, "--set", "feature=logits")
    at = words.index("--output") + 1
    csv = [*words[:at], words[at].with_suffix(".csv"), *words[at + 1 :]]
    assert "is no .parquet file" in refused(*csv)
    strange = write_parquet("strange", {"question": ["never seen"], "answer": [TEXTS[0]]})
    mined = [strange if word == bench / "pairs.parquet" else word for word in words]
    assert "1 of 1 rows are not in the cache" in refused(*mined)
    more = write_parquet("more", {"passage": [*TEXTS[:9], "never seen"]})
    told = (*words, "--passages", more, "--set", "passage_column=passage")
    assert "1 of 10 rows are not in the cache" in refused(*told)


def test_texts_that_are_not_cached_may_be_left_out(armada, words, bench, write_parquet):
    rows = [*PAIRS, ("never seen", TEXTS[0]), (TEXTS[1], "nor this")]
    queries, positives = map(list, zip(*rows, strict=True))
    file = write_parquet("pairs", {"question": queries, "answer": positives})
    told = [file if word == bench / "pairs.parquet" else word for word in words]
    report = json.loads(armada.done(*told, "--skip-bad-rows", "--json"))
    assert (report["pairs"], len(report["skipped"])) == (len(PAIRS), 2)
    assert all("not in the cache" in line for line in report["skipped"])


def test_an_approximate_search_tells_its_recall(armada, words, tmp_path):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    armada.done(*words)
    told = ["--set", f"output={tmp_path / 'near.parquet'}", "--set", "index=ivf"]
    at = words.index("--output")
    words = [*words[:at], *words[at + 2 :], *told]
    report = json.loads(armada.done(*words, "--json"))
    assert report["recall"] == 1.0  # so few passages are in one cell
    found = pq.read_table(tmp_path / "near.parquet")
    assert found.equals(pq.read_table(tmp_path / "mined.parquet"))
    provenance = json.loads(found.schema.metadata[b"armada"])
    assert (provenance["index"], provenance["recall"]) == ("ivf", 1.0)
    (tmp_path / "near.parquet").unlink()
    assert "100.0 % of the nearest passages were found" in armada.done(*words)
