"""`armada evaluate` of a student that embeds: BEIR folders, pairs, a cache; by second routes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada import open_cache
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.retrieval import evaluate
from armada.pipeline.student_jobs import EvaluateJob
from armada.stages.distill.measures import linear_cka
from beir_folders import write_beir, write_qrels
from tiny_embeddings import encode
from tiny_runs import TEXTS

PASSAGES = {f"d{number}": ("the", text) for number, text in enumerate(TEXTS)}
QUERIES = {f"q{number}": f"{text} indeed" for number, text in enumerate(TEXTS[:6])}
JUDGED = [
    *((f"q{number}", f"d{number}", 2) for number in range(5)),
    *((f"q{number}", f"d{number + 9}", 1) for number in range(4)),
    ("q5", "d5", 0),
]


@pytest.fixture(scope="module")
def student(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student of a feature."""
    output = tmp_path_factory.mktemp("embedder") / "run"
    keys = {
        "train": str(distill_bench.train),
        "text_column": "text",
        "cache": str(distill_bench.cache),
        "teacher": distill_bench.hash,
        "objective": "feature",
        "student": str(distill_bench.student),
        "epochs": 1,
        "output": str(output),
    }
    run_distill(DistillJob.model_validate(keys), quiet=True)
    return output / "student"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "beir", PASSAGES, QUERIES, JUDGED)


def unit(vectors: np.ndarray) -> np.ndarray:
    found = vectors.astype(np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_search_in_a_beir_folder_is_measured_as_pytrec_eval_does(armada, student, folder):
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="the reference is not installed")
    names = ["ndcg@3", "ndcg@10", "recall@5", "map@20"]
    told = ("--set", f"retrieval_metrics=[{','.join(names)}]")
    found = json.loads(armada.done("evaluate", student, "--beir", folder, *told, "--json"))
    passages = unit(encode(student, [f"the {text}" for text in TEXTS]))
    cosines = unit(encode(student, list(QUERIES.values()))) @ passages.T
    run = {
        query: {f"d{at}": float(score) for at, score in enumerate(row)}
        for query, row in zip(QUERIES, cosines, strict=True)
    }
    qrel: dict[str, dict[str, int]] = {}
    for query, passage, grade in JUDGED:
        qrel.setdefault(query, {})[passage] = grade
    measures = {"ndcg_cut.3,10", "recall.5", "map_cut.20"}
    each = pytrec_eval.RelevanceEvaluator(qrel, measures).evaluate(run)
    theirs = ["ndcg_cut_3", "ndcg_cut_10", "recall_5", "map_cut_20"]
    expected = {
        name: np.mean([each[f"q{number}"][key] for number in range(5)])
        for name, key in zip(names, theirs, strict=True)
    }
    assert found["metrics"] == pytest.approx(expected, abs=1e-9)
    assert (found["examples"], found["passages"]) == (6, len(TEXTS))
    assert found["queries_without_relevant"] == 1
    assert found["texts_per_second"] > 0
    assert found["model_bytes"] > (student / "model.safetensors").stat().st_size * 0.9


def test_lines_for_people_say_what_was_searched(armada, student, folder):
    lines = armada.done("evaluate", student, "--beir", folder, "--split", "test").splitlines()
    without = "1 without a relevant passage, not counted"
    assert lines[0] == f"6 queries, {len(TEXTS)} passages, {without}"
    metrics = [line.split()[0] for line in lines[1:-1]]
    assert metrics == ["ndcg@10", "recall@10", "recall@100", "mrr@10", "map@100"]
    assert "texts a second on this machine" in lines[-1]


def test_a_passage_with_the_id_of_the_query_is_not_found(armada, student, tmp_path):
    passages = {"q0": ("", QUERIES["q0"]), "d": ("", "another text")}
    folder = write_beir(tmp_path / "beir", passages, QUERIES, [("q0", "d", 1)])
    found = json.loads(armada.done("evaluate", student, "--beir", folder, "--json"))
    assert found["metrics"]["mrr@10"] == 1.0


def columns(count: int) -> dict[str, Any]:
    return {"one": TEXTS[:count], "other": TEXTS[count : 2 * count]}


