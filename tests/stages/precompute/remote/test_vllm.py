"""What vLLM's own server replies is read as it is meant: against transformers on the same weights.

ARMADA_VLLM is the address of `vllm serve FOLDER --max-model-len 512`, and ARMADA_REAL_TOKENIZER
that folder: of a small language model with a byte-level tokenizer."""

import os
from functools import cache
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from armada.stages.precompute.remote.error_replies import read_error
from armada.stages.precompute.remote.log_probs import Predictions
from armada.stages.precompute.remote.responses import (
    GenerationRequest,
    chat_body,
    completion_body,
    read_chat,
    read_completion,
)
from armada.stages.precompute.remote.token_ids import UnmappedTokenError, Vocabulary

ADDRESS, FOLDER = os.environ.get("ARMADA_VLLM"), os.environ.get("ARMADA_REAL_TOKENIZER")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ADDRESS is None or FOLDER is None, reason="names no server and no folder"),
]

TEXT = "The colours of the sky are blue and 🐦 red"
MESSAGES = [{"role": "user", "content": "Write 🐦🐦🐦 and 红色"}]
NEAR: dict[str, float] = {"atol": 0.3, "rtol": 0.05}
"""Nats: the server computes in bfloat16, whose logits are the less exact the larger they are."""
K = 4


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@cache
def model_name() -> str:
    models = httpx.get(f"{ADDRESS}/v1/models", timeout=600).raise_for_status().json()
    return str(models["data"][0]["id"])


def asked(path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{ADDRESS}{path}", json=body, timeout=600).raise_for_status().json()


def log_probs_of(ids: list[int]) -> npt.NDArray[np.float64]:
    """Log-probabilities [T - 1, V] of all tokens in the place of each but the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return logits.log_softmax(-1).numpy()


def refuse_far(predictions: Predictions, ids: list[int], wanted: npt.NDArray[np.float64]) -> None:
    """Own and top log-probabilities [T] are near those of transformers [T, V]."""
    rows = np.arange(len(ids))
    np.testing.assert_allclose(predictions.log_probs, wanted[rows, ids], **NEAR)
    top_ids, top_log_probs = Vocabulary(tokenizer()).top_k(predictions, K)
    np.testing.assert_allclose(top_log_probs, wanted[rows[:, None], top_ids], **NEAR)
    np.testing.assert_allclose(top_log_probs, -np.sort(-wanted)[:, :K], **NEAR)


@pytest.mark.parametrize("chat", [False, True])
def test_sampled_tokens_and_the_most_probable_ones(chat: bool) -> None:
    """At a high temperature, where the sampled token is seldom among the most probable ones."""
    request = GenerationRequest(
        8, temperature=1.5, seed=3, alternatives=K + 1, prompt_alternatives=K, token_ids=True
    )
    if chat:
        body = chat_body(model_name(), MESSAGES, request)
        (choice,) = read_chat(asked("/v1/chat/completions", body))
    else:
        body = completion_body(model_name(), tokenizer()(TEXT)["input_ids"], request)
        (choice,) = read_completion(asked("/v1/completions", body))
    assert choice.predictions is not None
    assert choice.prompt is not None
    ids = Vocabulary(tokenizer()).response_ids(choice.predictions, choice.text).tolist()
    prompt = Vocabulary(tokenizer()).ids(choice.prompt.tokens).tolist()
    wanted = log_probs_of(prompt + ids)
    refuse_far(choice.predictions, ids, wanted[len(prompt) - 1 :])
    np.testing.assert_allclose(
        choice.prompt.log_probs[1:], wanted[np.arange(len(prompt) - 1), prompt[1:]], **NEAR
    )
    top_ids, top_log_probs = Vocabulary(tokenizer()).top_k(choice.prompt, K)
    rows = np.arange(len(prompt) - 1)[:, None]
    np.testing.assert_allclose(top_log_probs[1:], wanted[rows, top_ids[1:]], **NEAR)
    assert (top_log_probs[0] == -np.inf).all()


def test_a_given_response_has_its_own_tokens() -> None:
    ids = tokenizer()(TEXT)["input_ids"]
    request = GenerationRequest(1, prompt_alternatives=K, token_ids=True)
    (choice,) = read_completion(
        asked("/v1/completions", completion_body(model_name(), ids, request))
    )
    assert choice.prompt is not None
    assert Vocabulary(tokenizer()).ids(choice.prompt.tokens).tolist() == ids


def test_parts_of_characters_need_ids() -> None:
    prompt = tokenizer()("🐦🐦🐦🐦🐦🐦🐦🐦")["input_ids"]
    body = completion_body(
        model_name(), prompt, GenerationRequest(8, temperature=0, alternatives=K)
    )
    (choice,) = read_completion(asked("/v1/completions", body))
    assert choice.predictions is not None
    assert not choice.text.isascii()
    with pytest.raises(UnmappedTokenError, match="need ids"):
        Vocabulary(tokenizer()).response_ids(choice.predictions, choice.text)


@pytest.mark.parametrize(
    ("prompt", "request_", "outcome"),
    [
        ("a " * 2000, GenerationRequest(4), "text"),
        ("", GenerationRequest(4), "text"),
        ("a", GenerationRequest(4, alternatives=1000), "never"),
        ("a", GenerationRequest(4, prompt_alternatives=1000), "never"),
        ("a", GenerationRequest(100_000), "never"),
    ],
)
def test_tells_what_a_refusal_is_about(
    prompt: str, request_: GenerationRequest, outcome: str
) -> None:
    body = completion_body(model_name(), prompt, request_)
    reply = httpx.post(f"{ADDRESS}/v1/completions", json=body, timeout=600)
    assert read_error(reply.status_code, reply.content).outcome == outcome
