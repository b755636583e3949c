"""Replies with generated text and log-probabilities, in the forms of OpenAI, llama.cpp and vLLM."""

import math
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError
from armada.stages.precompute.remote.responses import (
    GenerationRequest,
    chat_body,
    completion_body,
    read_chat,
    read_completion,
)
from armada.stages.precompute.remote.wire import (
    MalformedReplyError,
    Served,
    Usage,
    read_served,
    read_usage,
)


def entry(string: str, log_prob: Any, *top: dict[str, Any], **more: Any) -> dict[str, Any]:
    spelled = list(string.encode())
    its = {"token": string, "bytes": spelled, "logprob": log_prob, **more}
    return its | ({"top_logprobs": list(top)} if top else {})


def chat_reply(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "model": "m", "choices": list(choices), **more}


def said(text: str | None, index: int = 0, content: Any = None, **more: Any) -> dict[str, Any]:
    log_probs = None if content is None else {"content": content}
    message = {"role": "assistant", "content": text}
    return {
        "index": index,
        "message": message,
        "finish_reason": "stop",
        "logprobs": log_probs,
        **more,
    }


def completed(text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text, "finish_reason": "length", **more}]}


def test_reads_the_log_probabilities_of_a_chat() -> None:
    content = [
        entry("Hi", -0.5, entry("Hi", -0.5), entry("Yo", -2.0)),
        entry("!", -0.25, entry("!", -0.25), entry("?", -9999.0)),
        entry("", 0.00001, bytes=None),
    ]
    (choice,) = read_chat(chat_reply(said("Hi!", content=content)))
    predictions = choice.predictions
    assert predictions is not None
    assert predictions.tokens.spellings == [b"Hi", b"!", None]
    assert predictions.tokens.strings == ["Hi", "!", ""]
    assert predictions.log_probs.tolist() == [-0.5, -0.25, 0.0]
    assert predictions.counts.tolist() == [2, 2, 0]
    assert predictions.alternatives.spellings == [b"Hi", b"Yo", b"!", b"?"]
    assert predictions.alternative_log_probs.tolist() == [-0.5, -2.0, -0.25, -math.inf]
    assert (choice.text, choice.finish_reason, choice.declined) == ("Hi!", "stop", False)


def test_an_own_log_probability_that_nobody_knows_is_not_a_number() -> None:
    lowest = float(np.finfo(np.float32).min)
    content = [entry("a", -9999.0), entry("b", None), entry("c", lowest), entry("d", -9998.0)]
    (choice,) = read_chat(chat_reply(said("abcd", content=content)))
    assert choice.predictions is not None
    assert np.isnan(choice.predictions.log_probs).tolist() == [True, True, True, False]


def test_reads_the_ids_of_llama_cpp_in_both_calls() -> None:
    content = [entry("\ufffd", -1.0, entry("x", -1.0, id=9), bytes=[159], id=249)]
    (chat,) = read_chat(chat_reply(said("\ufffd", content=content)))
    (legacy,) = read_completion(completed("\ufffd", logprobs={"content": content}))
    for choice in (chat, legacy):
        assert choice.predictions is not None
        assert choice.predictions.tokens.ids == [249]
        assert choice.predictions.tokens.spellings == [b"\x9f"]
        assert choice.predictions.alternatives.ids == [9]


