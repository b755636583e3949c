"""The student: a transformer, a pooled vector, a task head.

In: token ids [B, T]. Out: pooled [B, D] and output [B, K]. Shapes: B rows, T tokens, D the width of
a pooled text, K classes (1 for regression).

A student with a task is, if possible, the family's own sequence classifier: pooled is the input of
its last linear layer, and its folder opens as that class (`ClassifierStudent`). With another
pooling, or without labels, pooling and head are made here (`PooledStudent`).
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import without_adapters
from ..corpus.labels import LabelSpace
from ..language.classifiers import ClassifierHead
from ..language.masks import attending
from ..language.probes import probe, probing, without_memory
from ..pooling import pool
from .aligner import WEIGHT_STD, ClassificationHead
from .settings import AnyPooling, Pooling

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Names of a student's inputs in a batch."""


class Student(nn.Module, ABC):
    """A text model: pooled vectors, and the outputs of its head."""

    model: Any
    """The model saved and opened by transformers, or by peft if it has adapters."""
    pooling: AnyPooling
    space: LabelSpace
    dropout: float
    """Dropout of the head."""
    dim: int
    """D, the width of a pooled text."""
    _always: dict[str, bool]

    @property
    @abstractmethod
    def backbone(self) -> Any:
        """The transformer below the head, adapters in its layers if it has any."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        masked: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(pooled [B, D], output [B, K]). `masked`: whether something is padded, if that is known
        without reading it from the device."""
        inputs = self._inputs(input_ids, attention_mask, token_type_ids)
        with attending(masked):
            pooled_BD, output_BK, _ = self._read(inputs)
        return pooled_BD, output_BK

    def with_hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        masked: bool | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """(pooled, output, hidden states [B, T, width] of the embeddings and of each layer)."""
        inputs = self._inputs(input_ids, attention_mask, token_type_ids)
        with attending(masked):
            pooled_BD, output_BK, output = self._read(inputs | {"output_hidden_states": True})
        return pooled_BD, output_BK, output.hidden_states

    @abstractmethod
    def _read(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        """(pooled [B, D], output [B, K], what the model in transformers returns)."""

    def _inputs(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return inputs | self._always


class Pooler(nn.Module):
    """Pools the output of a transformer; only `context` has weights."""

    def __init__(self, pooling: Pooling, config: Any, width: int, dropout: float) -> None:
        """`width`: that of the states, H."""
        super().__init__()
        self.pooling = pooling
        if pooling == "context":
            from transformers.activations import ACT2FN

            self.dropout = nn.Dropout(dropout)
            self.dense = nn.Linear(width, width)
            name = getattr(config, "pooler_hidden_act", None)
            self.activation: nn.Module = ACT2FN[name or getattr(config, "hidden_act", "gelu")]

    def forward(self, outputs: Any, mask_BT: Tensor) -> Tensor:
        """[B, D] from a model output with [B, T, D] states; without pooling [B, T, D]."""
        if self.pooling == "pooler":
            pooled: Tensor = outputs.pooler_output
            return pooled
        states_BTD: Tensor = outputs.last_hidden_state
        if self.pooling == "context":
            return torch.as_tensor(self.activation(self.dense(self.dropout(states_BTD[:, 0]))))
        if self.pooling == "none":
            return states_BTD.masked_fill((mask_BT == 0).unsqueeze(-1), 0.0)
        return pool(states_BTD, mask_BT, [self.pooling])


class PooledStudent(Student):
    """backbone -> pooler -> head; the head is dropout and a linear layer (ReLU of one number)."""

    pooling: Pooling

    def __init__(
        self, backbone: Any, pooling: Pooling, space: LabelSpace, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.space, self.pooling, self.dropout = space, pooling, dropout
        self.model = backbone
        self._always = without_memory(backbone)
        outputs, mask_BT = probe(backbone)
        self.state_width = int(outputs.last_hidden_state.shape[-1])
        self.pooler = Pooler(pooling, backbone.config, self.state_width, dropout)
        with probing(self.pooler):
            self.dim = self.pooler(outputs, mask_BT).shape[-1]
        self.head = ClassificationHead(self.dim, space.num_labels, space.regression, dropout)

    @property
    def backbone(self) -> Any:
        """The transformer: the head is none that it has in the library."""
        return without_adapters(self.model)

    def _read(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        outputs = self.backbone(**inputs)
        pooled_BD = self.pooler(outputs, inputs["attention_mask"])
        return pooled_BD, self.head(pooled_BD), outputs


class ClassifierStudent(Student):
    """The family's own sequence classifier: output is its logits (ReLU of a single number), pooled
    what enters its last linear layer, before dropout.

    A family without dropout there gets it here, in training."""

    pooling = "own"

    def __init__(
        self, model: Any, head: ClassifierHead, space: LabelSpace, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.space, self.dropout = space, dropout
        self.model = model
        self._always = without_memory(model)
        self.own_head = head
        self.dim = int(self.last_layer.in_features)
        if head.dropout is not None:
            model.get_submodule(head.dropout).p = dropout

    @property
    def classifier(self) -> Any:
        """The sequence classifier itself."""
        return without_adapters(self.model)

    @property
    def backbone(self) -> Any:
        """The transformer below the family's head."""
        return self.classifier.base_model

    @property
    def last_layer(self) -> nn.Linear:
        """Layer from a pooled text to the logits."""
        layer: nn.Linear = self.classifier.get_submodule(self.own_head.linear)
        return layer

    def draw_last_layer(self) -> None:
        """Begin with weights N(0, 0.02) and without a bias, as the method does."""
        nn.init.normal_(self.last_layer.weight, std=WEIGHT_STD)
        if self.last_layer.bias is not None:
            nn.init.zeros_(self.last_layer.bias)

    def _read(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        pooled_BD, output_BK, output = self.own_head.read(self.classifier, inputs)
        if self.training and self.own_head.dropout is None:
            output_BK = self.last_layer(F.dropout(pooled_BD, self.dropout))
        return pooled_BD, F.relu(output_BK) if self.space.rectified else output_BK, output


def check_kind(config: Any) -> str | None:
    """Why a model of this configuration cannot be a student, or None."""
    if config.is_encoder_decoder:
        return f"a {config.model_type} is an encoder-decoder; use an encoder or a decoder"
    return None


def is_decoder(config: Any) -> bool:
    """Whether a model of this configuration is a causal language model and nothing else."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    kind = type(config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def choose_pooling(
    requested: Literal["auto"] | Pooling, backbone: Any, embeds: bool = False
) -> Pooling:
    """The requested pooling of a transformer; 'auto': last token of a decoder, else the model's
    pooler if it has one, else a dense layer over the first token; the mean of a student that
    `embeds`."""
    if requested != "auto":
        return requested
    if is_decoder(backbone.config):
        return "last"
    if embeds:
        return "mean"
    return "pooler" if _has_pooler(backbone) else "context"


def _has_pooler(backbone: Any) -> bool:
    return getattr(backbone, "pooler", None) is not None


def check_pooling(pooling: Pooling, backbone: Any) -> str | None:
    """Why this pooling cannot be had, or None."""
    if pooling == "pooler" and not _has_pooler(backbone):
        return f"a {backbone.config.model_type} has no pooler; use context, cls, mean or last"
    return None


def keep_layers(backbone: Any, count: int, choice: Literal["first", "every"]) -> str | None:
    """Reduce a backbone to `count` of its layers, in place; returns the reason if that is not
    possible, or None.

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
    family = backbone.config.model_type
    return f"student_layers {count}: a {family} has no list of layers; leave it out"


def _spaced(total: int, count: int) -> list[int]:
    return [round(index) for index in torch.linspace(0, total - 1, count).tolist()]


def _describe_layers(config: Any, kept: list[int]) -> None:
    config.num_hidden_layers = len(kept)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[i] for i in kept]
