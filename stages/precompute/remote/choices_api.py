"""Scored choices by a server: `POST /completions` with the log-probabilities of given tokens ->
features `logits`, `aspects`, `score`, as those of the teacher `choices`.

Prompts are written and tokenized here. Each request has all texts of one example, by their token
ids: every question's prompt with every answer behind it. A server generates one token behind each,
since servers generate at least one, and it is not kept. Of vLLM are `prompt_logprobs`; others have
the same by `echo` and `logprobs`.

Shapes: B rows, Q questions, K answers, T tokens of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....cache_schemas.errors import RunError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.tokens import Ids
from ...pretrained import read_tokenizer
from ...sources import resolve
from ..teachers.base import Answers, Example
from ..teachers.causal_checkpoint import DEFAULT_TEXT_LENGTH
from ..teachers.choice_texts import ChoiceTexts
from ..teachers.choices_options import choices_of
from ..teachers.scored_choices import Floats
from .feature_api import FeatureApi
from .log_probs import Predictions
from .options import OpenAIOptions
from .requests import Query
from .responses import GenerationRequest, completion_body, read_completion
from .token_ids import Vocabulary
from .wire import Usage


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of an example, one for each question, by their tokens [T]."""

    ids: Sequence[Ids]
    truncated: bool = False


class ChoicesApi(FeatureApi):
    """Features of the answers behind each example's prompts."""

    path = "/completions"

    def __init__(self, model: str, options: OpenAIOptions) -> None:
        """Raises TeacherSourceError or JobError for the tokenizer and answers that do not fit."""
        self._model, self._choices = model, choices_of(options)
        self._echo, self._dtype = options.echo, options.store_dtype
        folder = resolve(str(options.tokenizer), None, TeacherSourceError)
        tokenizer = read_tokenizer(folder, TeacherSourceError)
        self._choices.check(tokenizer)
        self._vocabulary = Vocabulary(tokenizer)
        most = options.max_length or DEFAULT_TEXT_LENGTH
        self._texts = ChoiceTexts(tokenizer, self._choices, most)
        self._without_text = self._texts.without_text()
        self._prior_QK: Floats | None = None

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return self._texts.settings

    @property
    def notes(self) -> tuple[str, ...]:
        """See FeatureApi: of answers that may not be scored as they are meant."""
        return self._texts.notes

    def content(self, example: Example) -> Prompts:
        """The prompts of an example."""
        read = self._texts.read([example.segments])
        return Prompts(read.ids[0], bool(read.truncated[0]))

    def beforehand(self) -> list[Prompts]:
        """The prompts of each text without content."""
        each = len(self._without_text) // self._texts.questions
        return [Prompts(self._without_text[text::each]) for text in range(each)]

    def learn(self, answers: Sequence[Sequence[Predictions]]) -> None:
        """What the model prefers without a text."""
        pairs = zip(answers, self.beforehand(), strict=True)
        log_probs_FQK = np.stack([self._log_probs(*each) for each in pairs])
        self._prior_QK = self._texts.prior(log_probs_FQK.swapaxes(0, 1))

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        (query,) = queries
        request = GenerationRequest(
            max_tokens=1,
            temperature=0.0,
            alternatives=1 if self._echo else None,  # 0 is none to some servers
            prompt_alternatives=None if self._echo else 0,
            echo=self._echo,
        )
        texts = [ids.tolist() for ids in self._with_answers(query.content)]
        return completion_body(self._model, texts, request)

    def read(self, document: Any, count: int) -> Sequence[list[Predictions]]:
        """The log-probabilities of the tokens of all texts [Q * K] of one example."""
        choices = read_completion(document, self._texts.questions * self._texts.count)
        found = [each.predictions if self._echo else each.prompt for each in choices]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            raise RunError(
                "the server gives no log-probabilities of given texts by "
                + (
                    "echo and logprobs; use a server that does"
                    if self._echo
                    else "prompt_logprobs, which vLLM has; set echo=true for one that has them by "
                    "echo and logprobs"
                )
            )
        return [known]

    def expected(self, queries: Sequence[Query]) -> Usage:
        """See Api: each text is read, and one token generated behind it."""
        texts = [len(ids) for each in queries for ids in self._with_answers(each.content)]
        return Usage(sum(texts), len(texts))

    def features(self, answer: Any) -> list[FeatureSpec]:
        """See FeatureApi."""
        return self._choices.features(self._dtype)

    def answers(
        self, found: Sequence[Sequence[Predictions] | None], contents: Sequence[Prompts]
    ) -> Answers:
        """See FeatureApi. Raises RunError for other tokens than those that were sent."""
        nothing = np.zeros((self._texts.questions, self._texts.count))
        log_probs_BQK = np.stack(
            [
                nothing if each is None else self._log_probs(each, prompts)
                for each, prompts in zip(found, contents, strict=True)
            ]
        )
        features = self._texts.rule.features(log_probs_BQK, self._prior_QK)
        rows = {name: values.astype(self._dtype) for name, values in features.items()}
        return Answers(rows, np.array([each.truncated for each in contents], dtype=bool))

    def distance(self, one: Sequence[Predictions], other: Sequence[Predictions]) -> float:
        """The greatest difference of the tokens' probabilities."""
        if [len(each) for each in one] != [len(each) for each in other]:
            return 1.0
        parts = [
            np.abs(np.exp(mine.log_probs) - np.exp(its.log_probs))
            for mine, its in zip(one, other, strict=True)
        ]
        return float(np.nanmax(np.concatenate(parts), initial=0.0))

    def _with_answers(self, prompts: Prompts) -> list[IntArray]:
        """The texts of an example [Q * K]: all answers behind one prompt, then behind the next."""
        return [
            np.concatenate([prompt, answer]).astype(np.int64)
            for prompt in prompts.ids
            for answer in self._texts.answers
        ]

    def _log_probs(self, found: Sequence[Predictions], prompts: Prompts) -> Floats:
        """Log-probabilities of the answers [Q, K]; NaN where a server does not know one."""
        sums = []
        for at, (text, predictions) in enumerate(
            zip(self._with_answers(prompts), found, strict=True)
        ):
            start = len(prompts.ids[at // self._texts.count])
            self._refuse_other_tokens(text, predictions, start)
            sums.append(predictions.log_probs[start : len(text)].astype(np.float64).sum())
        return np.array(sums).reshape(self._texts.questions, self._texts.count)

    def _refuse_other_tokens(self, text: IntArray, found: Predictions, start: int) -> None:
        """Raises RunError for an answer of other tokens than were sent."""
        more = len(found) - len(text)
        if more not in ((0, 1) if self._echo else (0,)) or not all(
            self._vocabulary.may_be(found.tokens, at, int(text[at]))
            for at in range(start, len(text))
        ):
            raise RunError(
                "the server's tokens of a text are not those that were sent; name its own tokenizer"
            )
