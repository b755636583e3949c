"""The layers behind an embedding model's pooling, or behind each of its tokens, as
sentence-transformers has them: Dense, LayerNorm and Normalize, computed in float32, weights from
safetensors, activations from torch.nn.

Shapes: B texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...cache_schemas.errors import InputError
from ..pretrained import one_line
from ..sources import require_safetensors

LAYER_WEIGHTS = "model.safetensors"
ACTIVATIONS = "torch.nn.modules.activation"
SENTENCE_EMBEDDING, TOKEN_EMBEDDINGS = "sentence_embedding", "token_embeddings"
"""Names of what layers read and give: of a pooled text, or of each token."""
Width = Annotated[int, Field(ge=1)]


class LayerSettings(BaseModel):
    """Settings in `config.json` common to all layers."""

    module_input_name: str = SENTENCE_EMBEDDING
    module_output_name: str | None = None

    @field_validator("module_input_name", "module_output_name")
    @classmethod
    def _is_the_embedding(cls, value: str | None) -> str | None:
        if value not in (None, SENTENCE_EMBEDDING, TOKEN_EMBEDDINGS):
            raise ValueError(f"{value!r}: only layers of the pooled embedding are supported")
        return value

    def is_of(self, name: str) -> bool:
        """Whether it reads and gives what has this name."""
        return {self.module_input_name, self.module_output_name or name} == {name}

    def widths(self, width: int) -> tuple[int, int]:
        """Input and output width, given the width offered."""
        return width, width

    def build(self) -> nn.Module:
        """The layer, with random weights."""
        return Normalize()

    def __str__(self) -> str:
        return "Normalize"


class DenseSettings(LayerSettings):
    """Settings in the `config.json` of a Dense."""

    in_features: Width
    out_features: Width
    bias: bool = True
    activation_function: str = f"{ACTIVATIONS}.Tanh"
    use_residual: bool = False

    @field_validator("activation_function")
    @classmethod
    def _is_known(cls, value: str) -> str:
        activation(value)
        return value

    def widths(self, width: int) -> tuple[int, int]:
        """Input and output width."""
        return self.in_features, self.out_features

    def build(self) -> nn.Module:
        """The layer, with random weights."""
        return Dense(self)

    def __str__(self) -> str:
        name = self.activation_function.rpartition(".")[2]
        return f"Dense {self.in_features} to {self.out_features}, {name}"


class LayerNormSettings(LayerSettings):
    """Settings in the `config.json` of a LayerNorm."""

    dimension: Width

    def widths(self, width: int) -> tuple[int, int]:
        """Input and output width."""
        return self.dimension, self.dimension

    def build(self) -> nn.Module:
        """The layer, with random weights."""
        return LayerNorm(self.dimension)

    def __str__(self) -> str:
        return "LayerNorm"


class Dense(nn.Module):
    """activation(W x + b); with a residual connection plus x, or plus R x if the width changes."""

    def __init__(self, settings: DenseSettings) -> None:
        super().__init__()
        self.settings = settings
        narrow, wide = settings.in_features, settings.out_features
        self.linear = nn.Linear(narrow, wide, bias=settings.bias)
        self.activation_function = activation(settings.activation_function)
        self.adds = settings.use_residual
        if self.adds and narrow != wide:
            self.residual: nn.Module = nn.Linear(narrow, wide, bias=False)
        else:
            self.residual = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        output: Tensor = self.activation_function(self.linear(input))
        return output + self.residual(input) if self.adds else output


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the numbers of a text, then a gain and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, in]."""
        output: Tensor = self.norm(input)
        return output


class Normalize(nn.Module):
    """Length 1."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, in]."""
        return F.normalize(input, dim=-1)


LAYERS: Mapping[str, type[LayerSettings]] = {
    "Dense": DenseSettings,
    "LayerNorm": LayerNormSettings,
    "Normalize": LayerSettings,
}


def activation(name: str) -> nn.Module:
    """The activation of a dotted name: `torch.nn.modules.activation.Tanh`, or `torch.nn.Tanh`.

    Raises ValueError for anything else; nothing is imported by its name."""
    package, _, last = name.rpartition(".")
    kind = getattr(nn, last, None) if f"{package}.".startswith("torch.nn.") else None
    if kind is nn.Identity or getattr(kind, "__module__", None) == ACTIVATIONS:
        try:
            made: nn.Module = kind()  # type: ignore[misc]
            return made
        except TypeError:
            pass  # one that needs arguments, which a name does not give
    raise ValueError(f"{name!r} is not an activation of torch.nn")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, and the folder of its weights."""

    folder: Path
    settings: LayerSettings

    @property
    def normalizes(self) -> bool:
        """Whether it only scales to length 1, without weights."""
        return type(self.settings) is LayerSettings


def read_layer(kind: str, folder: Path, config: Any, error: type[InputError]) -> Layer:
    """A layer of a kind in LAYERS, from its `config.json`; raises `error`."""
    try:
        return Layer(folder, LAYERS[kind].model_validate(config))
    except ValidationError as cause:
        first = cause.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise error(f"source {folder}: config.json: {field}: {first['msg']}") from cause


def width_after(layers: Sequence[Layer], width: int, error: type[InputError]) -> int:
    """Output width of layers, given the input width; raises `error` if they do not fit."""
    for layer in layers:
        takes, gives = layer.settings.widths(width)
        if takes != width:
            raise error(f"source {layer.folder}: takes {takes} inputs, but gets {width}")
        width = gives
    return width


def load_layers(layers: Sequence[Layer], error: type[InputError]) -> nn.Sequential:
    """The layers with their weights, in float32; raises `error`."""
    return nn.Sequential(*(_load(layer, error) for layer in layers))


def _load(layer: Layer, error: type[InputError]) -> nn.Module:
    module = layer.settings.build()
    if layer.normalizes:
        return module
    require_safetensors(layer.folder, error)
    try:
        weights = load_file(layer.folder / LAYER_WEIGHTS)
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, RuntimeError, SafetensorError) as cause:
        raise error(f"source {layer.folder}: {LAYER_WEIGHTS}: {one_line(cause)}") from cause
    return module
