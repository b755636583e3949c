"""A model folder becomes one of sentence-transformers: pooling and layers are written beside it.

In the words that every release of that library reads.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .folders import MODEL_CONFIG, MODULES, OLD_POOLINGS, POOLING_CONFIG, TEXT_CONFIG
from .layers import ACTIVATIONS, LAYER_WEIGHTS, Dense, DenseSettings, Normalize, activation
from .pooling import StatePooling

ACTIVATION_NAMES = (
    "torch.nn.modules.linear.Identity",
    *(
        f"{ACTIVATIONS}.{kind}"
        for kind in ("Tanh", "GELU", "ReLU", "SiLU", "Sigmoid", "Mish", "ELU", "Softplus")
    ),
)
"""What a dense layer may end with."""

_GRID = torch.linspace(-6, 6, 241)


def dense_layer(weight: Tensor, bias: Tensor | None, activation_function: str) -> Dense:
    """activation(W x + b) as a layer; W is [out, in]."""
    wide, narrow = weight.shape
    settings = DenseSettings(
        in_features=narrow,
        out_features=wide,
        bias=bias is not None,
        activation_function=activation_function,
    )
    layer = Dense(settings)
    state = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    layer.load_state_dict({name: value.detach().float() for name, value in state.items()})
    return layer


def activation_name(module: Any) -> str | None:
    """The name of torch.nn's activation that is this function, or None."""
    wanted = module(_GRID)
    for name in ACTIVATION_NAMES:
        if torch.allclose(activation(name)(_GRID), wanted, atol=1e-6):
            return name
    return None


def write_embedding_files(
    folder: Path,
    pooling: StatePooling,
    width: int,
    layers: Sequence[Dense | Normalize],
    max_length: int,
) -> None:
    """Beside the transformer in `folder`: states of `width` numbers are pooled, and go through the
    layers; texts are read up to `max_length` tokens."""
    old = {key: mode == pooling for key, mode in OLD_POOLINGS.items()}
    _write(folder / "1_Pooling" / POOLING_CONFIG, {"word_embedding_dimension": width} | old)
    names = ["Transformer", "Pooling"]
    for place, layer in enumerate(layers, start=2):
        names.append(type(layer).__name__)
        _write_layer(folder / f"{place}_{names[-1]}", layer)
    _write(folder / TEXT_CONFIG, {"max_seq_length": max_length, "do_lower_case": False})
    _write(
        folder / MODEL_CONFIG,
        {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None},
    )
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": f"{place}_{name}" if place else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for place, name in enumerate(names)
    ]
    _write(folder / MODULES, modules)  # last: with it, the folder is one


def _write_layer(folder: Path, layer: nn.Module) -> None:
    if not isinstance(layer, Dense):
        folder.mkdir(exist_ok=True)
        return
    _write(folder / "config.json", layer.settings.model_dump(exclude=_UNKNOWN_TO_OLD_RELEASES))
    state = {name: value.detach().cpu().contiguous() for name, value in layer.state_dict().items()}
    save_file(state, folder / LAYER_WEIGHTS)


_UNKNOWN_TO_OLD_RELEASES = {"module_input_name", "module_output_name", "use_residual"}


def _write(file: Path, document: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
