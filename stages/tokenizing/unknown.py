"""Share of unknown tokens in a corpus: a model cannot distinguish such texts.

Counted in a sample, without special tokens around texts. A byte-level tokenizer has no unknown
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .long_texts import shortened

SAMPLE = 1024
"""Texts that are counted, spread evenly."""
KEPT = 128
"""Tokens of each."""
MOST = 0.5
"""Share of unknown tokens from which on there is a warning."""
_SHOWN, _LETTERS = 2, 20


@dataclass(frozen=True, slots=True)
class Unknown:
    """The share of tokens that are the unknown one, `token`, and words that became it."""

    share: float
    token: str
    words: tuple[str, ...]

    def of(self, whose: str) -> str:
        """The warning."""
        words = ", ".join(map(repr, self.words))
        return (
            f"the {whose}'s tokenizer does not cover the corpus: {self.share:.0%} of its tokens "
            f"are {self.token} ({words} and others); use a {whose} for the corpus's language"
        )


def mostly_unknown(tokenizer: Any, texts: Sequence[str]) -> Unknown | None:
    """Unknown tokens of some texts; None if they are less than most."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not texts:
        return None
    known = shortened(tokenizer, texts, KEPT)
    rows = tokenizer(list(known), add_special_tokens=False, verbose=False)["input_ids"]
    kept = [row[:KEPT] for row in rows]
    count = sum(map(len, kept))
    share = sum(row.count(unknown) for row in kept) / max(count, 1)
    if share <= MOST:
        return None
    return Unknown(share, str(tokenizer.unk_token), _examples(tokenizer, unknown, known))


def _examples(tokenizer: Any, unknown: int, texts: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for word in (word[:_LETTERS] for text in texts for word in text[: KEPT * _LETTERS].split()):
        if unknown in tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]:
            found[word] = None
        if len(found) == _SHOWN:
            break
    return tuple(found)
