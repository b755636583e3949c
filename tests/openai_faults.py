"""Replies of a server that fails, as `openai_server.py` sends them."""

import json
from typing import Any

from openai_server import DRIP, HANG, Body, Fault


def status(code: int, message: str = "", kind: str = "error", **headers: str) -> Fault:
    body = json.dumps({"error": {"message": message, "code": kind}}).encode()
    return lambda asked, reply: (code, headers, body)


def changed(change: Any) -> Fault:
    """A reply whose items are something else."""

    def reply_of(asked: Body, reply: Body) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(reply | {"data": change(reply["data"])}).encode()

    return reply_of


def _numbered(items: list[Body], change: Any) -> list[Body]:
    return [{**items[0], "embedding": change(items[0]["embedding"])}, *items[1:]]


PASSING: dict[str, Fault] = {
    "429": status(429, "slow down"),
    "429 with a wait": status(429, "slow down", **{"retry-after": "0"}),
    "500": status(500, "oops"),
    "502": lambda asked, reply: (502, {}, b"<html><title>Bad gateway</title></html>"),
    "503": status(503, "loading model"),
    "cut": lambda asked, reply: (200, {}, None),
    "truncated": lambda asked, reply: (200, {}, json.dumps(reply).encode()[:-40]),
    "empty": lambda asked, reply: (200, {}, b""),
    "not a number": changed(lambda items: _numbered(items, lambda v: [float("nan"), *v[1:]])),
    "missing": changed(lambda items: items[1:]),
    "duplicated": changed(lambda items: [items[0], *items[:-1]]),
    "other width": changed(lambda items: _numbered(items, lambda v: v[:5])),
    "no items": lambda asked, reply: (200, {}, b'{"model": "toy", "data": null}'),
}
"""Replies that are followed by proper ones when the same is sent again."""

SLOW: dict[str, Fault] = {
    "hang": lambda asked, reply: (200, {HANG: "10"}, json.dumps(reply).encode()),
    "slow drip": lambda asked, reply: (200, {DRIP: "0.05"}, json.dumps(reply).encode()),
}
"""Replies that take longer than a deadline of seconds, and are followed by proper ones."""

ENDING: dict[str, tuple[Fault, str]] = {
    "expired key": (status(401, "key has expired"), "OPENAI_API_KEY"),
    "no money": (status(429, "you exceeded your quota", "insufficient_quota"), "quota"),
    "no such model": (status(404, "model toy does not exist"), "toy does not exist"),
    "another model": (
        lambda asked, reply: (200, {}, json.dumps(reply | {"model": "toy-2"}).encode()),
        "was served by toy, is now by toy-2",
    ),
    "another fingerprint": (
        lambda asked, reply: (200, {}, json.dumps(reply | {"system_fingerprint": "b"}).encode()),
        "is now by toy (b)",
    ),
}
"""Replies that end a run, and what it says then."""
