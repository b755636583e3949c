"""Measures of rankings, by hand and against pytrec_eval; of pairs, by hand."""

import numpy as np
import pytest
from armada.cache_schemas.errors import InputError
from armada.stages.retrieval.metrics import (
    Judgements,
    average_precision,
    best_f1,
    depth_of,
    query_metrics,
    retrieval_metrics,
    trec_order,
)
from armada.stages.retrieval.search import search

NAMES = ("ndcg@3", "ndcg@10", "recall@5", "precision@5", "mrr@4", "map@10", "map@50", "recall@50")
TREC = {"ndcg": "ndcg_cut_{}", "recall": "recall_{}", "precision": "P_{}", "map": "map_cut_{}"}


def judgements(grades: dict[tuple[int, int], int], queries: int) -> Judgements:
    pairs = np.array([*grades], dtype=np.int64).reshape(-1, 2)
    return Judgements(pairs[:, 0], pairs[:, 1], np.array([*grades.values()], np.int64), queries)


def test_a_ranking_by_hand() -> None:
    judged = judgements({(0, 7): 2, (0, 4): 1, (0, 9): 1, (0, 1): 0}, 1)
    found = query_metrics(
        np.array([[4, 1, 7, 3]]),
        judged,
        ("ndcg@4", "recall@2", "precision@3", "mrr@4", "map@4", "success@2"),
    )
    best = 2 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4)
    expected = {
        "ndcg@4": (1 / np.log2(2) + 2 / np.log2(4)) / best,
        "recall@2": 1 / 3,
        "precision@3": 2 / 3,
        "mrr@4": 1.0,
        "map@4": (1 + 2 / 3) / 3,
        "success@2": 1.0,
    }
    assert {name: float(value) for name, (value,) in found.items()} == pytest.approx(expected)


def test_queries_without_a_relevant_passage_are_not_averaged_in() -> None:
    judged = judgements({(0, 3): 1, (1, 3): 0, (3, 2): 1}, 4)
    ranking = np.array([[3, 2], [3, 2], [3, 2], [-1, -1]])
    each = query_metrics(ranking, judged, ("ndcg@2", "mrr@2"))
    np.testing.assert_array_equal(each["ndcg@2"], [1, np.nan, np.nan, 0])
    assert retrieval_metrics(ranking, judged, ("ndcg@2", "mrr@2")) == {"ndcg@2": 0.5, "mrr@2": 0.5}
    with pytest.raises(InputError, match="no query has a relevant passage"):
        retrieval_metrics(ranking, judgements({(1, 3): 0}, 4))


def test_without_any_judgement_or_result() -> None:
    nothing = judgements({}, 2)
    assert np.isnan(query_metrics(np.zeros((2, 3), np.int64), nothing)["ndcg@10"]).all()
    found = query_metrics(np.empty((2, 0), np.int64), judgements({(1, 4): 1}, 2))
    assert all(values[1] == 0 for values in found.values())


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "ndcg@-1", "mrr@ten", "hit@3", "recall@1 "])
def test_unknown_metrics_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not one of ndcg@k, recall@k"):
        depth_of([name])


def test_depth_is_the_largest_k() -> None:
    assert depth_of(["ndcg@10", "recall@100", "mrr@1"]) == 100


@pytest.mark.parametrize("seed", range(6))
def test_the_same_as_pytrec_eval(seed: int) -> None:
    """With grades below 0, ties (scores of few values), queries without relevant passages."""
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="the reference is not installed")
    drawn = np.random.default_rng(seed)
    queries, passages, depth = 30, 60, 50
    names = [f"d{number}" for number in range(passages)]  # d10 stands before d9
    scores = drawn.integers(0, 8, (queries, passages)) / 8
    if seed % 2:
        scores = drawn.standard_normal((queries, passages))
    grades = {
        (query, passage): int(drawn.integers(-1, 4) if query % 7 else drawn.integers(-1, 1))
        for query in range(queries)
        for passage in drawn.choice(passages, drawn.integers(1, 30), replace=False).tolist()
    }
    rows = np.stack([trec_order(row, names)[:depth] for row in scores])
    ours = query_metrics(rows, judgements(grades, queries), NAMES)
    theirs = of_pytrec_eval(pytrec_eval, names, scores, rows, grades)
    for name in NAMES:
        relevant = ~np.isnan(ours[name])
        assert 20 < relevant.sum() < queries
        np.testing.assert_allclose(ours[name][relevant], theirs[name][relevant], atol=1e-9)


def of_pytrec_eval(pytrec_eval, names, scores, rows, grades):  # type: ignore[no-untyped-def]
    qrel: dict[str, dict[str, int]] = {}
    for (query, passage), grade in grades.items():
        qrel.setdefault(str(query), {})[names[passage]] = grade
    found = {}
    for name in NAMES:
        kind, k = name.split("@")
        wanted = TREC.get(kind, "recip_rank").format(k)
        most = int(k) if kind == "mrr" else rows.shape[1]
        run = {
            str(query): {names[at]: float(scores[query, at]) for at in rows[query, :most]}
            for query in range(len(scores))
        }
        each = pytrec_eval.RelevanceEvaluator(qrel, {re_parsed(wanted)}).evaluate(run)
        found[name] = np.array([each[str(query)][wanted] for query in range(len(scores))])
    return found


def re_parsed(name: str) -> str:
    """`ndcg_cut_10` as it is to be named: `ndcg_cut.10`."""
    kind, _, k = name.rpartition("_")
    return f"{kind}.{k}" if k.isdigit() else name


def test_search_among_passages_sorted_by_name_ranks_as_trec_eval_does() -> None:
    names = [f"d{number}" for number in range(300)]
    drawn = np.random.default_rng(0)
    queries = drawn.integers(-1, 2, (8, 3)).astype(np.float32)
    passages = drawn.integers(-1, 2, (300, 3)).astype(np.float32)
    last_first = np.array(sorted(range(300), key=names.__getitem__, reverse=True))
    found = last_first[search(queries, passages[last_first], 40, "dot").rows_QK]
    for query, row in zip(queries, found, strict=True):
        np.testing.assert_array_equal(row, trec_order(passages @ query, names)[:40])


def test_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.1])
    holds = np.array([True, False, True, False])
    # Thresholds 0.9: precision 1, recall 1/2; 0.8: 2/3 and 1.
    assert average_precision(scores, holds) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(average_precision(scores, np.zeros(4, bool)))


def test_the_best_threshold_lies_between_two_scores() -> None:
    f1, threshold = best_f1(np.array([0.2, 0.9, 0.7, 0.5]), np.array([False, True, True, False]))
    assert (f1, threshold) == (1.0, pytest.approx(0.6))
    f1, threshold = best_f1(np.array([0.2, 0.2]), np.array([True, False]))
    assert (f1, threshold) == (pytest.approx(2 / 3), 0.2)
    assert np.isnan(best_f1(np.array([0.2]), np.array([False]))).all()
