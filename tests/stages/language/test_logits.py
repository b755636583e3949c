"""What is found out about a causal language model by asking it, of models of default numbers: those
that have just been drawn hardly look at other tokens."""

from typing import Any

import pytest
import torch
from armada.stages.language.logits import find_transform, is_causal, isolates_packed_documents
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "pad_token_id": 0,
}


def drawn(kind: str, seed: int = 0, **more: Any) -> Any:
    config = AutoConfig.for_model(kind, **SIZES, **more)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_just_drawn_that_is_not_causal(seed: int) -> None:
    assert not is_causal(drawn("bert", seed))
    assert is_causal(drawn("bert", seed, is_decoder=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_model_just_drawn_that_does_not_keep_texts_apart(seed: int) -> None:
    """BLOOM knows distances and no positions."""
    model = drawn("bloom", seed)
    assert is_causal(model)
    assert not isolates_packed_documents(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_models_that_keep_texts_apart(kind: str, dtype: torch.dtype) -> None:
    model = drawn(kind).to(dtype).train()
    assert is_causal(model)
    assert isolates_packed_documents(model)
    assert model.training


def test_a_head_that_reads_something_else_than_hidden_states() -> None:
    """ELECTRA has a layer between them."""
    model = drawn("electra", embedding_size=16, is_decoder=True)
    assert find_transform(model) is None
