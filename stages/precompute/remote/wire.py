"""Strict readers of the fields of a reply, and what every reply says of itself.

A reply is JSON that somebody else's server wrote. Each reader takes the name under which its error
speaks of the value, such as `choices[0].text`. No reader looks at fields that it has no use for:
servers add their own.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ....cache_schemas.errors import JobError, one_line

_SHOWN_CHARACTERS = 60
_HALF = re.compile("[\ud800-\udfff]")

Value = TypeVar("Value")


class MalformedReplyError(Exception):
    """A reply that is not what the protocol says; the message names the field and its value."""


def malformed(name: str, value: object, expected: str) -> MalformedReplyError:
    """The error of a field: `choices[0].index is "a", not a whole number`."""
    return MalformedReplyError(f"{name} is {shown(value)}, not {expected}")


def shown(value: object) -> str:
    """A value on one line, cut to some length."""
    cut = repr(value[: _SHOWN_CHARACTERS + 1]) if isinstance(value, str) else str(value)
    text = one_line(cut)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a reply was billed for."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """The model behind a reply, as the server says; a model of '' is one that it doesn't name."""

    model: str
    system_fingerprint: str | None


def read_usage(reply: object) -> Usage:
    """The billed tokens of a reply; zeros where it doesn't say, as servers of one's own often don't
    for everything.

    Output tokens include those of thinking, which are billed alike."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if usage is None:
        return Usage(0, 0)
    usage = an_object(usage, "usage")
    given = usage.get("prompt_tokens", usage.get("input_tokens"))
    written = usage.get("completion_tokens", usage.get("output_tokens"))
    return Usage(_count(given, "usage.prompt_tokens"), _count(written, "usage.completion_tokens"))


def _count(value: object, name: str) -> int:
    count = 0 if value is None else a_whole_number(value, name)
    if count < 0:
        raise malformed(name, value, "0 or more")
    return count


def read_served(reply: object) -> Served:
    """The model and the fingerprint that a reply names."""
    named = reply if isinstance(reply, dict) else {}
    model = optional(named.get("model"), "model", a_text)
    fingerprint = optional(named.get("system_fingerprint"), "system_fingerprint", a_text)
    return Served(model or "", fingerprint)


def an_object(value: object, name: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise malformed(name, value, "an object")
    return value


def a_reply(value: object) -> dict[str, Any]:
    """The object that a reply is; some routers report an error with the status of success."""
    fields = an_object(value, "reply")
    if fields.get("error"):
        raise MalformedReplyError(f"reply is an error: {shown(fields['error'])}")
    return fields


def a_list(value: object, name: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise malformed(name, value, "a list")
    return value


def a_text(value: object, name: str) -> str:
    """A string of whole characters: JSON can write a half of one, which has no bytes."""
    if not isinstance(value, str):
        raise malformed(name, value, "a string")
    if not value.isascii() and _HALF.search(value):
        raise malformed(name, value, "a string of whole characters")
    return value


def a_whole_number(value: object, name: str) -> int:
    """An integer of 64 bits; true and 1.0 are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise malformed(name, value, "a whole number")
    return value


def a_number(value: object, name: str) -> float:
    """A finite number; Python reads NaN and Infinity in JSON, which has neither."""
    try:
        number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise malformed(name, value, "a finite number")
    return number


def optional(
    value: object, name: str, read: Callable[[object, str], Value], default: Value | None = None
) -> Value | None:
    """What `read` makes of a value; `default` for null, which is also an absent field."""
    return default if value is None else read(value, name)


def in_order(
    items: Sequence[object], name: str, count: int, what: str = "items"
) -> list[dict[str, Any]]:
    """Objects with an `index`, in that order: each of 0 .. count - 1 once. Servers send them as
    they are ready, or by descending score.

    A lone item need not say its index."""
    placed: dict[int, dict[str, Any]] = {}
    for at, item in enumerate(items):
        fields = an_object(item, f"{name}[{at}]")
        index = 0 if count == 1 and "index" not in fields else fields.get("index")
        index = a_whole_number(index, f"{name}[{at}].index")
        if not 0 <= index < count:
            raise malformed(f"{name}[{at}].index", index, f"one of {count} {what}")
        if index in placed:
            raise MalformedReplyError(f"{name} has two {what} of index {index}")
        placed[index] = fields
    if len(placed) < count:
        missing = next(index for index in range(count) if index not in placed)
        raise MalformedReplyError(
            f"{name} has {len(placed)} of {count} {what}; that of index {missing} is missing"
        )
    return [placed[index] for index in range(count)]


def with_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A body with the user's own fields. Raises JobError for a field that armada itself sets."""
    taken = sorted(body.keys() & extra.keys())
    if taken:
        raise JobError(f"extra field {taken[0]!r} is one that armada sets itself: leave it out")
    return {**body, **extra}
