"""Scored choices as tokens, whatever computes them: the prompts of a row, and the answers behind
them.

Of a prompt that is too long the row's segments are cut, the template never. Shapes: B rows, Q
questions, F texts without content, K answers.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.errors import JobError, TeacherOutputError
from ....cache_schemas.keys import IntArray
from ....cache_schemas.teachers import SettingValue
from ...language.tokens import Ids, special_ends, tokenizer_digest
from ...tokenizing.long_texts import shortened
from .choices_options import ChoicesOptions
from .scored_choices import Floats, ScoringRule

PROBE_COLUMNS = 99
"""More than a template names."""


@dataclass(frozen=True, slots=True)
class ChoicePrompts:
    """Prompts of B rows, Q for each, and their tokens; truncated: bool [B]."""

    texts: list[list[str]]
    ids: list[list[Ids]]
    truncated: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> "ChoicePrompts":
        """Some of the rows, in the order of `rows` [B]."""
        texts, ids = ([of[row] for row in rows.tolist()] for of in (self.texts, self.ids))
        return ChoicePrompts(texts, ids, self.truncated[rows])


class ChoiceTexts:
    """`answers`: the tokens of each [K]; `rule`: how their log-probabilities become features;
    `notes`: warnings of answers that may not be scored as they are meant."""

    def __init__(self, tokenizer: Any, options: ChoicesOptions, max_length: int) -> None:
        """`max_length`: tokens of a prompt with its longest answer. Raises JobError for answers
        without tokens, or with the same ones, and where they leave no room for a prompt."""
        self._tokenizer, self._options, self._max_length = tokenizer, options, max_length
        self._pictured = options.picture == "given"
        self._plain = options.text_format == "plain"
        self._recipe = options.recipe()
        self._ends = special_ends(tokenizer)
        self._splits = self._plain and not self._pictured
        self.answers = [self._answer_ids(answer) for answer in options.answers]
        self._refuse_same()
        self.rule = ScoringRule(options, [len(ids) for ids in self.answers])
        self.longest = max(self.rule.tokens)
        self._room = max_length - self.longest
        if self._room < 1:
            raise JobError(
                f"max_length: {max_length} leaves no room for a prompt beside an answer of "
                f"{self.longest} tokens"
            )
        self.notes = tuple(self._doubts())

    @property
    def count(self) -> int:
        """How many answers there are."""
        return len(self.answers)

    @property
    def questions(self) -> int:
        """Prompts of each row."""
        return max(len(self._options.questions), 1)

    @property
    def settings(self) -> dict[str, SettingValue]:
        """Settings of a fingerprint beside the options, where weights do not tell the tokenizer."""
        return {
            **self._options.of_template(self._tokenizer),
            "max_length": self._max_length,
            "tokenizer": tokenizer_digest(self._tokenizer),
        }

    def read(self, rows: Sequence[Sequence[str]]) -> ChoicePrompts:
        """The prompts of rows of segments. Raises TeacherOutputError for one without tokens,
        JobError for a template that is too long alone."""
        texts = [self._options.prompts(segments) for segments in rows]
        ids = iter(self._prompt_ids([prompt for of_row in texts for prompt in of_row]))
        found = [[next(ids) for _ in of_row] for of_row in texts]
        truncated = np.array([max(map(len, each)) > self._room for each in found], dtype=bool)
        for row in np.flatnonzero(truncated).tolist():
            texts[row] = self._cut(rows[row])
            found[row] = self._prompt_ids(texts[row])
        for row, of_row in enumerate(found):
            if not all(map(len, of_row)):
                raise TeacherOutputError(f"text {rows[row]!r:.80}: its prompt has no tokens")
        return ChoicePrompts(texts, found, truncated)

    def without_text(self) -> list[Ids]:
        """Prompts of what a model prefers anyway [Q * F], as
        `ChoicesOptions.prompts_without_text`. Raises JobError for one that is too long."""
        written = self._options.prompts_without_text()
        prompts = self._prompt_ids(written) if written else []
        lengths = [len(prompt) for prompt in prompts]
        if lengths and (not min(lengths) or max(lengths) > self._room):
            raise JobError("content_free, premise: a prompt has no tokens, or too many")
        return prompts

    def prior(self, log_probs_PK: Floats) -> Floats:
        """See ScoringRule.prior; of the answers behind `without_text`."""
        return self.rule.prior(log_probs_PK.reshape(self.questions, -1, self.count))

    def written(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as strings that are tokenized."""
        if self._pictured:
            return [self._with_place(prompt) for prompt in prompts]
        if self._plain:
            return list(prompts)
        write, answer = self._recipe.write, self._options.answers[0]
        return [write(self._tokenizer, (prompt, answer)).prompt for prompt in prompts]

    def _answer_ids(self, answer: str) -> Ids:
        """Tokens of an answer behind a prompt; of a chat without what ends it, unless that is
        scored, too."""
        if self._pictured:  # as it is, behind the generation prompt of a chat
            ids = [
                *self._tokens([answer])[0],
                *(self._ends.after if self._options.end_token else ()),
            ]
            return np.array(ids, dtype=np.int32)
        written = self._recipe.write(self._tokenizer, ("?", answer))
        text, after = written.response, self._ends.after if self._plain else ()
        if not self._options.end_token:
            text, after = text[: written.start + len(written.content)], ()
        ids = [*self._tokens([text])[0], *after]
        if not ids:
            raise JobError(f"answers: {answer!r} has no tokens; name another word")
        return np.array(ids, dtype=np.int32)

    def _refuse_same(self) -> None:
        known: dict[bytes, str] = {}
        for answer, ids in zip(self._options.answers, self.answers, strict=True):
            other = known.setdefault(ids.tobytes(), answer)
            if other != answer:
                raise JobError(
                    f"answers: {other!r} and {answer!r} have the same tokens, and so the same "
                    "score; name other words"
                )

    def _prompt_ids(self, prompts: Sequence[str]) -> list[Ids]:
        """Tokens of prompts, at least one more than there is room for of those that are longer."""
        written = self.written(prompts)
        before = self._ends.before if self._splits else ()
        how = {"split_special_tokens": self._splits}
        cut = shortened(self._tokenizer, written, self._room, **how)
        return [np.array([*before, *ids], dtype=np.int32) for ids in self._tokens(cut)]

    def _with_place(self, prompt: str) -> str:
        """A prompt as the processor takes it, which puts the picture's tokens in their place."""
        before = "".join(self._tokenizer.convert_ids_to_tokens([*self._ends.before]))
        if self._plain:
            return before + prompt
        said = self._options.system_prompt
        turns = [{"role": "system", "content": [{"type": "text", "text": said}]}] if said else []
        asked = [{"type": "image"}, {"type": "text", "text": prompt}]
        template = self._options.template(self._tokenizer)
        written = template.render([*turns, {"role": "user", "content": asked}], ask=True)
        return written if written.startswith(before) else before + written

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        how = {"split_special_tokens": self._splits}  # a chat template has written some
        found: list[list[int]] = self._tokenizer(
            list(texts), add_special_tokens=False, verbose=False, **how
        )["input_ids"]
        return found

    def _cut(self, segments: Sequence[str]) -> list[str]:
        """The prompts of a row that is too long: of each segment as many characters as fit."""
        segments = shortened(self._tokenizer, segments, self._room)

        def prompts(most: int) -> list[str]:
            return self._options.prompts([each[:most] for each in segments])

        def tokens(most: int) -> int:
            return max(map(len, self._prompt_ids(prompts(most))))

        characters = range(max(map(len, segments), default=0) + 1)
        most = bisect.bisect_right(characters, self._room, key=tokens) - 1
        if most < 0:
            raise JobError(
                f"max_length: the prompt has {tokens(0)} tokens without any text, and room for "
                f"{self._room}; use more, or a shorter prompt_template"
            )
        return prompts(most)

    def _doubts(self) -> Iterator[str]:
        """Warnings of answers that may not be scored as they are meant."""
        for answer, ids in zip(self._options.answers, self.answers, strict=True):
            longer = [
                other
                for other, theirs in zip(self._options.answers, self.answers, strict=True)
                if len(theirs) > len(ids) and np.array_equal(theirs[: len(ids)], ids)
            ]
            if longer:
                yield (
                    f"answers: {longer[0]!r} begins with {answer!r}, which is never less likely; "
                    "set end_token=true"
                )
        if not self._plain:
            return
        (prompt,) = self._options.prompts(("?",) * PROBE_COLUMNS)[:1]
        for answer in self._options.answers:
            apart = [*self._tokens([prompt])[0], *self._tokens([answer])[0]]
            if self._tokens([prompt + answer])[0] != apart:
                yield (
                    f"answers: {answer!r} behind the prompt has other tokens than alone; it may "
                    "lack a space in front, or the prompt have one too many at its end"
                )
