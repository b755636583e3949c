"""Log-probabilities of tokens in a reply, in each form that servers have for them.

- Chat: a list of tokens, each with its string, its bytes and its alternatives. llama.cpp adds the
  id (Fireworks as `token_id`), and uses this form for /completions too.
- Legacy /completions: parallel lists; alternatives are an object from string to log-probability.
- vLLM's `prompt_logprobs`: for each token of the prompt an object from id to log-probability, the
  prompt's own token first, then the most probable ones.

What a token is called is taken over as it is (`Tokens`); which id of a named tokenizer that is, and
whether it can be known at all, is the matter of `token_ids.py`. Asked for
`return_tokens_as_token_ids`, vLLM writes `token_id:123` for a token: that is an id, and what it
gives as its bytes is of no use.

The value -9999 stands for what is not known (OpenAI: a token that is not among the most probable
ones; vLLM: also a probability of zero) and llama.cpp writes the lowest float32 for zero. An own
log-probability of that kind is NaN here, an alternative's is -inf.

Shapes: T tokens, A alternatives of all tokens laid end to end.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ....cache_schemas.keys import IntArray
from .wire import (
    MalformedReplyError,
    a_list,
    a_number,
    a_text,
    a_whole_number,
    an_object,
    malformed,
    optional,
)

Float32 = npt.NDArray[np.float32]

UNKNOWN = -9999.0
"""Log-probabilities up to this one are none."""
ROUNDING = 1e-4
"""Log-probabilities that exceed 0 by so much are 0: sums of float32 and of bfloat16 do."""
MOST_MASS = 1.01
"""Sum of the probabilities of one token's alternatives, with their rounding."""

_ID = re.compile(r"token_id:([0-9]{1,9})")
_DIGITS = re.compile(r"[0-9]{1,9}")
_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")


@dataclass(frozen=True, slots=True)
class Tokens:
    """N tokens as a server calls them: by string, by bytes (`spellings`) or by id; any of a
    token may be None."""

    strings: list[str | None] = field(default_factory=list)
    spellings: list[bytes | None] = field(default_factory=list)
    ids: list[int | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, string: str | None, spelled: bytes | None, token: int | None) -> None:
        """Append a token."""
        self.strings.append(string)
        self.spellings.append(spelled)
        self.ids.append(token)

    def first(self, count: int) -> "Tokens":
        """The first `count` of them."""
        return Tokens(self.strings[:count], self.spellings[:count], self.ids[:count])

    def named(self, at: int) -> str:
        """One of them, for messages."""
        token, spelled, string = self.ids[at], self.spellings[at], self.strings[at]
        said = repr(string if spelled is None else spelled)
        return said if token is None else f"{said} (id {token})"


@dataclass(frozen=True, slots=True)
class Predictions:
    """T tokens with what was predicted in their place.

    log_probs [T]: of the tokens themselves, NaN where it is not known. counts [T]: alternatives of
    each token, in no particular order; the token itself may be one of them, or not.
    alternative_log_probs [A]: -inf for a probability of zero."""

    tokens: Tokens
    log_probs: Float32
    counts: IntArray
    alternatives: Tokens
    alternative_log_probs: Float32

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "Predictions":
        """The predictions of the first `count` tokens."""
        others = int(self.counts[:count].sum())
        return Predictions(
            self.tokens.first(count),
            self.log_probs[:count],
            self.counts[:count],
            self.alternatives.first(others),
            self.alternative_log_probs[:others],
        )


@dataclass(frozen=True, slots=True)
class TopPredictions:
    """T tokens by their ids [T], and the K most probable ones in place of each, by their ids
    [T, K], most probable first; `log_probs` [T, K]: -inf for ones that are absent. What stands in
    place of the first token means nothing."""

    tokens: IntArray
    ids: IntArray
    log_probs: Float32

    def first(self, count: int) -> "TopPredictions":
        """The predictions of the first `count` tokens."""
        return TopPredictions(self.tokens[:count], self.ids[:count], self.log_probs[:count])


@dataclass(slots=True)
class _Gathered:
    """Predictions that are being read, token by token."""

    name: str
    tokens: Tokens = field(default_factory=Tokens)
    log_probs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    alternatives: Tokens = field(default_factory=Tokens)
    alternative_log_probs: list[float] = field(default_factory=list)

    def read(self) -> Predictions:
        own = self._checked(self.log_probs, "logprob")
        own[own <= UNKNOWN] = np.nan
        others = self._checked(self.alternative_log_probs, "alternative")
        others[others <= UNKNOWN] = -np.inf
        counts = np.array(self.counts, np.int64)
        self._refuse_mass(others, counts)
        return Predictions(
            self.tokens,
            own.astype(np.float32),
            counts,
            self.alternatives,
            others.astype(np.float32),
        )

    def _checked(self, log_probs: Sequence[float], what: str) -> npt.NDArray[np.float64]:
        values = np.array(log_probs, np.float64)
        above = np.flatnonzero(values > ROUNDING)
        if len(above):
            raise malformed(
                f"{self.name}, {what} {above[0]},",
                values[above[0]],
                "a log-probability: it exceeds 0",
            )
        return np.minimum(values, 0.0)

    def _refuse_mass(self, log_probs: npt.NDArray[np.float64], counts: IntArray) -> None:
        tokens = np.repeat(np.arange(len(counts)), counts)
        masses = np.bincount(tokens, np.exp(log_probs), len(counts))
        above = np.flatnonzero(masses > MOST_MASS)
        if len(above):
            raise malformed(
                f"{self.name}, the probability of all alternatives of token {above[0]},",
                round(float(masses[above[0]]), 4),
                "1 or less",
            )


