"""Responses of a server's model: their text, and their tokens where a tokenizer is named.

Of each prompt, `POST /chat/completions` or `POST /completions` gives one response or several. Text
is kept as it came, in UTF-8. Tokens, their log-probabilities and those of the most probable others
are kept where they are ids of the named tokenizer, exactly; a response with a token that is none of
its ids is refused (`token_ids.py`).

Shapes: T tokens of a response.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....cache_schemas.chats import asking_turns, turns_of
from ....cache_schemas.codings import TopKCoding
from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import TEXT, fill_template
from ...language.recipe import Recipe
from ...language.tokens import tokenizer_digest, vocab_digest, vocab_size_of
from ...pretrained import read_tokenizer
from ...sources import resolve
from ..teachers.base import Answers, Example, example_seed
from ..teachers.generated import FINISHED, OTHERWISE, Response, ResponseFeatures, coded
from ..teachers.response_parts import END_OF_THINKING
from .endpoint import TextRefusedError
from .feature_api import FeatureApi
from .options import OpenAIOptions
from .requests import CHARACTERS_PER_TOKEN, Query
from .responses import (
    Choice,
    GenerationRequest,
    chat_body,
    completion_body,
    read_chat,
    read_completion,
)
from .token_ids import UnmappedTokenError, Vocabulary
from .wire import Usage


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request sends: messages of a chat, or a text; and the seed of sampled responses."""

    content: Sequence[Mapping[str, str]] | str
    seed: int | None


