"""Real masked language models of a few thousand weights, of families whose heads differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import POSITIONS, SPREAD, make_tokenizer, save_quietly

FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "modernbert")


def make_masked_lm(
    folder: Path,
    family: str = "bert",
    *,
    texts: Sequence[str],
    seed: int = 0,
    layers: int = 2,
    tokenizer: Any = None,
    **settings: Any,
) -> Path:
    """A masked language model with its head, which has a bias of its own for each token."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    tokenizer = tokenizer or make_tokenizer(texts)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "embedding_size": 16,  # ALBERT, ELECTRA
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "hidden_dim": 64,  # DistilBERT
        "max_position_embeddings": POSITIONS,
        "initializer_range": SPREAD,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
    }
    known = AutoConfig.for_model(family)
    given = {k: v for k, v in (sizes | settings).items() if hasattr(known, k)}
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **given))
    bias = model.get_output_embeddings().bias
    torch.nn.init.normal_(bias, std=SPREAD)
    save_quietly(model, folder)
    tokenizer.save_pretrained(folder)
    return folder
