"""Long stretches without a place where a text parts: one endless word, a script without spaces.

A model that merges pieces, the most common pair first, or that looks for the best path, has this in
common: its tokens up to the end of any one of them are those of the text up to there, had it ended
there. Somewhere in the last `longest` characters before a cut a token ends. So if the text, ended
at each of these characters in turn, always has the same first tokens, the whole text has them.

What comes before the model has to be the same for these texts, too: inside of a stretch of letters
that no pattern tells apart. And no character of it may be unknown: those become tokens of any
length.
"""

import json
from dataclasses import dataclass
from typing import Any

from .partings import (
    FROM_THE_LEFT,
    IDEOGRAPHS,
    LOWER,
    MARKS,
    Atom,
    alternatives,
    in_characters,
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
        asked = {"add_special_tokens": False, "verbose": False, **options}
        found = self.tokenizer([text[:end] for end in ends], return_offsets_mapping=True, **asked)
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
    """Those of a tokenizer; None if nothing is known of them."""
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
    """Whether a step makes the same of a stretch, wherever that is cut, but for its last end."""
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
