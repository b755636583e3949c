"""Scores of pairs by a server's reranker: `POST /rerank` or `POST /score` -> feature `score` [1].

The corpus has two text columns: a query, and a document. Neighbours in it with the same query share
a request. What a score means, a logit or a probability, is the server's matter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....cache_schemas.errors import JobError
from ....cache_schemas.features import FeatureSpec
from ..teachers.base import Answers, Example
from . import scores
from .feature_api import FeatureApi
from .options import OpenAIOptions
from .requests import CHARACTERS_PER_TOKEN, Query
from .wire import Usage

Pair = tuple[str, str]


class ScoreApi(FeatureApi):
    """Feature `score` of each pair."""

    probe = ("Which animal jumps?", *FeatureApi.probe)

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        self._model, self._options = model, options
        self.path = f"/{options.api}"
        self.together = options.texts_per_request

    def content(self, example: Example) -> Pair:
        """Query and document. Raises JobError for another number of texts."""
        if len(example.segments) != 2:
            raise JobError(
                f"text_column: {len(example.segments)} given; api={self._options.api} scores "
                "pairs: give two, of the query and of the document"
            )
        query, document = example.segments
        return query, document

    def fit(self, one: Query, other: Query) -> bool:
        """Whether both are of one query."""
        return bool(one.content[0] == other.content[0])

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        query = queries[0].content[0]
        documents = [each.content[1] for each in queries]
        if self._options.api == "score":
            return scores.score_body(self._model, query, documents)
        texts = self._options.documents_name == "texts"
        return scores.rerank_body(self._model, query, documents, texts)

    def read(self, document: Any, count: int) -> Sequence[np.float32]:
        """One score for each document."""
        return list(scores.read(document, count))

    def requests(self, queries: int) -> int:
        """See Api: neighbours may have different queries."""
        return queries

    def expected(self, queries: Sequence[Query]) -> Usage:
        """See Api: a reranker reads the query with each document."""
        characters = sum(len(text) for each in queries for text in each.content)
        return Usage(characters // CHARACTERS_PER_TOKEN, 0)

    def features(self, answer: np.float32 | None) -> list[FeatureSpec]:
        """The score."""
        return [
            FeatureSpec(
                name="score",
                shape=(1,),
                dtype=self._options.store_dtype,
                description="score of query and document, as the server says",
            )
        ]

    def answers(self, found: Sequence[np.float32 | None], contents: Sequence[Any]) -> Answers:
        """[B, 1]."""
        rows = np.array([[0 if each is None else each] for each in found], dtype=np.float32)
        return Answers({"score": rows}, np.zeros(len(found), dtype=bool))

    def distance(self, one: np.float32, other: np.float32) -> float:
        """Their difference, beside their size."""
        size = max(abs(float(one)), abs(float(other)), 1.0)
        return abs(float(one) - float(other)) / size
