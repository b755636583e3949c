"""The student: a transformer, a pooled vector, a task head.

In: token ids [B, T]. Out: pooled [B, D] and output [B, K]. Shapes: B rows, T tokens, D the width
of the student, K classes (1 for regression).
"""

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ...cache_schemas.locations import Source
from ..corpus.labels import LabelSpace
from .aligner import ClassificationHead
from .pooling import Pooler, Pooling

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Of a batch, what a student reads."""


class StudentSettings(BaseModel):
    """Which student, and how its text becomes one vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: Source = Field(
        description="folder, hub id, or scratch:TYPE (scratch:bert, scratch:opt, ...) to start "
        "from random weights"
    )
    student_revision: str | None = Field(default=None, description="revision of a hub id")
    student_from_scratch: bool = Field(
        default=False,
        description="start from random weights: take the source's configuration, and its tokenizer "
        "if it has one",
    )
    student_layers: int | None = Field(default=None, ge=1, description="number of layers to keep")
    student_layer_choice: Literal["first", "every"] = Field(
        default="first",
        description="which layers of a checkpoint to keep: the first ones, or evenly spaced ones",
    )
    student_hidden_size: int = Field(default=128, ge=1, description="width (scratch:TYPE)")
    student_heads: int = Field(default=2, ge=1, description="attention heads (scratch:TYPE)")
    student_vocab_size: int = Field(
        default=8192, ge=16, description="size of the vocabulary trained on the corpus (scratch)"
    )
    student_tokenizer: Source | None = Field(
        default=None, description="folder or hub id of a tokenizer for scratch:TYPE"
    )
    pooling: Literal["auto"] | Pooling = Field(
        default="auto", description="text vector: pooler, context, cls, mean or last"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="most tokens of a text; default 128, or what it takes"
    )


class Student(nn.Module):
    """backbone -> pooler -> head; the head is dropout and a linear layer (ReLU for regression)."""

    def __init__(
        self, backbone: Any, pooling: Pooling, space: LabelSpace, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.space = space
        self.dropout = dropout
        self.backbone = backbone
        # Keys and values are kept to generate text, which is not done here.
        self._always = {"use_cache": False} if is_decoder(backbone.config) else {}
        self.pooler = Pooler(pooling, backbone.config, dropout)
        self.head = ClassificationHead(self.dim, space.num_labels, space.regression, dropout)

    @property
    def dim(self) -> int:
        """D, the width of a pooled text."""
        return int(self.backbone.config.hidden_size)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(pooled [B, D], output [B, K])."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= self._always
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        pooled_BD = self.pooler(self.backbone(**inputs), attention_mask)
        return pooled_BD, self.head(pooled_BD)


def check_kind(config: Any) -> str | None:
    """Why a model of this configuration cannot be a student, or None."""
    if config.is_encoder_decoder:
        return f"a {config.model_type} is an encoder and a decoder; use one that is one of them"
    return None


def is_decoder(config: Any) -> bool:
    """Whether a model of this configuration is a causal language model and nothing else."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def choose_pooling(asked: Literal["auto"] | Pooling, backbone: Any) -> Pooling:
    """The pooling as asked; 'auto': last token of a decoder, else the model's pooler if it has
    one, else a dense layer over the first token."""
    if asked != "auto":
        return asked
    if is_decoder(backbone.config):
        return "last"
    return "pooler" if _has_pooler(backbone) else "context"


def _has_pooler(backbone: Any) -> bool:
    return getattr(backbone, "pooler", None) is not None


def check_pooling(pooling: Pooling, backbone: Any) -> str | None:
    """Why this pooling cannot be had, or None."""
    if pooling == "pooler" and not _has_pooler(backbone):
        return f"a {backbone.config.model_type} has no pooler; use context, cls, mean or last"
    return None


def keep_layers(backbone: Any, count: int, choice: Literal["first", "every"]) -> str | None:
    """Reduce a backbone to `count` of its layers, in place; returns why not, or None.

    'every' keeps evenly spaced layers, the first and the last among them."""
    total = backbone.config.num_hidden_layers
    if count > total:
        return f"student_layers {count}: the checkpoint has {total} layers"
    kept = range(count) if choice == "first" else _spaced(total, count)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            parent = backbone.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.ModuleList(module[i] for i in kept))
            _describe_layers(backbone.config, list(kept))
            return None
    return f"student_layers {count}: a {backbone.config.model_type} keeps its layers elsewhere"


def _spaced(total: int, count: int) -> list[int]:
    return [round(place) for place in torch.linspace(0, total - 1, count).tolist()]


def _describe_layers(config: Any, kept: list[int]) -> None:
    config.num_hidden_layers = len(kept)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[i] for i in kept]