def test_reads_the_ids_that_vllm_writes_instead_of_tokens() -> None:
    top = {"token": "token_id:7", "bytes": list(b"token_id:7"), "logprob": -0.5}
    content = [{"token": "token_id:7", "bytes": [97], "logprob": -0.5, "top_logprobs": [top]}]
    (choice,) = read_chat(chat_reply(said("a", content=content, token_ids=[7])))
    assert choice.predictions is not None
    assert choice.predictions.tokens.ids == choice.predictions.alternatives.ids == [7]
    assert (
        choice.predictions.tokens.spellings == choice.predictions.alternatives.spellings == [None]
    )
    legacy = {
        "tokens": ["token_id:7"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:8": -2.0, "token_id:7": -0.5}],
    }
    (choice,) = read_completion(completed("a", logprobs=legacy))
    assert choice.predictions is not None
    assert choice.predictions.tokens.ids == [7]
    assert choice.predictions.alternatives.ids == [8, 7]


def test_ids_beside_the_log_probabilities_stand_for_the_tokens() -> None:
    content = [entry("\ufffd", -0.5), entry("b", -1.0)]
    (choice,) = read_chat(chat_reply(said("b", content=content, token_ids=[3, 4])))
    assert choice.predictions is not None
    assert choice.predictions.tokens.ids == [3, 4]
    with pytest.raises(MalformedReplyError, match="3 ids for 2 log-probabilities"):
        read_chat(chat_reply(said("b", content=content, token_ids=[3, 4, 5])))
    content[0]["id"] = 9
    with pytest.raises(MalformedReplyError, match=r"token_ids\[0\] is 3, not 9"):
        read_chat(chat_reply(said("b", content=content, token_ids=[3, 4])))


def test_reads_the_parallel_lists_of_the_legacy_call() -> None:
    legacy = {
        "tokens": ["The", " caf", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [None, -1.0, -2.0, 0.0],
        "top_logprobs": [None, {" caf": -1.0, " bar": -1.5}, {}, {"x": None}],
        "text_offset": [0, 3, 7, 7],
    }
    (choice,) = read_completion(completed("The caf\u00e9", logprobs=legacy))
    predictions = choice.predictions
    assert predictions is not None
    assert predictions.tokens.strings[:2] == ["The", " caf"]
    assert predictions.tokens.spellings == [None, None, b"\xc3", b"\xa9"]
    np.testing.assert_array_equal(predictions.log_probs, [np.nan, -1, -2, 0])
    assert predictions.counts.tolist() == [0, 2, 0, 1]
    assert predictions.alternative_log_probs.tolist() == [-1, -1.5, -np.inf]


def prompt_place(**log_probs: Any) -> dict[str, Any]:
    return {
        key[1:]: {"logprob": value, "rank": 1, "decoded_token": "x"}
        for key, value in log_probs.items()
    }


def test_reads_the_log_probabilities_of_a_prompt() -> None:
    places = [None, prompt_place(_5=-3.0, _9=-0.5, _2=-1.5), prompt_place(_9=None, _1=-0.1)]
    (legacy,) = read_completion(completed("", prompt_logprobs=places))
    more = {"prompt_logprobs": places, "prompt_token_ids": [1, 5, 9]}
    (chat,) = read_chat(chat_reply(said(""), **more))
    for choice, first in ((legacy, None), (chat, 1)):
        assert choice.prompt is not None
        assert choice.prompt.tokens.ids == [first, 5, 9]
        np.testing.assert_array_equal(choice.prompt.log_probs, [np.nan, -3, np.nan])
        assert choice.prompt.counts.tolist() == [0, 3, 2]
        assert choice.prompt.alternatives.ids == [5, 9, 2, 9, 1]
        np.testing.assert_allclose(
            choice.prompt.alternative_log_probs, [-3, -0.5, -1.5, -np.inf, -0.1], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("places", "ids", "message"),
    [
        ([None, prompt_place(_5=-3.0)], [1], "2 entries for 1 tokens"),
        ([None, prompt_place(_5=-3.0)], [1, 6], "lacks the prompt's own token 6"),
        ([None, None], None, r"prompt_logprobs\[1\] is None"),
        ([None, {"x": {"logprob": -1.0}}], None, "'x', not a token id"),
        ([None, {"5": -1.0}], None, "-1.0, not an object"),
        ([None, prompt_place(_5="a")], None, "'a', not a finite number"),
        ([None, prompt_place(_5=3.0)], None, "it exceeds 0"),
        ({}, None, "not a list"),
    ],
)
def test_refuses_what_are_no_log_probabilities_of_a_prompt(
    places: Any, ids: Any, message: str
) -> None:
    with pytest.raises(MalformedReplyError, match=message):
        read_completion(completed("", prompt_logprobs=places, prompt_token_ids=ids))


def test_responses_come_in_their_order_whatever_is_sent_first() -> None:
    choices = read_chat(chat_reply(said("c", 2), said("a", 0), said("b", 1)), 3)
    assert [choice.text for choice in choices] == ["a", "b", "c"]


def test_thinking_and_refusals_are_kept_apart_from_the_text() -> None:
    for name in ("reasoning_content", "reasoning"):
        item = said("42")
        item["message"][name] = "six times seven"
        (choice,) = read_chat(chat_reply(item))
        assert (choice.text, choice.reasoning) == ("42", "six times seven")
    item = said(None, refusal_log_probs=None)
    item["message"]["refusal"] = "I can't help with that."
    item["logprobs"] = {"content": None, "refusal": [entry("I", -0.5)]}
    (choice,) = read_chat(chat_reply(item))
    assert choice.declined
    assert (choice.text, choice.refusal) == ("", "I can't help with that.")
    assert choice.predictions is not None
    (filtered,) = read_chat(chat_reply(said("", finish_reason="content_filter")))
    assert filtered.declined
    assert filtered.refusal is None


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (chat_reply(), "0 of 2 responses"),
        (chat_reply(said("a")), "may not know `n`"),
        (chat_reply(said("a"), said("b")), "two responses of index 0"),
        (chat_reply(said("a"), said("b", 2)), "index is 2, not one of 2"),
        (chat_reply(said("a"), said("b", 1), said("c", 2)), "index is 2"),
        (chat_reply(said("a"), {"index": 1}), r"choices\[1\].message is None"),
        (chat_reply(said("a"), said(["b"], 1)), r"message.content is \['b'\]"),  # type: ignore[arg-type]
        (chat_reply(said("a"), said("b", 1, finish_reason="abort")), "given up"),
        (chat_reply(said("a"), said("b", 1, finish_reason=3)), "finish_reason is 3"),
        (chat_reply(said("a"), said("b", 1, logprobs=[])), r"logprobs is \[\]"),
        (chat_reply(said("a"), said("b", 1, [])), "no tokens, and the text has some"),
        (chat_reply(said("a"), said("b", 1, [entry("b", 0.5)])), "it exceeds 0"),
        (chat_reply(said("a"), said("b", 1, [entry("b", math.nan)])), "not a finite number"),
        (chat_reply(said("a"), said("b", 1, [entry("b", "-1")])), "'-1', not a finite number"),
        (chat_reply(said("a"), said("b", 1, [entry("b", -1, bytes=[256])])), "list of bytes"),
        (chat_reply(said("a"), said("b", 1, [entry("b", -1, bytes="b")])), "not a list"),
        (chat_reply(said("a"), said("b", 1, [entry("b", -1, id="7")])), "whole number"),
        (chat_reply(said("a"), said("b", 1, [{"logprob": -1}])), "token is None"),
        (
            chat_reply(said("a"), said("b", 1, [entry("b", -1, *[entry("b", -0.1)] * 2)])),
            "alternatives of token 0, is 1.8097, not 1 or less",
        ),
        ({"choices": "a"}, "choices is 'a'"),
        ({"error": {"message": "Busy", "code": 429}}, "reply is an error: .*Busy"),
        ([], r"reply is \[\]"),
    ],
)
def test_refuses_what_are_not_two_whole_responses(reply: Any, message: str) -> None:
    with pytest.raises(MalformedReplyError, match=message):
        read_chat(reply, 2)