def read_log_probs(value: object, name: str) -> Predictions | None:
    """The `logprobs` of a choice in either form; None if there are none."""
    if value is None:
        return None
    fields = an_object(value, name)
    if isinstance(fields.get("tokens"), list):
        return _legacy(fields, name)
    # A refusal has its tokens in a list of its own.
    content = fields.get("refusal") or fields.get("content")
    return optional(content, f"{name}.content", _chat)


def _chat(value: object, name: str) -> Predictions:
    gathered = _Gathered(name)
    for at, item in enumerate(a_list(value, name)):
        here = f"{name}[{at}]"
        fields = an_object(item, here)
        gathered.tokens.add(*_token(fields, here))
        gathered.log_probs.append(_log_prob(fields.get("logprob"), f"{here}.logprob"))
        top = optional(fields.get("top_logprobs"), f"{here}.top_logprobs", a_list) or []
        for other in top:
            others = an_object(other, f"{here}.top_logprobs")
            gathered.alternatives.add(*_token(others, f"{here}.top_logprobs"))
            log_prob = _log_prob(others.get("logprob"), f"{here}.top_logprobs.logprob", -np.inf)
            gathered.alternative_log_probs.append(log_prob)
        gathered.counts.append(len(top))
    return gathered.read()


def _token(fields: dict[str, Any], name: str) -> tuple[str | None, bytes | None, int | None]:
    string = a_text(fields.get("token"), f"{name}.token")
    token = optional(fields.get("id", fields.get("token_id")), f"{name}.id", a_whole_number)
    if token is None and (found := _ID.fullmatch(string)):
        return None, None, int(found[1])
    spelled = optional(fields.get("bytes"), f"{name}.bytes", _spelled)
    return string, spelled, token


def _spelled(value: object, name: str) -> bytes:
    try:
        return bytes(a_list(value, name))
    except (TypeError, ValueError):
        raise malformed(name, value, "a list of bytes") from None


def _log_prob(value: object, name: str, absent: float = np.nan) -> float:
    """A log-probability; `absent` for null and minus infinity, which JSON cannot write."""
    return absent if value is None or value == -np.inf else a_number(value, name)


def _legacy(fields: dict[str, Any], name: str) -> Predictions:
    gathered = _Gathered(name)
    strings = a_list(fields["tokens"], f"{name}.tokens")
    log_probs = _as_long(fields.get("token_logprobs"), f"{name}.token_logprobs", len(strings))
    top = fields.get("top_logprobs")
    tops = [None] * len(strings)
    if top:
        tops = _as_long(top, f"{name}.top_logprobs", len(strings))
    for at, (string, log_prob, others) in enumerate(zip(strings, log_probs, tops, strict=True)):
        gathered.tokens.add(*_written(a_text(string, f"{name}.tokens[{at}]")))
        gathered.log_probs.append(_log_prob(log_prob, f"{name}.token_logprobs[{at}]"))
        here = f"{name}.top_logprobs[{at}]"
        alternatives = optional(others, here, an_object) or {}
        for other, its in alternatives.items():
            gathered.alternatives.add(*_written(a_text(other, here)))
            gathered.alternative_log_probs.append(_log_prob(its, here, -np.inf))
        gathered.counts.append(len(alternatives))
    return gathered.read()


def _as_long(value: object, name: str, count: int) -> list[Any]:
    items = a_list(value, name)
    if len(items) != count:
        raise MalformedReplyError(f"{name} has {len(items)} entries for {count} tokens")
    return items


def _written(string: str) -> tuple[str | None, bytes | None, int | None]:
    """A token of which there is only a string; OpenAI writes `bytes:\\xe2\\x80` for a part of a
    character."""
    if found := _ID.fullmatch(string):
        return None, None, int(found[1])
    if found := _ESCAPED.fullmatch(string):
        return string, bytes.fromhex(found[1].replace("\\x", "")), None
    return string, None, None


def read_prompt(value: object, own: object, name: str) -> Predictions | None:
    """The `prompt_logprobs` of vLLM, token by token as predicted from those before it; None if
    there are none. The first token has no prediction.

    `own`: the `prompt_token_ids` of the same reply; None: the first id of each object is the
    prompt's own."""
    if value is None:
        return None
    places = a_list(value, name)
    ids = optional(own, f"{name}: prompt_token_ids", a_list)
    if ids is not None and len(ids) != len(places):
        raise MalformedReplyError(f"{name} has {len(places)} entries for {len(ids)} tokens")
    gathered = _Gathered(name)
    for at, place in enumerate(places):
        here = f"{name}[{at}]"
        fields = optional(place, here, an_object) or {}
        if not fields and at:
            raise malformed(here, place, "an object of token ids")
        others = {_id(key, here): _ranked(its, here) for key, its in fields.items()}
        first = next(iter(others), None)
        token = first if ids is None else a_whole_number(ids[at], "prompt_token_ids")
        if others and token not in others:
            raise MalformedReplyError(f"{here} lacks the prompt's own token {token}")
        gathered.tokens.add(None, None, token)
        # Of zero probability, the prompt's own token has a log-probability that JSON cannot write.
        gathered.log_probs.append(others.get(token, np.nan) if token is not None else np.nan)
        for other, log_prob in others.items():
            gathered.alternatives.add(None, None, other)
            gathered.alternative_log_probs.append(log_prob)
        gathered.counts.append(len(others))
    return gathered.read()


def _id(key: str, name: str) -> int:
    if not _DIGITS.fullmatch(key):
        raise malformed(name, key, "a token id")
    return int(key)


def _ranked(value: object, name: str) -> float:
    return _log_prob(an_object(value, name).get("logprob"), f"{name}.logprob", -np.inf)
