"""The part of a generated response that counts: up to a stop string, without thoughts.

The stop string is not in the text; its tokens count, up to the one that completes it. Thoughts are
what stands before `</think>`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

END_OF_THINKING = "</think>"

Ids = npt.NDArray[np.uint32]
"""Tokens of a response, [T]."""


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of a response that count, from `start` to `stop - 1`, and their text; `ended`: by
    a stop string."""

    start: int
    stop: int
    text: str
    ended: bool

    @property
    def tokens(self) -> slice:
        """The tokens that count."""
        return slice(self.start, self.stop)


def part_of_response(
    decode: Callable[[Ids], str], ids: Ids, stops: Sequence[str], cuts_thoughts: bool
) -> Part:
    """What is left of a response that ends at the first of `stops`, without its thoughts. A
    response of thoughts alone is kept whole."""
    text, stop = decode(ids), len(ids)
    places = [at for each in stops if (at := text.find(each)) >= 0]
    if places:
        stop = _first(ids, lambda some: any(each in decode(some) for each in stops))
        text = text[: min(places)]
    start, behind = 0, text.partition(END_OF_THINKING)[2].lstrip("\n")
    if cuts_thoughts and behind:
        # The token in which the text behind the thoughts begins.
        start = _first(
            ids, lambda some: bool(decode(some).partition(END_OF_THINKING)[2].lstrip("\n"))
        )
        start, text = start - 1, behind
    return Part(start, stop, text, bool(places))


def _first(ids: Ids, holds: Callable[[Ids], bool]) -> int:
    """The fewest tokens at the start of `ids` of which something holds; it does of all of them, and
    of any more than the fewest."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(ids[:middle]) else (middle + 1, high)
    return low
