"""Predictions of given texts' tokens, and responses to their prompts, as an engine gives them.

Of a text there is at most one request to read it, whose answer has the log-probabilities of the
predicted tokens' places, and one to continue its prompt.

Shapes: T tokens of a text, P predicted ones, K most probable ones, N responses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.codings import Fidelity, TopKCoding
from ....cache_schemas.errors import JobError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.tokens import (
    TokenTexts,
    end_ids,
    read_before_predicted,
    tokenizer_digest,
    vocab_digest,
    vocab_size_of,
)
from ...pretrained import choose_length
from ..teachers.base import Answers, Example, example_seed
from ..teachers.causal_checkpoint import DEFAULT_TEXT_LENGTH
from ..teachers.generated import FINISHED, OTHERWISE, Float32, Response, coded, log_tails
from ..teachers.response_parts import part_of_response
from ..teachers.token_answers import TopK, read_top_k, stored_own
from .options import VLLMOptions
from .source import EngineSource, Found, Request, Task

Table = Mapping[str, npt.NDArray[Any]]
"""The places of tokens (`worker.prompt_arrays`): `ids` and `log_probs` [P, 1 + K]."""

SEEDS = 2**62
"""Seeds are below: the engine adds a response's number to its prompt's."""


class TokenTask(Task):
    """`runner=generate`: features `token_ids`, `prompt_tokens`, `top_k`, `own_log_probs`,
    `characters_read`, and those of `ResponseFeatures`."""

    def __init__(self, source: EngineSource, options: VLLMOptions) -> None:
        """Raises TeacherSourceError or JobError for a model or options that do not fit."""
        self._source, self._options = source, options
        self._tokenizer = tokenizer = source.tokenizer
        self._vocab_size = vocab_size_of(tokenizer)
        options.check(tokenizer)
        source.require_vocabulary()
        # The engine generates a token behind each text that it reads.
        self._positions = source.positions
        self._max_length = choose_length(
            options.max_length, self._positions - 1, DEFAULT_TEXT_LENGTH, 1, JobError
        )
        self._top_k: TopK | None = None
        coding = options.codings(self._vocab_size).get("top_k")
        if isinstance(coding, TopKCoding):
            self._top_k = TopK(coding)
        columns = 1 + (options.top_k or 0)
        self._nothing: Table = {
            "ids": np.empty((0, columns), np.int32),
            "log_probs": np.empty((0, columns), np.float32),
        }
        self._responses = options.responses(self._vocab_size)
        self._ends = sorted(end_ids(tokenizer, options, source.generation_config()))
        self.vocab_digest = vocab_digest(tokenizer)

    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return {
            **self._options.of_template(self._tokenizer),
            "max_length": self._max_length,
            "tokenizer": tokenizer_digest(self._tokenizer),
            "vocab_size": self._vocab_size,
        }

    def features(self) -> list[FeatureSpec]:
        """The requested features."""
        return self._options.features(self._vocab_size, self._max_length)

    def engine(self) -> dict[str, Any]:
        """Arguments of the engine."""
        most = self._max_length + (self._options.max_new_tokens or 1)
        step = self._options.tokens_per_step or (2048 if self._options.reads_texts else None)
        return {
            "runner": "generate",
            "skip_tokenizer_init": not self._options.stop,
            "max_model_len": min(most, self._positions),
            "max_logprobs": self._options.most_log_probs,
            "logprobs_mode": "raw_logprobs",  # of temperature 1, whatever samples are drawn at
            **({} if step is None else {"max_num_batched_tokens": step}),
        }

    def own_texts(self, example: Example) -> list[str]:
        """The example's own texts."""
        return self._options.own_texts(example.segments)

    def read(self, examples: Sequence[Example]) -> TokenTexts:
        """Their tokens."""
        segments = [example.segments for example in examples]
        return self._options.tokens(self._tokenizer, segments, self._max_length)

    def requests(self, texts: TokenTexts, examples: Sequence[Example]) -> list[list[Request]]:
        """The requests for each text."""
        return [
            [*self._reading(texts, row), *self._continuing(texts, row, example)]
            for row, example in enumerate(examples)
        ]

    def _reading(self, texts: TokenTexts, row: int) -> list[Request]:
        if not (self._options.reads_texts and texts.predicted[row]):
            return []
        best = self._options.top_k or 0
        sampling = {"prompt_logprobs": best, "max_tokens": 1, "temperature": 0.0}
        first = int(texts.prompts[row])
        return [Request("read", {"first": first, "sampling": sampling}, texts.of(row))]

    def _continuing(self, texts: TokenTexts, row: int, example: Example) -> list[Request]:
        options, length = self._options, int(texts.prompts[row])
        room = min(options.max_new_tokens or 0, self._positions - length)
        if room <= 0 or texts.lengths[row] < length:
            return []
        sampling = {
            "n": options.responses_per_prompt,
            "max_tokens": room,
            "temperature": options.generation_temperature,
            "top_p": options.generation_top_p,
            "seed": example_seed(options.seed, example.key) % SEEDS,
            "logprobs": options.generated_top_k or 0,
            "stop_token_ids": self._ends,
            "stop": list(options.stop),
        }
        return [Request("continue", {"sampling": sampling}, texts.of(row)[:length])]

    def answers(self, texts: TokenTexts, found: Sequence[Found]) -> Answers:
        """The features of some texts; a refused one has none."""
        features: dict[str, Any] = {
            "token_ids": [texts.of(row) for row in range(len(texts))],
            "prompt_tokens": np.minimum(texts.prompts, texts.lengths),
        }
        if texts.read is not None:
            features["characters_read"] = read_before_predicted(texts)
        invalid: dict[int, str] = {}
        refused = {row: each.refused for row, each in enumerate(found) if each.refused}
        fidelity: dict[str, list[Fidelity | None]] = {}
        tables = [each.arrays.get("read", self._nothing) for each in found]
        invalid |= {row: "logits" for row, each in enumerate(tables) if _is_broken(each)}
        if self._options.own_log_probs:
            features["own_log_probs"] = [stored_own(each["log_probs"][:, 0]) for each in tables]
        if self._top_k is not None:
            coded_rows = [_coded_rows(self._top_k, each) for each in tables]
            features["top_k"] = [rows for rows, _ in coded_rows]
            fidelity["top_k"] = [measured for _, measured in coded_rows]
        if self._options.max_new_tokens:
            responses: list[list[Response]] = []
            for row, each in enumerate(found):
                responses.append(self._made(each))
                if problem := self._problem(responses[-1]):
                    refused[row] = problem
            features |= self._responses.values(responses)
        return Answers(
            features, texts.truncated, invalid=invalid, refused=refused, fidelity=fidelity
        )

    def _problem(self, responses: Sequence[Response]) -> str:
        """Why responses cannot be kept; empty if they can."""
        most = self._responses.most_bytes
        if any(len(each.text) > most for each in responses):
            return f"its response has more than {most} bytes"
        ids = [each.ids for each in responses if each.ids is not None]
        highest = max((int(each.max(initial=0)) for each in ids), default=0)
        if highest >= self._vocab_size:
            return f"its response has token {highest}, which the tokenizer does not have"
        return ""

    def _made(self, found: Found) -> list[Response]:
        """The responses in an answer."""
        arrays = found.arrays.get("continue")
        if arrays is None:
            return []
        ends = np.cumsum(arrays["counts"])[:-1]
        ids = np.split(arrays["ids"], ends)
        log_probs = np.split(arrays["log_probs"], ends)
        return [self._response(*each) for each in zip(ids, log_probs, found.finish, strict=True)]

    def _response(self, ids: IntArray, log_probs: Float32, finish: str | None) -> Response:
        """A response, from the table of its tokens (`worker.response_arrays`)."""
        options, coding = self._options, self._responses.coding
        cuts = options.thinking == "cut"
        part = part_of_response(self._decode, ids[:, 0].astype(np.uint32), options.stop, cuts)
        ids, log_probs = ids[part.tokens], log_probs[part.tokens]
        top_k = None
        if coding is not None:
            top_k = coded(coding, *_within(ids[:, 1:], log_probs[:, 1:], coding.vocab_size))
        return Response(
            part.text.encode(errors="replace"),
            FINISHED.get(finish or "", OTHERWISE),
            ids[:, 0],
            log_probs[:, 0],
            top_k,
        )

    def _decode(self, ids: npt.NDArray[np.uint32]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def _is_broken(table: Table) -> bool:
    """Whether logits were no numbers."""
    return bool(np.isnan(table["log_probs"]).any())


def _coded_rows(top_k: TopK, table: Table) -> tuple[npt.NDArray[Any], Fidelity | None]:
    """Rows of top_k [P, W], and their errors."""
    log_probs = table["log_probs"][:, 1:]
    numbers = np.where(np.isnan(log_probs), np.float32(0), log_probs)
    ids, numbers = _within(table["ids"][:, 1:], numbers, top_k.coding.vocab_size)
    return read_top_k(top_k, (ids, numbers, log_tails(numbers)))


def _within(ids: IntArray, log_probs: Float32, vocab_size: int) -> tuple[IntArray, Float32]:
    """Most probable tokens [P, K] of the tokenizer's: what a model has beyond them stands for none,
    and is absent (id 0, -inf)."""
    known = ids < vocab_size
    if known.all():
        return ids, log_probs
    ids, log_probs = np.where(known, ids, 0), np.where(known, log_probs, -np.float32(np.inf))
    order = np.argsort(-log_probs, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(log_probs, order, 1)
