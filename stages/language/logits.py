"""From a causal language model's hidden states to its logits, so that they need not all be there.

    hidden_BTH = hidden_states(model, ...)           what the model's head reads
    logits = law(head(hidden))                       for as many tokens at a time as one likes

Some families scale their logits, or bound them. `find_law` reads that off a configuration and
proves it: the logits made so are those that the model itself gives.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROBE_TOKENS = 5
TOLERANCE = 2e-2
"""Of the largest logit: half precision, in other kernels, and no more."""


@dataclass(frozen=True, slots=True)
class LogitLaw:
    """logits = cap(scale · (W·hidden + b)), where cap(z) = softcap · tanh(z / softcap), if any."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits if self.scale == 1.0 else logits * self.scale
        if self.softcap is None:
            return scaled
        return self.softcap * torch.tanh(scaled / self.softcap)


def declared_law(config: Any) -> LogitLaw:
    """What a configuration says: Granite divides by `logits_scaling`, Cohere multiplies by
    `logit_scale`, Gemma caps at `final_logit_softcapping`."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LogitLaw(float(scale), getattr(config, "final_logit_softcapping", None))


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
    """The output of a causal model's transformer; `last_hidden_state` [B, T, H] is what its head
    reads."""
    body = getattr(model, model.base_model_prefix)
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)


@torch.no_grad()
def find_law(model: Any) -> LogitLaw | None:
    """How a model makes its logits from hidden states and its head; None if not in a known way."""
    law = declared_law(model.config)
    head = model.get_output_embeddings()
    if head is None:
        return None
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % head.weight.shape[0]
    mask = torch.ones_like(ids)
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    found = law(head(hidden_states(model, ids, mask).last_hidden_state)).float()
    if found.shape != expected.shape:
        return None
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return law if error <= TOLERANCE else None
