"""Replies of any kind, and sound ones with one value changed, are read or refused as malformed."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from armada.stages.precompute.remote import embeddings, pictures, scores
from armada.stages.precompute.remote.responses import Choice, read_chat, read_completion
from armada.stages.precompute.remote.token_ids import UnmappedTokenError, Vocabulary
from armada.stages.precompute.remote.wire import MalformedReplyError, read_served, read_usage
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import make_kind

ENTRY = {"token": "a", "bytes": [97], "logprob": -0.5, "id": 70}
CONTENT = [{**ENTRY, "top_logprobs": [ENTRY, {**ENTRY, "logprob": -2.0, "id": 71}]}]
PROMPT = [None, {"70": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}]
CHAT = {
    "model": "m",
    "system_fingerprint": "f",
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    "choices": [
        {
            "index": 0,
            "message": {"content": "a", "reasoning_content": "b", "refusal": None},
            "finish_reason": "stop",
            "logprobs": {"content": CONTENT},
            "token_ids": [70],
        }
    ],
    "prompt_logprobs": PROMPT,
    "prompt_token_ids": [5, 70],
}
LEGACY = {
    "choices": [
        {
            "index": 0,
            "text": "ab",
            "logprobs": {
                "tokens": ["a", "token_id:71"],
                "token_logprobs": [None, -0.5],
                "top_logprobs": [None, {"a": -1.0, "b": -2.0}],
            },
            "prompt_logprobs": PROMPT,
        }
    ]
}
EMBEDDINGS = {
    "data": [{"index": 0, "embedding": [0.5, 1.0]}, {"index": 1, "embedding": "AAAAAAAA"}]
}
SCORES = {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 1}]}
PICTURES = {"data": [{"b64_json": "iVBORw0KGgo="}]}

STRANGE = st.sampled_from(
    [
        None, True, -1, 0, 1, 256, 2**63, 10**400, -(10**400), 0.5, -1e308, 1e308, float("nan"),
        float("inf"), float("-inf"), "", "a", "\ud800", "\x00", "token_id:99999999", "bytes:\\xff",
        [], [[]], {}, [None], {"": None}, "AAAA", "9" * 5000,
    ]
)  # fmt: skip
NAMES = st.sampled_from(["", "\ud800", "-1", "9" * 5000, "70", "token_id:70", "error"])
JSON = st.recursive(
    STRANGE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a value, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def chosen(read: Callable[[object], list[Choice]]) -> Callable[[object], None]:
    tokenizer = make_kind("gpt2")
    from tokenizers import decoders

    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(tokenizer)

    def whole(reply: object) -> None:
        for choice in read(reply):
            (choice.text + (choice.reasoning or "")).encode()
            for predictions in filter(None, (choice.predictions, choice.prompt)):
                vocabulary.response_ids(predictions, choice.text)
                vocabulary.top_k(predictions, 3)

    return whole


READERS: dict[str, tuple[Any, Callable[[object], Any]]] = {
    "chat": (CHAT, chosen(read_chat)),
    "legacy": (LEGACY, chosen(read_completion)),
    "usage": (CHAT, read_usage),
    "served": (CHAT, read_served),
    "embeddings": (EMBEDDINGS, lambda reply: embeddings.read(reply, 2)),
    "scores": (SCORES, lambda reply: scores.read(reply, 2)),
    "pictures": (PICTURES, pictures.read),
}


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_one_changed_value(name: str, data: st.DataObject) -> None:
    sound, read = READERS[name]
    reply = copy.deepcopy(sound)
    found = list(places(reply))
    container, key = found[data.draw(st.integers(0, len(found) - 1))]
    change = data.draw(st.sampled_from(["value", "name", "absent"]))
    value = container.pop(key)
    if change == "name" and isinstance(container, dict):
        container[data.draw(NAMES)] = value
    elif change == "value" and isinstance(container, dict):
        container[key] = data.draw(STRANGE)
    elif change == "value":
        container.insert(key, data.draw(STRANGE))
    refused_or_read(read, reply)


@given(name=st.sampled_from(sorted(READERS)), reply=JSON)
def test_anything(name: str, reply: Any) -> None:
    refused_or_read(READERS[name][1], reply)


def refused_or_read(read: Callable[[object], Any], reply: Any) -> None:
    message = ""
    try:
        read(reply)
    except (MalformedReplyError, UnmappedTokenError) as error:
        message = str(error)
    assert message == "" or message.isprintable()
    assert len(message) < 400


def test_half_a_character_is_no_text() -> None:
    reply = json.loads('{"choices": [{"index": 0, "text": "a\\ud800"}]}')
    with pytest.raises(MalformedReplyError, match=r"text is .*, not a string of whole characters"):
        read_completion(reply)