def test_scores_of_pairs_are_correlated_with_cosines(armada, student, distill_bench, write_parquet):
    from scipy.stats import pearsonr, spearmanr

    scores = [*np.random.default_rng(0).random(10), None]
    file = write_parquet("pairs", columns(11) | {"score": scores})
    words = ("--text-column", "one", "--text-column", "other", "--label-column", "score")
    found = json.loads(armada.done("evaluate", student, "--corpus", file, *words, "--json"))
    one, other = (unit(encode(student, each[:10])) for each in columns(11).values())
    cosines = (one * other).sum(axis=1)
    expected = {
        "pearson": pearsonr(cosines, scores[:10]).statistic,
        "spearman": spearmanr(cosines, scores[:10]).statistic,
    }
    assert found["metrics"] == pytest.approx(expected, abs=1e-4)
    assert (found["examples"], found["unlabelled_examples"]) == (10, 1)
    # With the teacher's cache, its own figures beside them.
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8], "--json")
    both = json.loads(armada.done("evaluate", student, "--corpus", file, *words, *named))["metrics"]
    cache = open_cache(distill_bench.cache, distill_bench.hash[:8])
    one, other = (
        unit(cache["embedding"][cache.lookup(each[:10])]) for each in columns(11).values()
    )
    of_teacher = spearmanr((one * other).sum(axis=1), scores[:10]).statistic
    assert both["teacher_spearman"] == pytest.approx(of_teacher)
    assert {name: both[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_pairs_that_match_or_do_not_are_classified(armada, student, write_parquet):
    from sklearn.metrics import average_precision_score, f1_score

    labels = [1, 0, 0, 1, 1, 0, 0, 1, 0, 0]
    file = write_parquet("pairs", columns(10) | {"same": labels})
    words = ("--text-column", "one", "--text-column", "other", "--label-column", "same")
    told = ("--set", "similarity=euclid", "--json")
    found = json.loads(armada.done("evaluate", student, "--corpus", file, *words, *told))["metrics"]
    one, other = (encode(student, each).astype(np.float64) for each in columns(10).values())
    scores = -np.square(one - other).sum(axis=1)
    expected = average_precision_score(labels, scores)
    assert found["average_precision"] == pytest.approx(expected, abs=1e-9)
    assert found["f1"] == pytest.approx(f1_score(labels, scores >= found["f1_threshold"]))
    assert found["f1"] == pytest.approx(max(f1_score(labels, scores >= each) for each in scores))


def test_a_cache_gives_cka_and_neighbours_too(armada, student, distill_bench):
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    words = ("evaluate", student, "--corpus", distill_bench.train, "--json")
    found = json.loads(armada.done(*words, *named))["metrics"]
    cache = open_cache(distill_bench.cache, distill_bench.hash[:8])
    theirs = cache["embedding"][cache.lookup(TEXTS)].astype(np.float64)
    ours = encode(student, TEXTS).astype(np.float64)
    assert found["cka"] == pytest.approx(linear_cka(ours, theirs), abs=1e-4)
    near = [unit(each) @ unit(each).T - 9 * np.eye(len(TEXTS)) for each in (ours, theirs)]
    tops = [np.argsort(-each, axis=1)[:, :10] for each in near]
    shared = [len({*a} & {*b}) / 10 for a, b in zip(*tops, strict=True)]
    assert found["neighbour_overlap@10"] == pytest.approx(np.mean(shared), abs=0.01)


def test_students_without_embeddings_and_of_several_segments_are_refused(
    armada, refused, distill_bench, folder, tmp_path
):
    told = ("--set", "epochs=1")
    armada.done(*distill_bench.words(tmp_path / "labels", *told, control="undistilled"))
    line = refused("evaluate", tmp_path / "labels", "--beir", folder)
    assert "predicts labels and has no embeddings to compare" in line


def test_pairs_and_folders_that_cannot_be_measured_are_refused(
    refused, student, distill_bench, folder, write_parquet
):
    file = write_parquet(
        "pairs", columns(3) | {"name": ["a", "b", "c"], "all": [1, 1, 1], "one_of": [1, None, None]}
    )
    both = ("--text-column", "one", "--text-column", "other")
    pairs = ("evaluate", student, "--corpus", file, *both)
    assert "name one label_column" in refused(*pairs)
    assert "holds large_string, and pairs" in refused(*pairs, "--label-column", "name")
    assert "all labels are 1" in refused(*pairs, "--label-column", "all")
    assert "1 pairs have a label; it takes 2" in refused(*pairs, "--label-column", "one_of")
    named = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash[:8])
    strange = write_parquet("strange", {"one": ["a", "b"], "other": TEXTS[:2], "score": [0.1, 0.2]})
    words = ("evaluate", student, "--corpus", strange, *both, "--label-column", "score")
    assert "2 of 2 rows are not in the cache" in refused(*words, *named)
    beir = ("evaluate", student, "--beir", folder)
    assert "corpus, beir, mteb: name one of them" in refused(*beir, "--corpus", file)
    assert "corpus, beir, mteb: name one of them" in refused("evaluate", student)
    assert "label_column: not with beir" in refused(*beir, "--label-column", "x")
    assert "split: needs beir" in refused(*pairs, "--split", "dev")
    assert "metric 'ndcg': is not one of" in refused(*beir, "--set", "retrieval_metrics=ndcg")
    assert "has no split 'dev'; it has test" in refused(*beir, "--split", "dev")
    write_qrels(folder, [("q0", "d0", 0)])
    assert "no query of split 'test' has a relevant passage" in refused(*beir)


def test_a_search_among_the_passages_of_a_teacher(
    armada, student, folder, refused, distill_bench, tmp_path
):
    """Queries by the student, passages as they are cached, by their titles and texts."""
    columns = ("--text-column", "title?", "--text-column", "text?", "--quiet")
    for name, width in (("cache", 6), ("wide", 7)):
        teacher = ("--teacher", f"hash:{width}", "--cache", tmp_path / name)
        armada.done("precompute", "--corpus", folder / "corpus.jsonl", *columns, *teacher)
    words = ("evaluate", student, "--beir", folder)
    told = ("--set", "retrieval_metrics=[mrr@10]", "--json")
    found = json.loads(armada.done(*words, "--cache", tmp_path / "cache", *told))["metrics"]
    cache = open_cache(tmp_path / "cache")
    passages = unit(cache["embedding"][cache.lookup([tuple(both) for both in PASSAGES.values()])])
    cosines = unit(encode(student, list(QUERIES.values()))) @ passages.T
    ids, ranks = list(PASSAGES), []
    for row, query in enumerate(QUERIES):
        good = {passage for name, passage, grade in JUDGED if name == query and grade > 0}
        order = [ids[at] for at in np.argsort(-cosines[row], kind="stable")][:10]
        if good:
            ranks.append(next((1 / (at + 1) for at, p in enumerate(order) if p in good), 0))
    assert found["mrr@10"] == pytest.approx(np.mean(ranks), abs=1e-9)
    assert "passages have 7 numbers" in refused(*words, "--cache", tmp_path / "wide")
    others = ("--cache", distill_bench.cache, "--teacher", distill_bench.hash)
    assert "are not in the cache" in refused(*words, *others)


def test_the_search_is_on_the_device_of_the_student(student, folder, monkeypatch):
    used = []

    class Told(evaluate.BestPassages):
        def __init__(self, *given: Any) -> None:
            used.append(given[4:])
            super().__init__(*given)

    monkeypatch.setattr(evaluate, "BestPassages", Told)
    job = EvaluateJob(student=student, beir=folder, device="cpu")
    evaluate.evaluate_beir(job, student)
    assert used == [(torch.device("cpu"),)]


def test_a_search_among_vectors_in_fewer_bytes(armada, student, folder):
    from sentence_transformers.util.quantization import quantize_embeddings

    told = ("--set", "precision=[int8, ubinary]", "--set", "truncate_dim=4")
    words = ("evaluate", student, "--beir", folder, "--set", "retrieval_metrics=[mrr@10]")
    found = json.loads(armada.done(*words, *told, "--json"))
    table = found["by_precision"]
    assert {name: row["vector_bytes"] for name, row in table.items()} == {
        "float32[6]": 24,
        "int8[6]": 6,
        "ubinary[6]": 1,
        "float32[4]": 16,
        "int8[4]": 4,
        "ubinary[4]": 1,
    }
    whole = found["metrics"]["mrr@10"]
    assert table["float32[6]"]["mrr@10"] == whole
    passages = np.asarray(encode(student, [f"the {text}" for text in TEXTS]))
    queries = np.asarray(encode(student, list(QUERIES.values())))

    def mrr(scores: np.ndarray) -> float:
        # Of equal scores the passage whose id comes last is first.
        names = [f"d{at}" for at in range(len(TEXTS))]
        last_first = sorted(range(len(TEXTS)), key=lambda at: names[at], reverse=True)
        total = 0.0
        for query in range(5):
            order = sorted(last_first, key=lambda at: -scores[query, at])
            relevant = {f"d{query}"} | ({f"d{query + 9}"} if query < 4 else set())
            ranks = [1 + at for at, row in enumerate(order[:10]) if names[row] in relevant]
            total += 1 / min(ranks) if ranks else 0
        return total / 5

    for dim in (6, 4):
        one, other = unit(queries[:, :dim]), unit(passages[:, :dim])
        assert table[f"float32[{dim}]"]["mrr@10"] == pytest.approx(mrr(one @ other.T))
        codes = [
            quantize_embeddings(each.astype(np.float32), "int8", calibration_embeddings=other)
            for each in (one, other)
        ]
        expected = mrr(np.round(unit(codes[0]) @ unit(codes[1]).T, 6))
        assert table[f"int8[{dim}]"]["mrr@10"] == pytest.approx(expected)
        signs = [np.where(each > 0, 1, -1) for each in (queries[:, :dim], passages[:, :dim])]
        bits = table[f"ubinary[{dim}]"]
        assert bits["mrr@10"] == pytest.approx(mrr(signs[0] @ signs[1].T))
        assert bits["mrr@10_difference"] == pytest.approx(bits["mrr@10"] - whole)
    # Among all passages, found by their bits, whole queries find the best by themselves.
    told = ("--set", "precision=ubinary", "--set", f"rescore_multiplier={len(TEXTS)}")
    row = json.loads(armada.done(*words, *told, "--json"))["by_precision"]["ubinary[6] rescored"]
    signs = np.where(passages > 0, 1, -1)
    assert row["mrr@10"] == pytest.approx(mrr(np.round(unit(queries) @ unit(signs).T, 6)))
    lines = armada.done(*words, *told).splitlines()
    assert lines[2].split() == ["float32[6]", "24", "bytes", "mrr@10", f"{whole:.4f}"]
    assert lines[3].startswith("ubinary[6] rescored       1 bytes  mrr@10 ")


def test_pairs_of_vectors_in_fewer_bytes(armada, student, refused, write_parquet):
    from scipy.stats import spearmanr

    scores = np.random.default_rng(0).random(10)
    file = write_parquet("pairs", columns(10) | {"score": scores})
    words = ("evaluate", student, "--corpus", file, "--label-column", "score")
    both = ("--text-column", "one", "--text-column", "other")
    told = ("--set", "precision=[uint8, binary]", "--json")
    found = json.loads(armada.done(*words, *both, *told))
    one, other = (np.asarray(encode(student, each)) for each in columns(10).values())
    signs = [np.where(each > 0, 1, -1) for each in (one, other)]
    of_bits = spearmanr((signs[0] * signs[1]).sum(axis=1), scores).statistic
    table = found["by_precision"]
    assert table["binary[6]"]["spearman"] == pytest.approx(of_bits)
    assert table["uint8[6]"]["vector_bytes"] == 6
    assert "pearson_difference" in table["uint8[6]"]
    line = refused(*words, "--set", "precision=int8")
    assert "precision: of searches and of pairs; name beir" in line
    assert "truncate_dim 6: an embedding has 6 numbers" in refused(
        *words, *both, "--set", "truncate_dim=6"
    )
    assert "name beir and a precision" in refused(
        *words, *both, "--set", "precision=int8", "--set", "rescore_multiplier=2"
    )
    assert "precision" in refused(*words, *both, "--set", "precision=int4")