@pytest.mark.parametrize("missing", ["token_logprobs", "top_logprobs"])
def test_parallel_lists_of_different_lengths_are_refused(missing: str) -> None:
    lists: dict[str, list[Any]] = {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{}, {}],
    }
    lists[missing].pop()
    with pytest.raises(MalformedReplyError, match=f"{missing} has 1 entries for 2 tokens"):
        read_completion(completed("ab", logprobs=lists))


def test_asks_for_what_is_wanted_and_no_more() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert chat_body("m", messages, GenerationRequest(16)) == {
        "model": "m",
        "messages": messages,
        "max_tokens": 16,
    }
    request = GenerationRequest(
        16,
        limit_name="max_completion_tokens",
        temperature=0.0,
        top_p=0.5,
        samples=3,
        seed=7,
        stop=("\n",),
        alternatives=5,
        extra={"top_k": 40},
    )
    assert chat_body("m", messages, request) == {
        "model": "m",
        "messages": messages,
        "max_completion_tokens": 16,
        "temperature": 0.0,
        "top_p": 0.5,
        "n": 3,
        "seed": 7,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 5,
        "top_k": 40,
    }
    request = GenerationRequest(1, alternatives=5, prompt_alternatives=5, token_ids=True, echo=True)
    assert completion_body("m", (1, 2), request) == {
        "model": "m",
        "prompt": [1, 2],
        "max_tokens": 1,
        "logprobs": 5,
        "prompt_logprobs": 5,
        "echo": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    with pytest.raises(JobError, match="'max_tokens'"):
        completion_body("m", "Hi", GenerationRequest(1, extra={"max_tokens": 5}))


def test_reads_what_was_billed_and_who_answered() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert read_usage({"usage": usage}) == Usage(5, 7)
    assert read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": None}}) == Usage(5, 0)
    assert read_usage({"usage": None}) == read_usage([]) == Usage(0, 0)
    assert read_served({"model": "m", "system_fingerprint": "fp"}) == Served("m", "fp")
    assert read_served({}) == read_served([]) == Served("", None)
    with pytest.raises(MalformedReplyError, match=r"usage.prompt_tokens is -1"):
        read_usage({"usage": {"prompt_tokens": -1}})
    with pytest.raises(MalformedReplyError, match="model is 3"):
        read_served({"model": 3})