class GenerationApi(FeatureApi):
    """Features `generated_text`, `finish`, and with a tokenizer `generated_ids`,
    `generated_log_probs`, `generated_top_k`."""

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        """Raises TeacherSourceError or JobError for the tokenizer."""
        self._model, self._options = model, options
        self.path = "/chat/completions" if options.api == "chat" else "/completions"
        self._tokenizer = self._vocabulary = self._coding = None
        if options.tokenizer is not None:
            folder = resolve(options.tokenizer, None, TeacherSourceError)
            self._tokenizer = read_tokenizer(folder, TeacherSourceError)
            self._vocabulary = Vocabulary(self._tokenizer)
            if options.top_k:
                size = vocab_size_of(self._tokenizer)
                if options.top_k > size:
                    raise JobError(
                        f"top_k: {options.top_k} is above the tokenizer's vocabulary of {size}; "
                        f"use at most {size}"
                    )
                self._coding = TopKCoding(k=options.top_k, vocab_size=size)
        self._features = ResponseFeatures(
            options.responses_per_prompt,
            options.max_new_tokens or 0,
            None if self._tokenizer is None else "as the server says",
            self._coding,
        )

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options: how a student that learns from responses
        has to write their prompts, and the tokenizer."""
        found: dict[str, SettingValue] = self._recipe.model_dump()
        if self._tokenizer is not None:
            found |= {
                "tokenizer": tokenizer_digest(self._tokenizer),
                "vocab_size": vocab_size_of(self._tokenizer),
            }
        return found

    @property
    def _recipe(self) -> Recipe:
        options = self._options
        if options.api == "completions":
            return Recipe(text_format=options.text_format, prompt_template=options.prompt_template)
        return Recipe(
            text_format="chat",
            user_template=options.user_template or TEXT,
            system_prompt=options.system_prompt,
        )

    @property
    def vocab_digest(self) -> str | None:
        """Digest of the tokenizer's tokens, if there is one."""
        return None if self._tokenizer is None else vocab_digest(self._tokenizer)

    def content(self, example: Example) -> Prompt:
        """The prompt of an example."""
        seed = None
        if self._options.temperature:
            seed = example_seed(self._options.seed, example.key) & (2**31 - 1)
        return Prompt(self._prompt(example.segments), seed)

    def _prompt(self, segments: Sequence[str]) -> Sequence[Mapping[str, str]] | str:
        options = self._options
        chat = turns_of(segments[0]) if options.api == "chat" and len(segments) == 1 else None
        given = segments[:-1] if options.response_column else segments
        if options.api == "completions":
            return fill_template(options.prompt_template, given)
        if chat:
            turns = list(asking_turns(chat))
        else:
            asked = fill_template(options.user_template or TEXT, given)
            turns = [{"role": "user", "content": asked}]
        if options.system_prompt and turns[0]["role"] not in ("system", "developer"):
            turns = [{"role": "system", "content": options.system_prompt}, *turns]
        return turns

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        (query,) = queries
        prompt: Prompt = query.content
        options = self._options
        assert options.max_new_tokens is not None
        alternatives = None if self._vocabulary is None else options.top_k or 0
        if options.top_k and options.temperature and options.api == "chat":
            alternatives = options.top_k + 1  # vLLM puts the sampled token in place of the last
        request = GenerationRequest(
            max_tokens=options.max_new_tokens,
            limit_name=options.limit_name,
            temperature=options.temperature,
            top_p=options.top_p,
            samples=options.responses_per_prompt,
            seed=prompt.seed,
            stop=options.stop,
            alternatives=alternatives,
            token_ids=options.token_ids,
        )
        if isinstance(prompt.content, str):
            return completion_body(self._model, prompt.content, request)
        return chat_body(self._model, prompt.content, request)

    def read(self, document: Any, count: int) -> Sequence[list[Choice]]:
        """The responses to one prompt."""
        read = read_chat if self._options.api == "chat" else read_completion
        return [read(document, self._options.responses_per_prompt)]

    def expected(self, queries: Sequence[Query]) -> Usage:
        """See Api."""
        sizes = sum(len(str(query.content.content)) for query in queries)
        most = (self._options.max_new_tokens or 0) * self._options.responses_per_prompt
        return Usage(sizes // CHARACTERS_PER_TOKEN, most)

    def features(self, answer: Any) -> list[FeatureSpec]:
        """The features, which the options tell alone."""
        return self._features.specs()

    def answers(self, found: Sequence[list[Choice] | None], contents: Sequence[Any]) -> Answers:
        """See FeatureApi; what has a token that is none of the tokenizer's is refused."""
        refused: dict[int, str] = {}
        rows: list[list[Response]] = []
        for row, choices in enumerate(found):
            try:
                rows.append([self._response(choice) for choice in choices or ()])
            except (TextRefusedError, UnmappedTokenError) as problem:
                rows.append([])
                refused[row] = str(problem)
        return Answers(
            self._features.values(rows), np.zeros(len(found), dtype=bool), refused=refused
        )

    def _response(self, choice: Choice) -> Response:
        if choice.declined:
            raise TextRefusedError(
                f"the server declines to respond: {choice.refusal or 'filtered'}"
            )
        text = choice.text
        if self._options.thinking == "cut":
            text = text.partition(END_OF_THINKING)[2].lstrip("\n") or text
        elif choice.reasoning:
            text = f"<think>\n{choice.reasoning}\n{END_OF_THINKING}\n\n{text}"
        most = self._features.most_bytes
        if len(text.encode()) > most:
            raise TextRefusedError(f"its response has {len(text.encode())} bytes; at most {most}")
        finish = FINISHED.get(choice.finish_reason or "", OTHERWISE)
        if self._vocabulary is None:
            return Response(text.encode(), finish)
        predictions = choice.predictions
        if predictions is None:
            raise UnmappedTokenError("the server gives no log-probabilities; leave tokenizer out")
        ids = self._vocabulary.response_ids(predictions, choice.text)
        start = self._start(ids, text) if self._options.thinking == "cut" else 0
        top_k = None
        if self._coding is not None:
            top_k = coded(self._coding, *self._vocabulary.top_k(predictions, self._coding.k))
        return Response(
            text.encode(),
            finish,
            ids[start:],
            predictions.log_probs[start:],
            None if top_k is None else top_k[start:],
        )

    def _start(self, ids: IntArray, text: str) -> int:
        """The token at which the text begins, where others stand before it."""
        assert self._vocabulary is not None
        spelled = [self._vocabulary.spellings[token] for token in ids.tolist()]
        before = b"".join(spelled).rfind(text.encode().rstrip())
        if before <= 0:
            return 0
        ends = np.cumsum([len(each) for each in spelled])
        return int(np.searchsorted(ends, before, side="right"))

    def distance(self, one: list[Choice], other: list[Choice]) -> float:
        """The difference of the first tokens' probabilities, if both have the same first token:
        sampled texts differ, and greedy ones do by rounding."""
        mine, theirs = one[0].predictions, other[0].predictions
        if mine is None or theirs is None or not (len(mine) and len(theirs)):
            return 0.0
        if mine.tokens.named(0) != theirs.tokens.named(0):
            return 0.0
        return float(abs(np.exp(mine.log_probs[0]) - np.exp(theirs.log_probs[0])))
