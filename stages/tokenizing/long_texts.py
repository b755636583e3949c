"""Texts far longer than what is kept of them, cut before they are tokenized.

A tokenizer reads all of a text, 2 s a million characters, however few tokens are kept. So a text of
many more characters is cut at a place where it parts (`partings`), or inside of a stretch without
one (`stretches`): then the first tokens of what is left are those of the whole text. It is left
whole where nothing of the kind is known.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .partings import Parting, partings
from .stretches import Stretches, stretches

LONG = 32
"""Characters a token that is kept, from which on a text is looked at."""
TRIED = 8
"""Characters a token of the first cut that is tried; each later one has four times as many."""
_WORD_STEPS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})


def shortened(tokenizer: Any, texts: Sequence[str], tokens: int, **options: Any) -> list[str]:
    """The texts, of which the first `tokens` tokens are wanted, not counting special tokens around
    them. One that is cut has more than that many, so that it is seen to be longer.

    `options`: those that the texts will be tokenized with."""
    return [
        text if len(text) <= LONG * max(tokens, 1) else _shortened(tokenizer, text, tokens, options)
        for text in texts
    ]


def shortened_pair(tokenizer: Any, first: str, second: str, tokens: int) -> tuple[str, str]:
    """A text and its pair, of which `tokens` tokens are wanted in all, from the longer one less.

    Only the longer one is cut, and stays the longer one: which of both has more tokens decides how
    many of each are kept."""
    if max(len(first), len(second)) <= LONG * tokens:
        return first, second
    other = min(first, second, key=len)
    count = len(tokenizer(other, add_special_tokens=False, verbose=False)["input_ids"])
    wanted = max(tokens, count)
    if len(first) >= len(second):
        return shortened(tokenizer, [first], wanted)[0], second
    return first, shortened(tokenizer, [second], wanted)[0]


def _shortened(tokenizer: Any, text: str, tokens: int, options: dict[str, Any]) -> str:
    known = _known(tokenizer, len(tokenizer), tokenizer.truncation_side)
    text = known.without_long_words(text)
    return known.cut(tokenizer, text, tokens, options)


class _Known:
    """What cuts of a tokenizer's texts rest on."""

    def __init__(self, tokenizer: Any) -> None:
        self.partings: list[Parting] = partings(tokenizer)
        readable = tokenizer.is_fast and tokenizer.truncation_side == "right"
        self._stretches: Stretches | None = stretches(tokenizer) if readable else None
        self._longest_word = _longest_word(tokenizer) if self.partings else None

    def cut(self, tokenizer: Any, text: str, tokens: int, options: dict[str, Any]) -> str:
        """The text, or as much of it as proves to have its first tokens, and one more."""
        size, half = TRIED * max(tokens, 1), len(text) // 2
        while size < half:
            places = [kind.find(text, size) for kind in self.partings]
            place = min((place for place in places if place is not None), default=half)
            if place >= half:
                break
            ids = tokenizer(text[:place], add_special_tokens=False, verbose=False, **options)
            if len(ids["input_ids"]) > tokens:
                return text[:place]
            size = 4 * place
        return self._cut_in_stretch(text, tokens, options)

    def _cut_in_stretch(self, text: str, tokens: int, options: dict[str, Any]) -> str:
        known = self._stretches
        if known is not None:
            first = max(TRIED * tokens, known.least)
            for at in (first, 4 * first, 16 * first):
                if at < len(text) // 2 and known.settles(text, at, tokens, options):
                    return text[:at]
        return text

    def without_long_words(self, text: str) -> str:
        """A word of more letters than a tokenizer looks at is unknown, however long it is."""
        if self._longest_word is None:
            return text
        letters = f"([0-9A-Za-z]{{{self._longest_word + 1}}})[0-9A-Za-z]+"
        return re.sub(letters, r"\1", text)


@lru_cache(maxsize=4)
def _known(tokenizer: Any, words: int, side: str) -> _Known:
    """Found once, unless the tokenizer changes."""
    return _Known(tokenizer)


def _longest_word(tokenizer: Any) -> int | None:
    """Letters of the longest word that is looked at; None if all are."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = document["pre_tokenizer"] or {"type": ""}
    if document["model"]["type"] != "WordPiece" or steps["type"] not in _WORD_STEPS:
        return None
    if any(token["content"].isalnum() for token in document["added_tokens"]):
        return None  # which may stand in such a word
    return int(document["model"]["max_input_chars_per_word"])
