"""What a server says when it refuses: one line for people, and whether asking again can help.

The body of an error is JSON in one of many forms, a line of text, or a web page of whatever stands
before the server. Three outcomes are told apart:

- `text`: this text alone will not do: too long, against a policy, or empty. Others may.
- `again`: the same request may be answered later.
- `never`: nothing will be answered until somebody changes something: a key, an option, a bill.

A status says this only roughly. A 429 may mean that money has run out (`insufficient_quota`), and
llama.cpp calls a text that is too long for its batch a 500. Servers have no common codes for most
of it, so that their words are looked at, too. What is not recognised counts by its status.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from ....cache_schemas.errors import one_line, shown_url

Outcome = Literal["text", "again", "never"]
Reason = Literal["length", "policy", "empty", "credit"]

MAX_CHARACTERS = 300
"""Limit of a message."""

_DEPTH = 6
"""Levels of a body that are looked at."""
_MESSAGES = ("error", "message", "detail", "errors")
_CODE_NAMES = frozenset({"code", "type", "error_type"})

_TRANSIENT = frozenset({408, 409, 425, 429})
_NOT_IMPLEMENTED = 501
_ABOUT_A_TEXT = frozenset({400, 403, 413, 422, 500})
_TOO_LARGE = 413
_PAYMENT_REQUIRED = 402

_CODES: dict[str, Reason] = {
    "context_length_exceeded": "length",
    "exceed_context_size_error": "length",
    "string_above_max_length": "length",
    "content_filter": "policy",
    "content_policy_violation": "policy",
    "responsibleaipolicyviolation": "policy",
    "moderation_blocked": "policy",
    "data_inspection_failed": "policy",
    "invalid_prompt": "policy",
    "insufficient_quota": "credit",
    "billing_hard_limit_reached": "credit",
    "billing_not_active": "credit",
    "insufficient_balance": "credit",
}
_WORDS: dict[Reason, re.Pattern[str]] = {
    "length": re.compile(
        r"context (length|size|window|limit)|too large to process|maximum (model|input) length"
        r"|must have less than \d+ tokens|max_tokens must be at least 1, got -",
        re.IGNORECASE,
    ),
    "policy": re.compile(
        r"content (management )?polic|content filter|safety system|inappropriate content|flagged",
        re.IGNORECASE,
    ),
    "empty": re.compile(r"(cannot|must not|can't) be empty|non-empty", re.IGNORECASE),
    "credit": re.compile(
        r"insufficient (balance|credit|fund)|credit balance is too low|more credits", re.IGNORECASE
    ),
}

_SECRET = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|nvapi|key|bearer)[-_ ][\w.*+/=-]{8,}|\beyJ[\w.-]{16,}", re.IGNORECASE
)
_KEY_SAID = re.compile(r"(key[^:\n]{0,24}: ?)\S+", re.IGNORECASE)
_TITLE = re.compile(r"<(title|h1)[^>]*>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A refusal. `message`: one short line without secrets; `reason`: if it was recognised."""

    status: int
    message: str
    outcome: Outcome
    reason: Reason | None


def read_error(status: int, body: bytes, secrets: Sequence[str] = ()) -> ErrorReply:
    """The refusal that a status and a body mean. `secrets` are left out of its message."""
    message, codes = _read(body.decode(errors="replace"))
    reason = _reason(status, message, codes)
    written = _without_secrets(message or _phrase(status), secrets)
    return ErrorReply(status, written, _outcome(status, reason), reason)


def _outcome(status: int, reason: Reason | None) -> Outcome:
    if reason is not None:
        return "never" if reason == "credit" else "text"
    transient = status in _TRANSIENT or (status >= 500 and status != _NOT_IMPLEMENTED)
    return "again" if transient else "never"


def _reason(status: int, message: str, codes: frozenset[str]) -> Reason | None:
    known = {_CODES[code] for code in codes if code in _CODES}
    known |= {reason for reason, words in _WORDS.items() if words.search(message)}
    if "credit" in known or status == _PAYMENT_REQUIRED:
        return "credit"
    if status not in _ABOUT_A_TEXT:
        return None
    if status == _TOO_LARGE:
        return "length"
    return next((reason for reason in _WORDS if reason in known), None)


def _read(text: str) -> tuple[str, frozenset[str]]:
    """The message of a body, and all codes and types in it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _plain(text), frozenset()
    return _message(value), frozenset(_codes(value))


def _message(value: Any, depth: int = _DEPTH) -> str:
    """The message of a body of JSON, wherever a server puts it."""
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_message(each, depth - 1) for each in value[:3])))
    if not isinstance(value, dict):
        return ""
    if "msg" in value:
        # Of a check of the request: the place and what is wrong there, without the input itself.
        place = value["loc"] if isinstance(value.get("loc"), list) else []
        return ": ".join(map(str, [*place, value["msg"]]))
    found = (_message(value.get(name), depth - 1) for name in _MESSAGES)
    return next(filter(None, found), "")


def _codes(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """All codes and types in a body of JSON."""
    inner = value.items() if isinstance(value, dict) else ()
    for name, each in enumerate(value) if isinstance(value, list) else inner:
        if isinstance(each, dict | list) and depth:
            yield from _codes(each, depth - 1)
        elif name in _CODE_NAMES and isinstance(each, str):
            yield each.lower()


def _plain(text: str) -> str:
    """The title of a web page, or the text itself."""
    if found := _TITLE.search(text):
        return _TAG.sub("", found[2]).strip()
    return " ".join(_TAG.sub(" ", text).split())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no message"


def _without_secrets(message: str, secrets: Sequence[str]) -> str:
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    message = _SECRET.sub("***", _KEY_SAID.sub(r"\1***", message))
    line = one_line(" ".join(shown_url(message).split()))
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}..."
