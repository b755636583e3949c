"""Real causal language models of a few thousand weights, of families that make logits differently,
and a byte-level tokenizer with a chat template for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import SPREAD, make_byte_tokenizer, save_quietly

POSITIONS = 128

TEXTS = (
    "the red bird sings at dawn",
    "two dogs run along the river",
    "a cat",
    "why do the stars shine over the sea at night and never by day",
    "rain falls",
    "the river runs to the sea and the sea gives it back as rain",
)

CHAT = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '>' + turn['content'] + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)

FAMILIES = ("gpt2", "opt", "llama", "gemma2", "granite", "cohere")
"""Plain heads; a bound on logits (Gemma); logits divided (Granite) and multiplied (Cohere)."""


def make_chat_tokenizer(texts: Sequence[str] = TEXTS, **settings: Any) -> Any:
    """Before each text `<s>`, nothing after it; `</s>` ends sequences."""
    tokenizer = make_byte_tokenizer(texts, bos="<s>", eos="</s>", pad="<pad>")
    tokenizer.chat_template = settings.pop("chat_template", CHAT)
    return tokenizer


def make_causal_lm(
    folder: Path,
    family: str = "llama",
    *,
    texts: Sequence[str] = TEXTS,
    padding: int = 0,
    seed: int = 0,
    tokenizer: Any = None,
    **settings: Any,
) -> Path:
    """A causal language model with its head; `padding`: rows of logits that stand for no word."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tokenizer or make_chat_tokenizer(texts)
    sizes = {
        "vocab_size": len(tokenizer) + padding,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": POSITIONS,
        "initializer_range": SPREAD,
        "init_std": SPREAD,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    special = {
        "gemma2": {"final_logit_softcapping": 2.0, "sliding_window": POSITIONS},
        "granite": {"logits_scaling": 3.0},
        "cohere": {"logit_scale": 0.25},
    }
    known = AutoConfig.for_model(family)
    given = sizes | special.get(family, {}) | settings
    config = AutoConfig.for_model(family, **{k: v for k, v in given.items() if hasattr(known, k)})
    torch.manual_seed(seed)
    save_quietly(AutoModelForCausalLM.from_config(config), folder)
    tokenizer.save_pretrained(folder)
    return folder
