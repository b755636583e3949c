"""transformers' sequence classifiers: where a text's logits come from.

    pooled [B, D] -> dropout, where the family has one there -> last linear layer -> logits [B, K]

What comes before is the family's own: a pooler, dense layers, nothing. Decoders run the last layer
on every token, and a text's logits are those of its last one; transformers looks for that by the id
of padding, and is a token early where a text ends with the same one. Here the mask decides.
EuroBERT takes the mean over tokens, which is that of what the layer reads. Shapes: B texts, T
tokens, D the width of what the last layer reads, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..pooling import pool
from .probes import probing

TOLERANCE = 1e-3
"""Tolerance relative to the largest logit, between the family's logits and ours."""

Tokens = Literal["one", "last", "mean"]
"""Input of a last layer: once per text, or every token, of which the last counts, or the mean."""

NO_TOKEN = -1
"""An id that no token has, as the padding id."""


def last_linear(model: nn.Module, num_labels: int) -> str | None:
    """Name of the last linear layer with one output a class, or None."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels
    ]
    return names[-1] if names else None


_CHOOSE: Mapping[Tokens, Callable[[Tensor, Tensor], Tensor]] = {
    "one": lambda values, _: values,
    "last": lambda values, mask: pool(values, mask, ["last"]),
    "mean": lambda values, mask: pool(values, mask, ["mean"]),
}


@dataclass(slots=True)
class _Seen:
    """Input and output of a model's last layer, and of each dropout, in one call."""

    input: Tensor = field(init=False)
    output: Tensor = field(init=False)
    dropped: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Last input and output of each watched dropout."""


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """The end of a sequence classifier: names of its last linear layer and of the dropout right
    before it; and which tokens count where the two run on every one."""

    linear: str
    dropout: str | None
    tokens: Tokens

    def read(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """Pooled [B, D], before dropout, and logits [B, K] of texts that are told apart from their
        padding by `attention_mask` [B, T]; and the model's own output."""
        with _watching(model, self.linear, [self.dropout] if self.dropout else []) as seen:
            output = model(**inputs)
        pooled = seen.dropped[self.dropout][0] if self.dropout else seen.input
        choose, mask_BT = _CHOOSE[self.tokens], inputs["attention_mask"]
        return choose(pooled, mask_BT), choose(seen.output, mask_BT), output


def find_head(model: Any, num_labels: int, inputs: Mapping[str, Tensor]) -> ClassifierHead | None:
    """The head of a sequence classifier, checked on one text of several tokens without padding: its
    logits are the model's own. None if the family computes them differently."""
    linear = last_linear(model, num_labels)
    if linear is None:
        return None
    dropouts = [name for name, each in model.named_modules() if isinstance(each, nn.Dropout)]
    with probing(model), _watching(model, linear, dropouts) as seen:
        logits = model(**inputs).logits
        if seen.input.ndim == 3:
            with without_padding(model.config):
                logits = model(**inputs).logits
    ways: tuple[Tokens, ...] = ("one",) if seen.input.ndim == 2 else ("last", "mean")
    for tokens in ways:
        if _close(_CHOOSE[tokens](seen.output, inputs["attention_mask"]), logits):
            before = [name for name, (_, given) in seen.dropped.items() if given is seen.input]
            return ClassifierHead(linear, before[-1] if before else None, tokens)
    return None


@contextmanager
def without_padding(config: Any) -> Iterator[None]:
    """A configuration without a padding token: decoders then read the last position of a row."""
    text = config.get_text_config()
    padding, text.pad_token_id = text.pad_token_id, NO_TOKEN
    try:
        yield
    finally:
        text.pad_token_id = padding


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = found.float(), expected.float()
    most = TOLERANCE * expected.nan_to_num().abs().max().clamp(min=1e-6).item()
    return torch.allclose(found, expected, rtol=0, atol=most, equal_nan=True)


@contextmanager
def _watching(model: nn.Module, linear: str, dropouts: list[str]) -> Iterator[_Seen]:
    """Hooks for one call, so that nothing is kept of it."""
    seen = _Seen()

    def linear_ran(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.input, seen.output = inputs[0], output

    def dropout_ran(name: str) -> Any:
        def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.dropped[name] = (inputs[0], output)

        return note

    hooks = [model.get_submodule(linear).register_forward_hook(linear_ran)]
    hooks += [
        model.get_submodule(name).register_forward_hook(dropout_ran(name)) for name in dropouts
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
