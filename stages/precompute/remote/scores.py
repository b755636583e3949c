"""POST /rerank and POST /score: one score for each pair of a query and a document.

What a score means is the server's matter: a logit (llama.cpp, TEI with `raw_scores`) or a
probability (vLLM, hosted ones). They are taken over as they are.

/rerank has two dialects, which differ in one name of the request and in the form of the reply:
`documents` and an object with `results` of `relevance_score` (Jina, Cohere, vLLM, llama.cpp), or
`texts` and a bare list of `score` (TEI). Both come by descending score, and are put in order here.

Shapes: N documents or pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .embeddings import Float32
from .wire import MalformedReplyError, a_list, a_number, a_reply, in_order, malformed, with_extra


def rerank_body(
    model: str,
    query: str,
    documents: Sequence[str],
    texts: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request for the scores of all documents [N] for one query. `texts`: in TEI's dialect.

    Raises JobError for an extra field that is set already."""
    body: dict[str, Any] = {"model": model, "query": query}
    if texts:
        # What is too long for the model is refused, not cut, as elsewhere.
        body |= {"texts": list(documents), "truncate": False}
    else:
        body |= {
            "documents": list(documents),
            "top_n": len(documents),
            "return_documents": False,
        }
    return with_extra(body, extra or {})


def score_body(
    model: str,
    queries: str | Sequence[str],
    documents: Sequence[str],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request for the scores of pairs [N], or of one query with each document. Raises JobError
    for an extra field that is set already."""
    first = queries if isinstance(queries, str) else list(queries)
    body = {"model": model, "text_1": first, "text_2": list(documents)}
    return with_extra(body, extra or {})


def read(reply: object, count: int) -> Float32:
    """Scores [N] in the order of the documents, of which there were `count`, one or more.

    Raises MalformedReplyError for missing, duplicated and unknown ones, and for what is no finite
    number in float32."""
    name, items = _items(reply)
    placed = in_order(items, name, count, "scores")
    scores = np.array([_score(item, f"{name} {at}") for at, item in enumerate(placed)], np.float64)
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise MalformedReplyError(f"{name} has a score that is not finite in float32")
    return narrow


def _items(reply: object) -> tuple[str, list[Any]]:
    if isinstance(reply, list):
        return "reply", reply
    fields = a_reply(reply)
    name = "results" if "results" in fields else "data"
    return name, a_list(fields.get(name), name)


def _score(item: dict[str, Any], name: str) -> float:
    value = item.get("relevance_score", item.get("score"))
    if isinstance(value, list):
        raise malformed(f"{name}.score", value, "one number: the model has several classes")
    return a_number(value, f"{name}.score")
