"""Models that read more than texts (CLIP, SigLIP, CLAP and similar), and their text towers saved
alone: the features of texts that are the library's own. Shapes: B examples, T tokens, E numbers of
a feature.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TOWERS = ("TextModelWithProjection", "SiglipTextModel", "Siglip2TextModel")
"""Suffixes of tower classes that give features, not only states."""

_OTHER_PARTS = ("vision", "visual", "image", "audio", "logit")
"""Names of parts that read no text."""


def tower_class(config: Any) -> str | None:
    """The class of a text tower that was saved alone, or None. The usual class of such a
    configuration has no projection, or does not exist."""
    name = (config.architectures or [""])[0]
    return name if name.endswith(_TOWERS) else None


def gives_text_features(model: Any) -> bool:
    """Whether it is a model of that kind."""
    return hasattr(model, "get_text_features") or type(model).__name__.endswith(_TOWERS)


def text_arguments(model: Any) -> frozenset[str]:
    """Model arguments for a text."""
    return frozenset(inspect.signature(_method(model)).parameters)


def text_tower(model: Any) -> Any:
    """The part that reads tokens, which knows how many it takes."""
    return getattr(model, "text_model", model)


def pads_to_its_limit(model: Any) -> bool:
    """Whether every text has to be as long as the model takes: SigLIP reads a text's feature at its
    last position, padding or not, and was trained so."""
    return type(text_tower(model)).__name__.startswith("Siglip")


def text_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """[B, E] of token ids [B, T] and their companions."""
    output = _method(model)(**inputs)
    features = output if isinstance(output, Tensor) else getattr(output, "text_embeds", None)
    found: Tensor = output.pooler_output if features is None else features
    return found


def features_width(skeleton: Any) -> int:
    """E, from a model without weights. Raises ValueError where a text has more than one vector."""
    try:
        with torch.device("meta"):
            ids = {"input_ids": torch.ones(1, 4, dtype=torch.int64)}
            found = text_features(skeleton.eval(), ids)
    except RuntimeError:
        # CLAP looks for padding in the ids, of which there are none here.
        return int(skeleton.config.projection_dim)
    if found.ndim != 2:
        raise ValueError(
            f"a {type(skeleton).__name__} gives features of each token, not one vector of a text"
        )
    return int(found.shape[1])


def reads_no_text(weight: str) -> bool:
    """Whether a weight is of a part that reads no text."""
    return weight.startswith(_OTHER_PARTS)


def drop_other_parts(model: Any) -> None:
    """Remove everything but the text part, in place."""
    for name, _ in list(model.named_children()):
        if reads_no_text(name):
            delattr(model, name)


def _method(model: Any) -> Any:
    return getattr(model, "get_text_features", model.forward)
