"""Any transformers text encoder as a teacher: pooled states of the last and of chosen layers.

Decoders are encoders too, with `pooling: last`. Of an encoder-decoder the encoder is asked.
Shapes: B examples, T tokens, H hidden numbers.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from .text.language_models import LanguageModelTeacher
from .text.tokenized import TokenBatch, TokenizedOptions

StatePooling = Literal["mean", "cls", "last"]
Pooling = StatePooling | Literal["pooler"]


class EncoderOptions(TokenizedOptions):
    pooling: Pooling = Field(
        default="mean",
        description="one vector of a text's tokens: their mean, the first, the last, or the "
        "model's own pooler",
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="hidden layers to keep too, as features layer_0 (embeddings), layer_1, ...; "
        "pooled alike, by the first token where pooling is pooler",
    )
    normalize: bool = Field(default=False, description="scale every feature to length 1")

    @field_validator("layers")
    @classmethod
    def _differ(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(layers)) != len(layers):
            raise ValueError(f"{list(layers)} repeats a layer; name each once")
        return layers


class EncoderTeacher(LanguageModelTeacher):
    """Answers with `pooled` [H], and `layer_<n>` [H] for each of the layers asked for."""

    Options = EncoderOptions
    kind = "encoder"
    selecting = frozenset({"layers"})
    auto_class = "AutoModel"

    def __init__(self, source: str, options: EncoderOptions, device: torch.device) -> None:
        self._options = options
        super().__init__(source, options, device)

    def _prepare(self) -> None:
        if self._has_decoder():
            self._model = self._model.get_encoder()

    def _answer(self, batch: TokenBatch) -> dict[str, torch.Tensor]:
        inputs = batch.on(self._device)
        output = self._model(**inputs, output_hidden_states=bool(self._options.layers))
        pooled = self._pool(output, inputs["attention_mask"])
        if not self._options.normalize:
            return pooled
        return {name: F.normalize(values, dim=-1) for name, values in pooled.items()}

    def _pool(self, output: Any, mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        pooling = _of_states(self._options.pooling)
        if self._options.pooling == "pooler":
            pooled = {"pooled": output.pooler_output.float()}
        else:
            pooled = {"pooled": pool(output.last_hidden_state, mask_BT, pooling)}
        return pooled | {
            f"layer_{layer}": pool(output.hidden_states[layer], mask_BT, pooling)
            for layer in self._options.layers
        }

    def _features(self) -> list[FeatureSpec]:
        width = getattr(self._config, "hidden_size", None)
        if width is None:
            raise TeacherSourceError(
                f"source {self._folder}: model type {self._config.model_type!r} has no "
                "hidden_size; name a text encoder"
            )
        self._check_options()
        stored = self._precision.stored
        return [
            FeatureSpec(name=name, shape=(width,), dtype=stored, description=text)
            for name, text in self._descriptions().items()
        ]

    def _descriptions(self) -> dict[str, str]:
        pooling = self._options.pooling
        scaled = ", length 1" if self._options.normalize else ""
        return {"pooled": f"last hidden states, {pooling}{scaled}"} | {
            f"layer_{layer}": f"hidden states {layer}, {_of_states(pooling)}{scaled}"
            for layer in self._options.layers
        }

    def _check_options(self) -> None:
        deepest = self._config.num_hidden_layers
        beyond = [layer for layer in self._options.layers if layer > deepest]
        if beyond:
            raise JobError(f"layers: {beyond[0]} is beyond the model's; from 0 to {deepest}")
        if self._options.pooling == "pooler" and getattr(self._skeleton, "pooler", None) is None:
            raise JobError(
                f"pooling: {type(self._skeleton).__name__} has no pooler; choose mean, cls or last"
            )

    def _has_decoder(self) -> bool:
        # Not `is_encoder_decoder`, which says no of a T5 that was saved without its decoder.
        return hasattr(self._skeleton, "encoder") and hasattr(self._skeleton, "decoder")

    def _unused(self, weight: str) -> bool:
        if self._has_decoder() and weight.startswith("decoder."):
            return True
        return self._options.pooling != "pooler" and weight.startswith("pooler.")


def _of_states(pooling: Pooling) -> StatePooling:
    # A model's pooler knows the last layer alone, and starts from its first token.
    return "cls" if pooling == "pooler" else pooling


def pool(states_BTH: torch.Tensor, mask_BT: torch.Tensor, pooling: StatePooling) -> torch.Tensor:
    """One float32 vector [B, H] a text, of its real tokens alone (mask 1); each has at least one.

    mean: of all of them; cls: the first; last: the last, which in a decoder has seen all others."""
    states_BTH = states_BTH.float()
    if pooling == "cls":
        return states_BTH[:, 0]
    tokens_B = mask_BT.sum(dim=1)
    if pooling == "last":
        return states_BTH[torch.arange(len(states_BTH), device=states_BTH.device), tokens_B - 1]
    # Not a product with the mask: in half precision padding may hold infinities.
    kept_BTH = states_BTH.masked_fill(mask_BT.unsqueeze(-1) == 0, 0.0)
    return kept_BTH.sum(dim=1) / tokens_B.unsqueeze(-1)
