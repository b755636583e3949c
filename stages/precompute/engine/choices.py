"""Scored choices as an engine reads them: the features of the teacher `choices`, by the same
prompts, answers and rule.

Of a row there is a request for each question's prompt with each answer behind it; the engine's
prompt log-probabilities have the answer's tokens at their end.

Shapes: B rows, Q questions, K answers, P prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....cache_schemas.errors import JobError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...language.tokens import Ids
from ...pretrained import choose_length
from ..teachers.base import Answers, Example
from ..teachers.causal_checkpoint import DEFAULT_TEXT_LENGTH
from ..teachers.choice_texts import ChoicePrompts, ChoiceTexts
from ..teachers.choices_options import choices_of
from ..teachers.scored_choices import Floats
from .options import VLLMOptions
from .source import EngineSource, Found, Request, Task


class ChoicesTask(Task):
    """Features `logits`, `aspects` and `score`."""

    def __init__(self, source: EngineSource, options: VLLMOptions) -> None:
        """Raises TeacherSourceError or JobError for a model or options that do not fit."""
        self._options, tokenizer = options, source.tokenizer
        self._choices = choices_of(options)
        self._choices.check(tokenizer)
        source.require_vocabulary()
        # The engine generates a token behind each text that it reads.
        self._max_length = choose_length(
            options.max_length, source.positions - 1, DEFAULT_TEXT_LENGTH, 1, JobError
        )
        self._texts = ChoiceTexts(tokenizer, self._choices, self._max_length)
        self._without_text = self._texts.without_text()
        self._prior_QK: Floats | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """See Task: of answers that may not be scored as they are meant."""
        return self._texts.notes

    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""
        return self._texts.settings

    def features(self) -> list[FeatureSpec]:
        """The features that follow from the answers."""
        return self._choices.features(self._options.store_dtype)

    def engine(self) -> dict[str, Any]:
        """Arguments of the engine."""
        return {
            "runner": "generate",
            "skip_tokenizer_init": True,
            "max_model_len": self._max_length + 1,
            "max_logprobs": 0,
            "logprobs_mode": "raw_logprobs",
            "max_num_batched_tokens": self._options.tokens_per_step or 2048,
        }

    def own_texts(self, example: Example) -> list[str]:
        """The example's own texts."""
        return [segment for segment in example.segments if segment]

    def check(self, example: Example) -> None:
        """Raises JobError for a template that names more segments than there are."""
        self._choices.prompts(example.segments)

    def beforehand(self) -> list[Request]:
        """The requests for prompts without the text."""
        return self._scoring(self._without_text)

    def learn(self, found: Found) -> None:
        """What the model prefers without a text. Raises JobError where the engine refuses it."""
        if found.refused:
            raise JobError(f"content_free, premise: {found.refused}")
        self._prior_QK = self._texts.prior(self._log_probs(found, len(self._without_text)))

    def read(self, examples: Sequence[Example]) -> ChoicePrompts:
        """Their prompts."""
        return self._texts.read([example.segments for example in examples])

    def requests(self, texts: ChoicePrompts, examples: Sequence[Example]) -> list[list[Request]]:
        """The requests for each row [Q * K]."""
        return [self._scoring(prompts) for prompts in texts.ids]

    def answers(self, texts: ChoicePrompts, found: Sequence[Found]) -> Answers:
        """The features of some rows; a refused one has none."""
        log_probs_BQK = np.stack([self._log_probs(each, self._texts.questions) for each in found])
        features = self._texts.rule.features(log_probs_BQK, self._prior_QK)
        rows = {name: of.astype(self._options.store_dtype) for name, of in features.items()}
        refused = {row: each.refused for row, each in enumerate(found) if each.refused}
        return Answers(rows, texts.truncated, refused=refused)

    def _scoring(self, prompts: Sequence[Ids]) -> list[Request]:
        sampling = {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0}
        return [
            Request(
                "read",
                {"first": len(prompt), "sampling": sampling},
                np.concatenate([prompt, answer]),
                name=f"{at}, {number}",
            )
            for at, prompt in enumerate(prompts)
            for number, answer in enumerate(self._texts.answers)
        ]

    def _log_probs(self, found: Found, prompts: int) -> Floats:
        """Log-probabilities of the answers [P, K]."""
        sums_PK = np.zeros((prompts, self._texts.count))
        for at, number in np.ndindex(sums_PK.shape if not found.refused else (0, 0)):
            own = found.arrays[f"{at}, {number}"]["log_probs"][:, 0]
            sums_PK[at, number] = own.astype(np.float64).sum()
        return sums_PK
