"""Logits of a causal language model from its hidden states, a part of them at a time.

    hidden_BTH = hidden_states(model, ...)           what the model's head reads
    logits = transform.apply_(head(hidden))          for any number of tokens at a time

Some families scale their logits, or cap them. `find_transform` reads that off a configuration and
proves it: the logits made so are those that the model itself gives.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .probes import PROBE_TOKENS, probing

TOLERANCE = 2e-2
"""Tolerance relative to the largest logit: half precision in other kernels."""

NOISE, HALF_NOISE = 1e-5, 1e-2
"""Tolerance relative to the largest hidden value, for equal shapes: values that do not depend on a
token are mostly equal to the last bit, and a randomly initialised model differs by as little as 0.2
%."""

PADDED_NOISE = 5e-4
"""The same for other shapes, whose kernels add in another order: SmolLM2-135M differs by 2e-5."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """Maps a linear layer's output z to logits: scale·z, or softcap·tanh(scale·z / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitTransform":
        """The transform of a config: Granite divides by `logits_scaling`, Cohere multiplies by
        `logit_scale`, Gemma caps at `final_logit_softcapping`."""
        config = config.get_text_config()
        divided = getattr(config, "logits_scaling", None) or 1.0
        multiplied = getattr(config, "logit_scale", None) or 1.0
        return cls(multiplied / divided, getattr(config, "final_logit_softcapping", None) or None)

    def apply_(self, logits: Tensor) -> Tensor:
        """Apply it in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def cap_slope_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """A gradient of capped logits, times the cap's slope 1 - (logits / softcap)², in place;
        `logits` are used up. The scale is the caller's."""
        if self.softcap is None:
            return gradient
        return gradient.addcmul_(gradient, logits.square_(), value=-(self.softcap**-2))


def transformer(model: Any) -> Any:
    """The part of a causal model below its head."""
    return getattr(model, model.base_model_prefix, None) or model.get_decoder()


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
    """The output of a causal model's transformer; `last_hidden_state` [B, T, H] is what its head
    reads."""
    body = transformer(model)
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)


def find_transform(model: Any) -> LogitTransform | None:
    """How a model computes its logits from hidden states and its head; None if not in a known
    way."""
    transform = LogitTransform.of(model.config)
    head = model.get_output_embeddings()
    if head is None:
        return None
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % head.weight.shape[0]
    mask = torch.ones_like(ids)
    with probing(model):
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        states = hidden_states(model, ids, mask).last_hidden_state
        if states.shape[-1] != head.weight.shape[-1]:
            return None
        found = transform.apply_(head(states)).float()
    if found.shape != expected.shape:
        return None
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return transform if error <= TOLERANCE else None


def is_causal(model: Any) -> bool:
    """Whether what a model predicts at a token depends on no token after it."""
    mask = torch.ones(1, PROBE_TOKENS, dtype=torch.int64, device=model.device)
    last, before = slice(PROBE_TOKENS - 1, None), slice(0, PROBE_TOKENS - 1)
    return not _depends(model, PROBE_TOKENS, last, before, attention_mask=mask)


def isolates_packed_documents(model: Any) -> bool:
    """Whether texts in one row are masked from each other by their positions alone."""
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2)[None]
    first, second = slice(0, PROBE_TOKENS), slice(PROBE_TOKENS, None)
    return not _depends(model, 2 * PROBE_TOKENS, first, second, position_ids=positions)


def _depends(model: Any, tokens: int, changed: slice, seen: slice, **inputs: Tensor) -> bool:
    """Whether the hidden states of the tokens `seen` differ where others are `changed`."""
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(tokens, device=model.device)[None] % words
    others = ids.clone()
    others[:, changed] = (others[:, changed] + 1) % words
    body = transformer(model)
    with probing(model):
        states, found = (
            body(input_ids=each, use_cache=False, **inputs).last_hidden_state
            for each in (ids, others)
        )
    return not same_states(states[:, seen], found[:, seen])


def same_states(states: Tensor, others: Tensor, noise: float = NOISE) -> bool:
    """Whether hidden states are the same, but for rounding: `noise`, or that of half precision."""
    most = noise if states.dtype in (torch.float32, torch.float64) else HALF_NOISE
    error = (states - others).abs().max() / states.abs().max().clamp(min=1e-6)
    return bool(error <= most)
