"""Embeddings of texts as an engine pools them (its runner `pooling`).

How a text is pooled, and whether the embedding has length 1, is what the checkpoint declares
(`modules.json` of sentence-transformers), else the engine's own choice for the architecture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.errors import JobError, TeacherOutputError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...pretrained import DEFAULT_MAX_LENGTH, choose_length, least_length
from ..teachers.base import Answers, Example
from .options import VLLMOptions
from .source import EngineSource, Found, Request, Task


@dataclass(frozen=True, slots=True)
class TextIds:
    """The token ids of N texts, and which of them were truncated, [N]."""

    ids: Sequence[list[int]]
    truncated: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> "TextIds":
        """Some of the texts, in the order of `rows` [B]."""
        return TextIds([self.ids[row] for row in rows.tolist()], self.truncated[rows])


class EmbeddingTask(Task):
    """`runner=pooling`: feature `embedding` [D]."""

    def __init__(self, source: EngineSource, options: VLLMOptions) -> None:
        """Raises JobError for a length that the model does not take."""
        self._options, self._tokenizer = options, source.tokenizer
        self._width = source.width
        least = least_length(source.tokenizer)
        self._max_length = choose_length(
            options.max_length, source.positions, DEFAULT_MAX_LENGTH, least, JobError
        )

    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return {"max_length": self._max_length}

    def features(self) -> list[FeatureSpec]:
        """The embedding."""
        return [
            FeatureSpec(
                name="embedding",
                shape=(self._width,),
                dtype=self._options.store_dtype,
                description="embedding of the text",
            )
        ]

    def engine(self) -> dict[str, Any]:
        """Arguments of the engine."""
        step = self._options.tokens_per_step
        return {
            "runner": "pooling",
            "max_model_len": self._max_length,
            **({} if step is None else {"max_num_batched_tokens": step}),
        }

    def own_texts(self, example: Example) -> list[str]:
        """The example's own texts."""
        return [segment for segment in example.segments if segment]

    def read(self, examples: Sequence[Example]) -> TextIds:
        """Their tokens, at most `max_length` of each."""
        texts = [self._options.embedded_text(example.segments) for example in examples]
        whole = self._tokenizer(texts, verbose=False)["input_ids"]
        cut = self._tokenizer(texts, truncation=True, max_length=self._max_length)["input_ids"]
        for text, ids in zip(texts, cut, strict=True):
            if not ids:
                raise TeacherOutputError(
                    f"text {text!r:.80}: has no tokens; remove it from the corpus"
                )
        longer = [len(one) > len(other) for one, other in zip(whole, cut, strict=True)]
        return TextIds(cut, np.array(longer, dtype=bool))

    def requests(self, texts: TextIds, examples: Sequence[Example]) -> list[list[Request]]:
        """One for each text."""
        return [[Request("embed", {}, np.array(ids, np.int32))] for ids in texts.ids]

    def answers(self, texts: TextIds, found: Sequence[Found]) -> Answers:
        """[B, D]; a refused text has none. Raises TeacherOutputError for another D than the model's
        configuration says."""
        none = np.zeros(self._width, np.float32)
        rows = [each.arrays["embed"]["embedding"] if each.arrays else none for each in found]
        if odd := [len(row) for row in rows if row.shape != none.shape]:
            raise TeacherOutputError(
                f"vllm: its embeddings have {odd[0]} numbers, the model's configuration says "
                f"{self._width}; use the teacher encoder for this model"
            )
        refused = {row: each.refused for row, each in enumerate(found) if each.refused}
        return Answers({"embedding": np.stack(rows)}, texts.truncated, refused=refused)
