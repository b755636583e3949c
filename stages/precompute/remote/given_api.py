"""Predictions of given responses: `POST /completions` with `prompt_logprobs`, which vLLM has ->
features `token_ids`, `prompt_tokens` and `top_k`, as those of `causal_lm`.

A text is tokenized here, written as students will read it, and sent by its token ids. One token is
generated behind it, since servers generate at least one, and is not kept.

Shapes: T tokens of a text, P predicted ones, K most probable ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.errors import RunError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.recipe import Recipe
from ...language.tokens import TokenTexts, encode_texts, tokenizer_digest, vocab_digest
from ...language.tokens import vocab_size_of as size_of
from ...pretrained import read_tokenizer
from ...sources import resolve
from ..teachers.base import Answers, Example
from ..teachers.causal_checkpoint import DEFAULT_TEXT_LENGTH
from ..teachers.causal_options import own_log_probs_feature
from ..teachers.generated import log_tails
from ..teachers.token_answers import TopK, read_top_k, stored_own
from .endpoint import TextRefusedError
from .feature_api import FeatureApi
from .log_probs import Predictions, TopPredictions
from .options import OpenAIOptions
from .requests import Query
from .responses import GenerationRequest, completion_body, read_completion
from .token_ids import UnmappedTokenError, Vocabulary
from .wire import MalformedReplyError, Usage


@dataclass(frozen=True, slots=True)
class Given:
    """A text as it is sent: its tokens [T], and how many of them are not predicted."""

    ids: IntArray
    prompt: int
    truncated: bool


class GivenApi(FeatureApi):
    """Features of the tokens of given responses."""

    path = "/completions"
    probe = ("What does the fox do?", "The quick brown fox jumps.")

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        """Raises TeacherSourceError or JobError for the tokenizer."""
        self._model, self._options = model, options.token_options()
        folder = resolve(str(options.tokenizer), None, TeacherSourceError)
        self._tokenizer = tokenizer = read_tokenizer(folder, TeacherSourceError)
        self._options.check(tokenizer)
        self.vocabulary, self._vocab_size = Vocabulary(tokenizer), size_of(tokenizer)
        coding = self._options.codings(self._vocab_size)["top_k"]
        assert isinstance(coding, TopKCoding)
        self._top_k = TopK(coding)
        self._max_length = self._options.max_length or DEFAULT_TEXT_LENGTH

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return {
            **self._options.model_dump(include={*Recipe.model_fields}),
            **self._options.of_template(self._tokenizer),
            "max_length": self._max_length,
            "tokenizer": tokenizer_digest(self._tokenizer),
            "vocab_size": self._vocab_size,
        }

    @property
    def vocab_digest(self) -> str | None:
        """Digest of the tokenizer's tokens."""
        return vocab_digest(self._tokenizer)

    def content(self, example: Example) -> Given:
        """The tokens of an example."""
        texts: TokenTexts = encode_texts(
            self._tokenizer, self._options, [example.segments], self._max_length
        )
        ids = texts.of(0).astype(np.int64)
        return Given(ids, min(int(texts.prompts[0]), len(ids)), bool(texts.truncated[0]))

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        (query,) = queries
        request = GenerationRequest(
            max_tokens=1,
            temperature=0.0,
            prompt_alternatives=self._top_k.coding.k,
            token_ids=True,
        )
        return completion_body(self._model, query.content.ids.tolist(), request)

    def read(self, document: Any, count: int) -> Sequence[Predictions]:
        """What is predicted at each token."""
        (choice,) = read_completion(document)
        if choice.prompt is None:
            raise MalformedReplyError(
                "choices[0] has no prompt_logprobs: the server has none of given texts"
            )
        return [choice.prompt]

    def expected(self, queries: Sequence[Query]) -> Usage:
        """See Api."""
        return Usage(sum(len(each.content.ids) for each in queries), len(queries))

    def features(self, answer: Predictions | None) -> list[FeatureSpec]:
        """See FeatureApi."""
        found = self._options.text_features(self._vocab_size, self._max_length)
        if self._options.own_log_probs:
            found.append(own_log_probs_feature(self._max_length))
        return found

    def answers(
        self, found: Sequence[Predictions | TopPredictions | None], contents: Sequence[Given]
    ) -> Answers:
        """See FeatureApi."""
        refused: dict[int, str] = {}
        rows, fidelity = [], []
        for row, (predictions, given) in enumerate(zip(found, contents, strict=True)):
            try:
                ids, log_probs = self._predicted(predictions, given)
            except (UnmappedTokenError, TextRefusedError) as problem:
                refused[row] = str(problem)
                ids, log_probs = self._predicted(None, given)
            coded, measured = read_top_k(self._top_k, (ids, log_probs, log_tails(log_probs)))
            rows.append(coded)
            fidelity.append(measured)
        features: dict[str, Any] = {
            "token_ids": [given.ids.astype(np.uint32) for given in contents],
            "prompt_tokens": np.array([given.prompt for given in contents], dtype=np.uint32),
            "top_k": rows,
        }
        if self._options.own_log_probs:
            pairs = zip(found, contents, strict=True)
            features["own_log_probs"] = [_own_log_probs(*each) for each in pairs]
        truncated = np.array([given.truncated for given in contents])
        return Answers(features, truncated, refused=refused, fidelity={"top_k": fidelity})

    def _predicted(
        self, predictions: Predictions | TopPredictions | None, given: Given
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """The most probable tokens [P, K] of the predicted places, and their log-probabilities."""
        k, places = self._top_k.coding.k, len(given.ids) - given.prompt
        if predictions is None:
            return np.zeros((places, k), np.int64), np.full((places, k), -np.inf, np.float32)
        tokens = _ids(predictions)
        # Of the first token, of which nothing is predicted, a server need not say the id.
        if len(tokens) != len(given.ids) or tokens[1:] != given.ids[1:].tolist():
            raise RunError(
                "the server's tokens of a text are not those that were sent; name its own tokenizer"
            )
        if isinstance(predictions, TopPredictions):
            ids = predictions.ids[given.prompt :, :k]
            log_probs = predictions.log_probs[given.prompt :, :k]
            self.vocabulary.check_top_k(ids, log_probs)
            return ids, log_probs
        ids, log_probs = self.vocabulary.top_k(predictions, k)
        return ids[given.prompt :], log_probs[given.prompt :]

    def distance(self, one: Predictions, other: Predictions) -> float:
        """The greatest difference of the tokens' probabilities."""
        if len(one) != len(other):
            return 1.0
        apart = np.abs(np.exp(one.log_probs) - np.exp(other.log_probs))
        return float(np.nanmax(apart, initial=0.0))


def _ids(predictions: Predictions | TopPredictions) -> list[int | None]:
    if isinstance(predictions, TopPredictions):
        return [*predictions.tokens.tolist()]
    return predictions.tokens.ids


def _own_log_probs(
    predictions: Predictions | TopPredictions | None, given: Given
) -> npt.NDArray[np.float16]:
    """Log-probabilities of the text's own predicted tokens [P]; of one that is ruled out, the
    lowest number; of one that is not known NaN, which is reported."""
    assert not isinstance(predictions, TopPredictions), "these do not have them"
    if predictions is None:
        return np.zeros(len(given.ids) - given.prompt, np.float16)
    return stored_own(predictions.log_probs[given.prompt :])
