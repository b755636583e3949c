"""Text features of models that read more than texts: CLIP, SigLIP, CLAP and their kin.

Whole models of transformers that have `get_text_features`, and their text towers saved alone. The
features are the library's own: pooled as the model pools, with its projection, not scaled.
Shapes: B examples, T tokens, E numbers of a feature.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TOWERS = ("TextModelWithProjection", "SiglipTextModel", "Siglip2TextModel")
"""How classes of towers end that give features, and not states alone."""

_OTHER_PARTS = ("vision", "visual", "image", "audio", "logit")
"""How the parts are called that read no text."""


def tower_class(config: Any) -> str | None:
    """The class of a text tower that was saved alone, or None. The class that goes with such a
    configuration otherwise has no projection, or is none."""
    name = (config.architectures or [""])[0]
    return name if name.endswith(_TOWERS) else None


def gives_text_features(model: Any) -> bool:
    """Whether it is a model of that kind."""
    return hasattr(model, "get_text_features") or type(model).__name__.endswith(_TOWERS)


def text_arguments(model: Any) -> frozenset[str]:
    """What it is told of a text."""
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
    """Keep what reads texts, in place."""
    for name, _ in list(model.named_children()):
        if reads_no_text(name):
            delattr(model, name)


def _method(model: Any) -> Any:
    return getattr(model, "get_text_features", model.forward)
