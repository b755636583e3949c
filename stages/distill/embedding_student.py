"""A student of `feature`, or of another objective with a projector, as a model of embeddings, which
sentence-transformers opens.

pooled text -> the projection that was learned -> length 1, where the teacher's embeddings have it
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..adapters import as_plain
from ..embeddings.folders import ACTIVATION_NAMES, activation_name, dense_layer
from ..embeddings.layers import Dense, Normalize
from ..language.probes import probe, probing
from ..pooling import StatePooling, pool
from .own_classifier import layer_between
from .projectors import MLPProjector, Projector
from .student import ClassifierStudent, PooledStudent, Student

_PROBE_IDS = (5, 6, 7, 8, 9)
_IDENTITY = "torch.nn.modules.linear.Identity"
_GELU = "torch.nn.modules.activation.GELU"


def embedding_layers(projection: Projector, length_1: bool) -> list[Dense | Normalize]:
    """Layers from a pooled text to its embedding."""
    layers: list[Dense | Normalize]
    if isinstance(projection, nn.Identity):
        layers = []
    elif isinstance(projection, MLPProjector):
        hidden, output = projection.hidden, projection.output
        layers = [
            dense_layer(hidden.weight, hidden.bias, _GELU),
            dense_layer(output.weight, output.bias, _IDENTITY),
        ]
    else:
        layers = [dense_layer(projection.weight, projection.bias, _IDENTITY)]
    return [*layers, Normalize()] if length_1 else layers


def state_pooling(student: Student) -> tuple[StatePooling, list[Dense | Normalize]] | None:
    """The student's pooling as one of token states, and a layer after it; None if there is no such
    layer: its pooler is more than a dense one over the first token, or has an activation that
    torch.nn lacks."""
    if isinstance(student, ClassifierStudent):
        return _of_classifier(student)
    assert isinstance(student, PooledStudent)
    if student.pooling == "none":
        return None
    if student.pooling != "pooler" and student.pooling != "context":
        return student.pooling, []
    found = _dense_over_first(student)
    return None if found is None else ("cls", [found])


def has_length_1(features: npt.NDArray[Any]) -> bool:
    """Whether rows [N, *shape] of a feature have length 1, up to the rounding of float16."""
    if not len(features):
        return False
    lengths = np.linalg.norm(features.reshape(len(features), -1).astype(np.float64), axis=1)
    return bool((np.abs(lengths - 1) < 5e-3).all())


@torch.no_grad()
def _of_classifier(
    student: ClassifierStudent,
) -> tuple[StatePooling, list[Dense | Normalize]] | None:
    """Input of its head, found by a probe with one text."""
    ids_BT = torch.tensor([_PROBE_IDS], device=next(student.parameters()).device)
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    with probing(student):
        wanted_BD = student(**inputs)[0].float().cpu()
        states_BTD = student.backbone(**inputs | student._always).last_hidden_state.float().cpu()
    linear = layer_between(student.classifier, student.own_head)
    modes: tuple[StatePooling, ...] = ("cls", "last", "mean")
    for mode in modes:
        pooled_BD = pool(states_BTD, inputs["attention_mask"].cpu(), [mode])
        layers: list[Dense] = []
        if linear is not None and linear.in_features == pooled_BD.shape[-1]:
            layers = [dense_layer(linear.weight, linear.bias, name) for name in ACTIVATION_NAMES]
        for behind in ([], *([each] for each in layers)):
            found_BD = nn.Sequential(*behind)(pooled_BD)
            if found_BD.shape == wanted_BD.shape and torch.allclose(found_BD, wanted_BD, atol=1e-5):
                return mode, [*behind]
    return None


@torch.no_grad()
def _dense_over_first(student: PooledStudent) -> Dense | None:
    linear: Any
    if student.pooling == "context":
        linear, act = student.pooler.dense, student.pooler.activation
    else:
        own = as_plain(student.backbone.pooler)  # ALBERT keeps its activation beside it
        linear = own if isinstance(own, nn.Linear) else getattr(own, "dense", None)
        beside = getattr(student.backbone, "pooler_activation", None)
        act = getattr(own, "activation", None) or beside or nn.Identity()
    name = activation_name(act.cpu())
    if not isinstance(linear, nn.Linear) or name is None:
        return None
    layer = dense_layer(linear.weight, linear.bias, name)
    outputs, mask_BT = probe(student.backbone)
    with probing(student.pooler):
        pooled_BD = student.pooler(outputs, mask_BT)
    found_BD = layer(outputs.last_hidden_state[:, 0].cpu())
    return layer if torch.allclose(found_BD, pooled_BD.cpu(), atol=1e-4) else None
