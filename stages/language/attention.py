"""Queries, keys and values of attention layers, recorded while a model runs.

For families whose attention has a linear map each for queries, keys and values, and positions in
the embeddings: BERT, RoBERTa, ELECTRA, DistilBERT and similar. Shapes: B texts, T tokens, D
numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

Linears = tuple[Any, Any, Any]
"""The maps of a layer to queries, keys and values."""

_NAMES = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


def attention_linears(model: Any) -> list[Linears]:
    """The maps of each layer; empty for a family that has no such ones, or other than one triple a
    layer."""
    found: list[Linears] = []
    for module in model.modules():
        children = dict(module.named_children())
        for q, k, v in _NAMES:
            if {q, k, v} <= children.keys():
                found.append((children[q], children[k], children[v]))
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    widths = {linear.out_features for triple in found for linear in triple}
    return found if len(found) == layers and len(widths) == 1 else []


@contextmanager
def recorded(layers: Sequence[Linears]) -> Iterator[list[Tensor]]:
    """What the maps of some layers return in one call of their model, filled in by the call, with
    its graph: queries, keys and values [B, T, D] of the first layer, then those of the next."""
    linears = [linear for triple in layers for linear in triple]
    found: list[Any] = [None] * len(linears)

    def keep(at: int, module: Any, inputs: Any, output: Tensor) -> None:
        found[at] = output

    handles = [linear.register_forward_hook(partial(keep, at)) for at, linear in enumerate(linears)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def stacked(projections: Sequence[Tensor]) -> list[Tensor]:
    """The same, [B, T, 3, D] of each layer."""
    triples = range(0, len(projections), 3)
    return [torch.stack(list(projections[at : at + 3]), dim=2) for at in triples]


def with_attention(
    read: Callable[..., tuple[Any, ...]], layers: Sequence[Linears]
) -> Callable[..., tuple[Any, ...]]:
    """A call of a model that returns what `read` does, and behind it what the maps of some layers
    returned, [B, T, 3, D] each."""

    def reading(*inputs: Any, **more: Any) -> tuple[Any, ...]:
        with recorded(layers) as found:
            outputs = read(*inputs, **more)
        return (*outputs, tuple(stacked(found)))

    return reading
