"""Replies of /rerank and /score."""

import json
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError
from armada.stages.precompute.remote.scores import read, rerank_body, score_body
from armada.stages.precompute.remote.wire import MalformedReplyError
from hypothesis import given
from hypothesis import strategies as st

Scores = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)
DIALECTS = {
    "jina": lambda items: {
        "results": [{"index": at, "relevance_score": score} for at, score in items]
    },
    "tei": lambda items: [{"index": at, "score": score} for at, score in items],
    "vllm": lambda items: {
        "data": [{"index": at, "object": "score", "score": score} for at, score in items]
    },
}


@pytest.mark.parametrize("dialect", DIALECTS)
@given(scores=Scores)
def test_scores_are_in_the_order_of_the_documents(dialect: str, scores: list[float]) -> None:
    descending = sorted(enumerate(scores), key=lambda item: -item[1])
    reply = json.loads(json.dumps(DIALECTS[dialect](descending)))
    found = read(reply, len(scores))
    assert found.dtype == np.float32
    assert found.tolist() == scores


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"results": []}, "0 of 2 scores; that of index 0"),
        ([{"index": 0, "score": 1}, {"index": 0, "score": 1}], "two scores of index 0"),
        ([{"index": 0, "score": 1}, {"index": 2, "score": 1}], "index is 2, not one of 2"),
        ([{"index": 0, "score": 1}, {"index": 1}], "score is None"),
        ([{"index": 0, "score": 1}, {"index": 1, "score": float("nan")}], "score is nan"),
        ([{"index": 0, "score": 1}, {"index": 1, "score": 1e39}], "not finite in float32"),
        ([{"index": 0, "score": 1}, {"index": 1, "score": [1, 2]}], "several classes"),
        ([{"index": 0, "score": 1}, {"index": 1, "score": "1"}], "'1', not a finite number"),
        ({"data": None}, "data is None"),
        ({"error": "Busy"}, "reply is an error: 'Busy'"),
        ("x", "reply is 'x'"),
    ],
)
def test_refuses_what_is_no_score_of_each_pair(reply: Any, message: str) -> None:
    with pytest.raises(MalformedReplyError, match=message):
        read(reply, 2)


def test_asks_for_all_documents_in_either_dialect() -> None:
    assert rerank_body("m", "q", ("a", "b")) == {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
        "top_n": 2,
        "return_documents": False,
    }
    assert rerank_body("m", "q", ["a"], texts=True, extra={"raw_scores": True}) == {
        "model": "m",
        "query": "q",
        "texts": ["a"],
        "truncate": False,
        "raw_scores": True,
    }
    assert score_body("m", ("p", "q"), ("a", "b")) == {
        "model": "m",
        "text_1": ["p", "q"],
        "text_2": ["a", "b"],
    }
    assert score_body("m", "q", ("a", "b"))["text_1"] == "q"
    with pytest.raises(JobError, match="'top_n'"):
        rerank_body("m", "q", ["a"], extra={"top_n": 1})
