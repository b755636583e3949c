"""The answer in a response, and the one that most responses have."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .rules import AnswerRule


def answer_in(rule: AnswerRule, text: str) -> str | None:
    """The answer in a text, in the form in which answers are compared; None if there is none."""
    found: str | None = text
    if rule.answer is not None:
        matches = list(re.finditer(rule.answer, text))
        found = matches[-1][1 if matches[-1].re.groups else 0] if matches else None
    return None if found is None else _comparable(rule, found)


def answer_of_label(rule: AnswerRule, label: Any) -> str | None:
    """The answer of a label: found in it as in a response, or all of it; None without a label."""
    if label is None or label == "":
        return None
    text = str(label)
    found = answer_in(rule, text) if rule.answer is not None else None
    return _comparable(rule, text) if found is None else found


def most_common(answers: Iterable[str | None]) -> tuple[str | None, int]:
    """The answer that most have, and how many; None where two are as many, or there is none."""
    counts = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None, 0
    return counts[0]


def _comparable(rule: AnswerRule, text: str) -> str | None:
    words = " ".join(text.split())
    if rule.as_number:
        try:
            number = float(words.replace(",", "").strip("$€£% ").rstrip("."))
        except ValueError:
            return None
        return repr(number) if math.isfinite(number) else None
    return words.casefold() if rule.ignore_case else words
