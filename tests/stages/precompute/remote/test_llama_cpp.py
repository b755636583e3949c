"""What llama.cpp's own server replies is read as it is meant.

ARMADA_REAL_GGUF names the GGUF file of a small language model with a byte-level tokenizer, and
ARMADA_REAL_TOKENIZER the folder of that tokenizer and of the same weights, dequantised."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from armada.stages.precompute.remote import embeddings, scores
from armada.stages.precompute.remote.error_replies import read_error
from armada.stages.precompute.remote.responses import (
    Choice,
    GenerationRequest,
    chat_body,
    completion_body,
    read_chat,
    read_completion,
)
from armada.stages.precompute.remote.token_ids import UnmappedTokenError, Vocabulary
from armada.stages.precompute.remote.wire import read_served, read_usage
from llama_cpp_server import serving

FILE, FOLDER = os.environ.get("ARMADA_REAL_GGUF"), os.environ.get("ARMADA_REAL_TOKENIZER")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FILE is None or FOLDER is None, reason="names no file and no tokenizer"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]

TEXTS = ["the red bird sings", "x", "two dogs run along the river at dawn"]
NEAR = 0.2
"""Nats, of the mean difference: 0.09 were measured with a file of 4 bits a weight."""
GREEDY = GenerationRequest(max_tokens=8, temperature=0.0, alternatives=9)


def asked(address: str, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(address + path, json=body, timeout=600).raise_for_status().json()


@pytest.fixture(scope="module")
def generator() -> Iterator[str]:
    with serving(Path(FILE or "")) as address:
        yield address


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


def refuse_wrong(choice: Choice, tokenizer: Any) -> None:
    """The response of a greedy request is read as the tokenizer and the text say."""
    vocabulary, predictions = Vocabulary(tokenizer), choice.predictions
    assert predictions is not None
    ids = vocabulary.response_ids(predictions, choice.text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == choice.text
    top_ids, top_log_probs = vocabulary.top_k(predictions, 8)
    np.testing.assert_array_equal(top_ids[:, 0], ids)
    np.testing.assert_array_equal(top_log_probs[:, 0], predictions.log_probs)
    assert (np.exp(top_log_probs).sum(1) < 1).all()
    assert (np.diff(top_log_probs) <= 0).all()


def test_the_tokens_of_a_chat_have_their_ids(generator: str, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Which colours does the sky have?"}]
    reply = asked(generator, "/v1/chat/completions", chat_body("m", messages, GREEDY))
    (choice,) = read_chat(reply)
    refuse_wrong(choice, tokenizer)
    assert choice.predictions is not None
    assert read_usage(reply).output_tokens == len(choice.predictions)
    assert read_served(reply).model


@pytest.mark.parametrize("as_ids", [False, True])
def test_the_tokens_of_a_completion_have_their_ids(
    generator: str, tokenizer: Any, as_ids: bool
) -> None:
    text = "The colours of the sky are"
    prompt = tokenizer(text)["input_ids"] if as_ids else text
    reply = asked(generator, "/v1/completions", completion_body("m", prompt, GREEDY))
    (choice,) = read_completion(reply)
    refuse_wrong(choice, tokenizer)
    assert choice.finish_reason == "length"


def test_log_probabilities_are_those_of_the_same_weights(generator: str, tokenizer: Any) -> None:
    """Each in its own place: one token off, they would be several nats apart."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tokenizer("The theory of relativity says that")["input_ids"]
    request = GenerationRequest(max_tokens=16, temperature=1.0, seed=5, alternatives=20)
    reply = asked(generator, "/v1/completions", completion_body("m", prompt, request))
    (choice,) = read_completion(reply)
    assert choice.predictions is not None
    ids = Vocabulary(tokenizer).response_ids(choice.predictions, choice.text)
    top_ids, top_log_probs = Vocabulary(tokenizer).top_k(choice.predictions, 20)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).numpy()
    rows = np.arange(len(ids))
    assert np.abs(choice.predictions.log_probs - wanted[rows, ids]).mean() < NEAR
    assert np.abs(top_log_probs - wanted[rows[:, None], top_ids]).mean() < NEAR


def test_a_character_of_several_tokens_is_refused(generator: str, tokenizer: Any) -> None:
    body = completion_body("m", "🐦🐦🐦🐦🐦🐦🐦🐦", GREEDY)
    (choice,) = read_completion(asked(generator, "/v1/completions", body))
    assert choice.predictions is not None
    assert not choice.text.isascii()
    with pytest.raises(UnmappedTokenError, match="several tokens in one entry"):
        Vocabulary(tokenizer).response_ids(choice.predictions, choice.text)


def test_what_is_too_long_is_this_text_alone(generator: str) -> None:
    body = completion_body("m", "the red bird " * 1000, GREEDY)
    reply = httpx.post(f"{generator}/v1/completions", json=body, timeout=600)
    found = read_error(reply.status_code, reply.content)
    assert (found.outcome, found.reason) == ("text", "length")


def test_what_a_server_was_not_started_for_is_never_answered(generator: str) -> None:
    reply = httpx.post(f"{generator}/v1/embeddings", json=embeddings.body("m", TEXTS), timeout=600)
    assert read_error(reply.status_code, reply.content).outcome == "never"


def test_every_form_of_an_embedding_is_the_same() -> None:
    with serving(Path(FILE or ""), "MEAN") as address:
        wanted = [
            embeddings.read(asked(address, "/v1/embeddings", embeddings.body("m", [text])), 1)[0]
            for text in TEXTS
        ]
        for path in ("/v1/embeddings", "/embeddings"):
            for encoding in ("float", "base64"):
                body = embeddings.body("m", TEXTS, encoding=encoding)  # type: ignore[arg-type]
                found = embeddings.read(asked(address, path, body), len(TEXTS))
                np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_both_dialects_of_scores_are_the_same() -> None:
    with serving(Path(FILE or ""), "RANK") as address:
        found = [
            scores.read(
                asked(address, "/v1/rerank", scores.rerank_body("m", "a bird", TEXTS, texts)), 3
            )
            for texts in (False, True)
        ]
        np.testing.assert_array_equal(*found)
        (alone,) = scores.read(
            asked(address, "/v1/rerank", scores.rerank_body("m", "a bird", TEXTS[1:2])), 1
        )
        np.testing.assert_allclose(found[0][1], alone, rtol=0.05)
