"""Bodies of errors in the forms that servers have, and what follows from them."""

import json
from typing import Any

import pytest
from armada.stages.precompute.remote.error_replies import MAX_CHARACTERS, read_error
from hypothesis import given
from hypothesis import strategies as st


def openai(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "param": None, **more}}


@pytest.mark.parametrize(
    ("status", "body", "outcome", "reason"),
    [
        # Too long: OpenAI, vLLM, llama.cpp (two kinds), SGLang, TEI, Ollama, a proxy.
        (400, openai("Too long.", code="context_length_exceeded"), "text", "length"),
        (400, openai("the maximum context length is 9 tokens", code=400), "text", "length"),
        (400, openai("request (9 tokens)", type="exceed_context_size_error"), "text", "length"),
        (500, openai("input (9 tokens) is too large to process.", code=500), "text", "length"),
        (400, {"object": "error", "message": "longer than the context length"}, "text", "length"),
        (422, {"error": "must have less than 512 tokens. Given: 600"}, "text", "length"),
        (400, {"error": "the input length exceeds the context length"}, "text", "length"),
        (413, "<html><title>413 Request Entity Too Large</title></html>", "text", "length"),
        # Against a policy: OpenAI, Azure, a router.
        (400, openai("Rejected.", code="content_policy_violation"), "text", "policy"),
        (
            400,
            openai("x", code="x", innererror={"code": "ResponsibleAIPolicyViolation"}),
            "text",
            "policy",
        ),
        (403, openai("Your input was flagged", code=403), "text", "policy"),
        (400, openai("Input content cannot be empty", code=400), "text", "empty"),
        # No money.
        (429, openai("You are out.", type="insufficient_quota"), "never", "credit"),
        (429, openai("You are out.", code="insufficient_quota"), "never", "credit"),
        (402, openai("Pay."), "never", "credit"),
        (400, openai("Your credit balance is too low"), "never", "credit"),
        # Later.
        (429, openai("Rate limit reached", code="rate_limit_exceeded"), "again", None),
        (429, [{"error": {"status": "RESOURCE_EXHAUSTED", "message": "quota"}}], "again", None),
        (429, openai("Too many tokens for the context window a minute"), "again", None),
        (503, openai("Loading model", type="unavailable_error", code=503), "again", None),
        (502, "<html><h1>Bad <b>Gateway</b></h1></html>", "again", None),
        (500, "", "again", None),
        (408, "", "again", None),
        # Never.
        (401, openai("Incorrect API key provided", code="invalid_api_key"), "never", None),
        (403, openai("No access"), "never", None),
        (404, openai("The model `m` does not exist", code="model_not_found"), "never", None),
        (400, openai("Requested logprobs of 30, max allowed: 20"), "never", None),
        (501, openai("no embeddings", type="not_supported_error"), "never", None),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "a number", "input": "x"}]}, "never", None),
    ],
)
def test_tells_what_follows(status: int, body: Any, outcome: str, reason: str | None) -> None:
    sent = body if isinstance(body, str) else json.dumps(body)
    found = read_error(status, sent.encode())
    assert (found.status, found.outcome, found.reason) == (status, outcome, reason)
    assert found.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (openai("No such model."), "No such model."),
        ({"error": "No such model."}, "No such model."),
        ({"object": "error", "message": "No such model.", "type": "x"}, "No such model."),
        ({"error": "No such model.", "error_type": "Validation"}, "No such model."),
        ([openai("No such model.")], "No such model."),
        ({"detail": "No such model."}, "No such model."),
        ({"message": {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}}, "body: n: too many"),
        (
            {"detail": [{"loc": ["body", "x"], "msg": "a string", "input": "private"}]},
            "body: x: a string",
        ),
        ("No such\n  model.", "No such model."),
        ("<html><head><title> No such\nmodel. </title></head>x</html>", "No such model."),
        ("<p>No such <b>model.</b></p>", "No such model."),
        ("", "Not Found"),
        ({}, "Not Found"),
        (None, "Not Found"),
        (3, "Not Found"),
        ("\x1b[31mred", "\\x1b[31mred"),
    ],
)
def test_reads_the_message_wherever_it_stands(body: Any, message: str) -> None:
    sent = body if isinstance(body, str) else json.dumps(body)
    assert read_error(404, sent.encode()).message == message


@pytest.mark.parametrize(
    "said",
    [
        "Incorrect API key provided: abcd****wxyz-0123.",
        "the header was 'Bearer abcd1234wxyz'",
        "sk-proj-abcd1234wxyz is not known",
        "GET https://user:abcd1234wxyz@host/v1?key=abcd1234wxyz failed",
        "my own abcd1234wxyz is in it",
        "token eyJhbGciOiJIUzI1NiJ9.abcd1234wxyz",
    ],
)
def test_no_secret_is_in_a_message(said: str) -> None:
    for sent in (said, json.dumps(openai(said))):
        message = read_error(401, sent.encode(), ["abcd1234wxyz"]).message
        assert "abcd" not in message
        assert "wxyz" not in message
        assert "***" in message


def test_a_long_message_is_cut() -> None:
    message = read_error(500, b"word " * 10_000).message
    assert len(message) <= MAX_CHARACTERS + 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("error"), inner),
)


@given(st.integers(400, 999), st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_one_line(status: int, body: bytes) -> None:
    found = read_error(status, body)
    assert found.message.isprintable()
    assert found.outcome in ("text", "again", "never")


def test_a_body_that_is_nested_without_end_is_a_line() -> None:
    assert read_error(500, b"[" * 100_000).message
    assert read_error(500, b'{"error":' * 900 + b"1" + b"}" * 900).message
