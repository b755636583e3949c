"""How much of a corpus a tokenizer does not know: such texts are all alike to a model.

Counted in a sample, without special tokens around texts. A tokenizer of bytes knows everything.
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
"""Share of the tokens from which on a corpus is said to be unknown."""
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
    """What is unknown of some texts; None if that is less than most of them."""
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
