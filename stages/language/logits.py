"""From a causal language model's hidden states to its logits, so that they need not all be there.

    hidden_BTH = hidden_states(model, ...)           what the model's head reads
    logits = transform.apply_(head(hidden))          for as many tokens at a time as one likes

Some families scale their logits, or cap them. `find_transform` reads that off a configuration and
proves it: the logits made so are those that the model itself gives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROBE_TOKENS = 5
TOLERANCE = 2e-2
"""Of the largest logit: half precision, in other kernels, and no more."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """From a linear layer's output z to logits: scale·z, or softcap·tanh(scale·z / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "LogitTransform":
        """What a config asks for: Granite divides by `logits_scaling`, Cohere multiplies by
        `logit_scale`, Gemma caps at `final_logit_softcapping`."""
        config = config.get_text_config()
        divided = getattr(config, "logits_scaling", None) or 1.0
        multiplied = getattr(config, "logit_scale", None) or 1.0
        return cls(multiplied / divided, getattr(config, "final_logit_softcapping", None) or None)

    def apply_(self, logits: Tensor) -> Tensor:
        """In place."""
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


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
    """The output of a causal model's transformer; `last_hidden_state` [B, T, H] is what its head
    reads."""
    body = getattr(model, model.base_model_prefix)
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)


def find_transform(model: Any) -> LogitTransform | None:
    """How a model makes its logits from hidden states and its head; None if not in a known way."""
    transform = LogitTransform.of(model.config)
    head = model.get_output_embeddings()
    if head is None:
        return None
    ids = torch.arange(PROBE_TOKENS, device=model.device)[None] % head.weight.shape[0]
    mask = torch.ones_like(ids)
    with probing(model):
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        found = head(hidden_states(model, ids, mask).last_hidden_state)
        found = transform.apply_(found).float()
    if found.shape != expected.shape:
        return None
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return transform if error <= TOLERANCE else None


def keeps_apart(model: Any) -> bool:
    """Whether texts in one row do not see each other where only positions tell them apart."""
    ids = torch.arange(2 * PROBE_TOKENS, device=model.device)[None]
    ids = ids % model.get_input_embeddings().weight.shape[0]
    places = torch.arange(PROBE_TOKENS, device=model.device)
    body = getattr(model, model.base_model_prefix)
    with probing(model):
        told = {"position_ids": places.repeat(2)[None], "use_cache": False}
        packed = body(input_ids=ids, **told).last_hidden_state[0, PROBE_TOKENS:]
        alone = {"position_ids": places[None], "use_cache": False}
        second = body(input_ids=ids[:, PROBE_TOKENS:], **alone).last_hidden_state[0]
    error = (packed - second).abs().max() / second.abs().max().clamp(min=1e-6)
    return bool(error <= TOLERANCE)


@contextmanager
def probing(model: Any) -> Iterator[None]:
    """A model that is asked something by the way: without dropout, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
