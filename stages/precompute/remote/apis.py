"""The APIs of an endpoint, and the features that their answers are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.features import FeatureSpec
from ..teachers.base import Answers, Example
from . import embeddings
from .feature_api import FeatureApi
from .options import OpenAIOptions
from .requests import CHARACTERS_PER_TOKEN, Query
from .score_api import ScoreApi
from .wire import MalformedReplyError, Usage


class EmbeddingApi(FeatureApi):
    """`POST /embeddings` -> feature `embedding` [D]."""

    path = "/embeddings"

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        self._model, self._options = model, options
        self.together = options.texts_per_request
        self._width: int | None = options.dimensions

    def content(self, example: Example) -> str:
        """The text."""
        return self._options.text(example.segments)

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        texts = [each.content for each in queries]
        return embeddings.body(self._model, texts, self._options.dimensions)

    def read(self, document: Any, count: int) -> Sequence[npt.NDArray[np.float32]]:
        """One vector for each text."""
        found = embeddings.read(document, count)
        if self._width is not None and found.shape[1] != self._width:
            raise MalformedReplyError(
                f"embeddings have {found.shape[1]} numbers, not {self._width}"
            )
        return list(found)

    def expected(self, queries: Sequence[Query]) -> Usage:
        """See Api."""
        return Usage(sum(len(each.content) for each in queries) // CHARACTERS_PER_TOKEN, 0)

    def features(self, answer: npt.NDArray[np.float32] | None) -> list[FeatureSpec]:
        """The embedding, as wide as this one."""
        if answer is not None:
            self._width = len(answer)
        assert self._width is not None
        return [
            FeatureSpec(
                name="embedding",
                shape=(self._width,),
                dtype=self._options.store_dtype,
                description="embedding of the text",
            )
        ]

    def answers(
        self, found: Sequence[npt.NDArray[np.float32] | None], contents: Sequence[Any]
    ) -> Answers:
        """[B, D]."""
        none = np.zeros(self._width or 0, dtype=np.float32)
        rows = np.stack([none if each is None else each for each in found])
        return Answers({"embedding": rows}, np.zeros(len(found), dtype=bool))

    def distance(self, one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
        """Half of one minus their cosine."""
        product = float(one @ other) / (float(np.linalg.norm(one) * np.linalg.norm(other)) or 1.0)
        return (1 - product) / 2


def make_api(model: str, options: OpenAIOptions, device: torch.device) -> FeatureApi:
    """The API of some options; `device`: of what answers go through here. Raises TeacherSourceError
    or JobError for a tokenizer or an image encoder."""
    if options.api == "embeddings":
        return EmbeddingApi(model, options)
    if options.api == "images":
        from .image_api import ImageApi

        return ImageApi(model, options, device)
    if options.api in ("rerank", "score"):
        return ScoreApi(model, options)
    if options.api == "given":
        from .given_api import GivenApi

        return GivenApi(model, options)
    if options.api == "choices":
        from .choices_api import ChoicesApi

        return ChoicesApi(model, options)
    from .generation_api import GenerationApi

    return GenerationApi(model, options)
