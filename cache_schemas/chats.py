"""A chat as an example of one text segment: canonical JSON of its turns.

So a chat's key, like any other, is that of its text (`keys`), whatever file and form it came in.
Turns are objects with a `role`, a `content`, and whatever else a template may read of them, in
order; what is null is left out.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .keys import canonical_json

ROLES = ("system", "developer", "user", "assistant", "tool")

Turns = list[dict[str, Any]]


def chat_segment(turns: Sequence[Mapping[str, Any]]) -> str:
    """The segment of a chat."""
    kept = [{name: value for name, value in turn.items() if value is not None} for turn in turns]
    return canonical_json(kept).decode()


def chat_turns(segment: str) -> Turns:
    """The turns of a segment. Raises ValueError for one that is no chat, or has no answer at its
    end."""
    turns = json.loads(segment)
    if not isinstance(turns, list) or chat_problem(turns):
        raise ValueError(
            chat_problem(turns) if isinstance(turns, list) else "is not a list of turns"
        )
    if turns[-1]["role"] != "assistant":
        raise ValueError("does not end with an answer of the assistant")
    return turns


def asking_turns(turns: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The turns of a chat up to the prompt of its last answer, with or without that answer."""
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def answered(segment: str, answer: str) -> str:
    """The segment of a chat that is a prompt, followed by an answer. Plain text is a user's
    turn."""
    turns = turns_of(segment) or [{"role": "user", "content": segment}]
    return chat_segment([*turns, {"role": "assistant", "content": answer}])


def turns_of(segment: str) -> Turns | None:
    """The turns of a segment that is a chat, with or without an answer at its end; None for a plain
    text."""
    try:
        turns = json.loads(segment)
    except ValueError:
        return None
    return None if not isinstance(turns, list) or chat_problem(turns, asks=True) else turns


def chat_problem(turns: Sequence[Any] | None, asks: bool = False) -> str | None:
    """The problem of a chat, or of one that may end without an answer (`asks`); None if there is
    none."""
    if not turns:
        return "has no turns"
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            return f"turn {number} lacks a role or a content"
        if turn["role"] not in ROLES:
            return (
                f"turn {number} has role {turn['role']!r}, which is not one of {', '.join(ROLES)}"
            )
        if not isinstance(turn["content"], str):
            return f"turn {number} ({turn['role']}) has content that is not text"
        if not turn["content"].strip():
            return f"turn {number} ({turn['role']}) is empty"
    if not asks and all(turn["role"] != "assistant" for turn in turns):
        return "has no turn of the assistant to learn"
    if turns[0]["role"] == "assistant":
        return "begins with a turn of the assistant"
    return None
