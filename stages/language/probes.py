"""Probing models with a few tokens."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PROBE_TOKENS = 5


@contextmanager
def probing(model: Any) -> Iterator[None]:
    """A model in a probe: without dropout, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def probe(model: Any, **more: Any) -> tuple[Any, Tensor]:
    """A transformer's output for one text of a few tokens, and that text's mask [1, T].

    Its widths are those of all texts; `hidden_size` is not always one of them (OPT's 350 M model,
    Reformer)."""
    ids, mask = probe_text(model)
    with probing(model):
        output = model(input_ids=ids, attention_mask=mask, **without_memory(model), **more)
    return output, mask


def probe_text(model: Any) -> tuple[Tensor, Tensor]:
    """Token ids of one text and its mask, each [1, T]."""
    words = getattr(model.config.get_text_config(), "vocab_size", None) or PROBE_TOKENS
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % words
    return ids, torch.ones_like(ids)


def probe_skeleton(skeleton: Any, **more: Any) -> Any | None:
    """Outputs of a transformer on the meta device, without weights, for their shapes. None if it
    depends on values."""
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device="meta")
    with probing(skeleton):
        try:
            # Without a mask, which many look at to see whether they need it.
            return skeleton(input_ids=ids, **without_memory(skeleton), **more)
        except Exception:  # each family declares it differently
            return None


def without_memory(model: Any) -> dict[str, bool]:
    """Arguments that disable the cache of keys and values, which is only for generation."""
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes else {}
