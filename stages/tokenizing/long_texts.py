"""Cutting very long texts before they are tokenized.

A tokenizer reads all of a text, 2 s a million characters, however few tokens are kept. So a text of
many more characters is cut at a split point (`partings`), or inside of a long stretch without one,
one endless word, a script without spaces: then the first tokens of what is left are those of the
whole text. It is not cut if no such point is known.

A model that merges pieces, the most common pair first, or that looks for the best path, has this in
common: its tokens up to the end of any one of them are those of the text up to there, had it ended
there. Somewhere in the last `longest` characters before a cut a token ends. So if the text, ended
at each of these characters in turn, always has the same first tokens, the whole text has them.

What comes before the model has to be the same for these texts, too: inside of a stretch of letters
that no pattern tells apart. And no character of it may be unknown: those become tokens of any
length.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .partings import (
    FROM_THE_LEFT,
    IDEOGRAPHS,
    LOWER,
    MARKS,
    Atom,
    Parting,
    alternatives,
    in_characters,
    partings,
    steps_of,
    vocabulary_of,
)

MARGIN = 32
"""Characters before a cut that a pattern of fixed length may look at."""
MOST_CUTS = 512
_KINDS = tuple(map(frozenset, (LOWER + IDEOGRAPHS + MARKS, LOWER, IDEOGRAPHS)))


@dataclass(frozen=True, slots=True)
class Stretches:
    """`letters`: which a stretch may be of, one set or another; `known`: characters that the model
    knows, None: all."""

    tokenizer: Any
    longest: int
    letters: tuple[frozenset[str], ...]
    known: frozenset[str] | None

    @property
    def least(self) -> int:
        """Characters of the shortest text of which anything is settled."""
        return 4 * self.longest + 2 * MARGIN

    def settles(self, text: str, at: int, tokens: int, options: dict[str, Any]) -> bool:
        """Whether the first `tokens` + 1 tokens of the first `at` characters are those of the whole
        text."""
        start = at - 2 * self.longest - MARGIN
        if start <= 0 or not self._is_stretch(text[start:at]):
            return False
        ends = range(at - self.longest + 1, at + 1)
        kwargs = {"add_special_tokens": False, "verbose": False, **options}
        found = self.tokenizer([text[:end] for end in ends], return_offsets_mapping=True, **kwargs)
        rows, offsets = found["input_ids"], found["offset_mapping"][-1]
        if len(offsets) <= tokens or offsets[tokens][1] > start:
            return False
        return all(row[: tokens + 1] == rows[-1][: tokens + 1] for row in rows)

    def _is_stretch(self, stretch: str) -> bool:
        if not any(letters.issuperset(stretch) for letters in self.letters):
            return False
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        seen = stretch if normalizer is None else normalizer.normalize_str(stretch)
        return self.known is None or self.known.issuperset(seen)


def stretches(tokenizer: Any) -> Stretches | None:
    """Stretches of a tokenizer; None if unknown."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    model, words = document["model"], vocabulary_of(document["model"])
    if model["type"] not in ("BPE", "Unigram") or model.get("dropout"):
        return None
    if model.get("end_of_word_suffix"):  # the last character of a word is another piece
        return None
    steps = [*steps_of(document["normalizer"]), *steps_of(document["pre_tokenizer"])]
    added = [token["content"].lower() for token in document["added_tokens"]]
    letters = tuple(
        kind
        for kind in _KINDS
        if all(_runs_on(step, kind) for step in in_characters(steps))
        and not any(kind.issuperset(content) for content in added)
    )
    longest = max(map(len, words), default=0)
    if not letters or not 0 < longest <= MOST_CUTS:
        return None
    in_bytes = any(step["type"] == "ByteLevel" for step in steps)
    return Stretches(tokenizer, longest, letters, None if in_bytes else frozenset(words))


def _runs_on(step: dict[str, Any], letters: frozenset[str]) -> bool:
    """Whether a step gives the same result for a stretch, wherever that is cut, except at its
    end."""
    if step["type"] in FROM_THE_LEFT:
        return True
    if step["type"] not in ("Split", "Replace"):
        return False
    pattern = step["pattern"]
    if "Regex" not in pattern:
        return letters.isdisjoint(pattern["String"])
    found = alternatives(pattern["Regex"])
    return found is not None and all(_is_same(atoms, letters) for atoms in found)


def _is_same(atoms: list[Atom], letters: frozenset[str]) -> bool:
    """Whether an alternative that has taken a letter needs nothing but letters after it, or is too
    short to matter."""
    if not any(atom.many for atom in atoms):
        return len(atoms) <= MARGIN
    stretch, entered = "".join(sorted(letters)), False
    for atom in atoms:
        taken = atom.matches(stretch, "i")
        if entered and atom.needed and taken < len(stretch):
            return False
        entered = entered or taken > 0
    return True


LONG = 32
"""Characters a token that is kept, from which on a text is looked at."""
TRIED = 8
"""Characters a token of the first cut that is tried; each later one has four times as many."""
_WORD_STEPS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})


def text_and_pair(tokenizer: Any, segments: Sequence[str]) -> tuple[str, str | None]:
    """Input of a tokenizer for an example: one segment alone; of several the first and, as its
    pair, the others joined by the separator token, or by the one that ends texts if there is
    none."""
    first, *rest = segments
    if not rest:
        return first, None
    separator = tokenizer.sep_token or tokenizer.eos_token or ""
    return first, f" {separator} ".join(rest)


def shortened(tokenizer: Any, texts: Sequence[str], tokens: int, **options: Any) -> list[str]:
    """The texts, of which the first `tokens` tokens are wanted, not counting special tokens around
    them. A cut text has more than that many, so that it still counts as longer.

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
    """Properties of a tokenizer that cuts rely on."""

    def __init__(self, tokenizer: Any) -> None:
        self.partings: list[Parting] = partings(tokenizer)
        readable = tokenizer.is_fast and tokenizer.truncation_side == "right"
        self._stretches: Stretches | None = stretches(tokenizer) if readable else None
        self._longest_word = _longest_word(tokenizer) if self.partings else None

    def cut(self, tokenizer: Any, text: str, tokens: int, options: dict[str, Any]) -> str:
        """The text, or as much of it as proves to have its first tokens, and one more."""
        size, half = TRIED * max(tokens, 1), len(text) // 2
        while size < half:
            positions = [kind.find(text, size) for kind in self.partings]
            position = min((found for found in positions if found is not None), default=half)
            if position >= half:
                break
            ids = tokenizer(text[:position], add_special_tokens=False, verbose=False, **options)
            if len(ids["input_ids"]) > tokens:
                return text[:position]
            size = 4 * position
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
