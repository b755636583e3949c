"""Logits of a masked language model from its hidden states, at chosen tokens alone.

    states_BTH = body(model)(...).last_hidden_state
    logits_PV = model.get_output_embeddings()(transform(model, states_PH))

Between its transformer and the layer over the vocabulary a family has some layers of its own, which
see one token at a time. They are found by what families call them, and proven: the logits made so
are those that the model itself gives.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu

from .logits import TOLERANCE
from .probes import probe_text, probing, without_memory

HeadTransform = Callable[[Any, Tensor], Tensor]


def body(model: Any) -> Any:
    """The transformer of a masked language model."""
    return model.base_model


def find_head_transform(model: Any) -> HeadTransform | None:
    """What a model does with hidden states [P, H] before the layer over the vocabulary, a function
    of both; None if that is not known."""
    head, below = model.get_output_embeddings(), body(model)
    if head is None or below is model:
        return None
    ids, mask = probe_text(model)
    with probing(model):
        expected = model(input_ids=ids, attention_mask=mask).logits.float()
        more = without_memory(below)
        states = below(input_ids=ids, attention_mask=mask, **more).last_hidden_state
        for transform in _KNOWN:
            with suppress(AttributeError):  # a family without layers of these names
                found = transform(model, states)
                fits = found.shape[-1] == head.weight.shape[-1]
                if fits and _same(head(found).float(), expected):
                    return transform
    return None


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return bool(error <= TOLERANCE)


def _of_bert(model: Any, states: Any) -> Any:
    return model.cls.predictions.transform(states)


def _of_rembert(model: Any, states: Any) -> Any:
    head = model.cls.predictions
    return head.LayerNorm(head.activation(head.dense(states)))


def _of_roberta(model: Any, states: Any) -> Any:
    head = model.lm_head
    return head.layer_norm(gelu(head.dense(states)))


def _of_distilbert(model: Any, states: Any) -> Any:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(states)))


def _of_albert(model: Any, states: Any) -> Any:
    head = model.predictions
    return head.LayerNorm(head.activation(head.dense(states)))


def _of_electra(model: Any, states: Any) -> Any:
    return model.generator_predictions(states)


def _of_modernbert(model: Any, states: Any) -> Any:
    return model.head(states)


def _of_none(model: Any, states: Any) -> Any:
    return states


_KNOWN = (
    *(_of_bert, _of_roberta, _of_distilbert, _of_modernbert),
    *(_of_albert, _of_electra, _of_rembert, _of_none),
)
