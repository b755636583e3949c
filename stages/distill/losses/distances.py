"""Distances between a teacher's and a student's tensors of one shape, as functions of both."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ....cache_schemas.errors import JobError
from ..objectives.options import Distance

T = TypeVar("T")

Measure = Callable[[Tensor, Tensor], Tensor]


def mse(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of all elements."""
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (teacher - student).square().mean()


def mae(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference of all elements."""
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (teacher - student).abs().mean()


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over rows of 1 - cos; a zero vector has cosine 0."""
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return (1 - F.cosine_similarity(teacher, student, dim=-1)).mean()


def smooth_l1(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean of x²/2 up to 1 and |x| - 1/2 beyond, of all differences x."""
    assert teacher.shape == student.shape, "broadcasting would hide a wrong size"
    return F.smooth_l1_loss(student, teacher)


DISTANCES: Mapping[Distance, Measure] = {
    "mse": mse,
    "mae": mae,
    "cosine": cosine_distance,
    "smooth_l1": smooth_l1,
}


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last axis scaled to length 1; zero vectors stay, and pass gradients on
    unscaled."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(lengths > 0, lengths, 1)


def products(x: Tensor, y: Tensor) -> Tensor:
    """x·yᵀ over the last two axes, in the precision that the inputs have: autocast would round
    them, and similarities close to 1 have few digits left then."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.mT


def choose(measures: Mapping[Any, T], kind: str, name: str) -> T:
    """The measure of that name; raises JobError for an unknown one."""
    if name not in measures:
        raise JobError(f"{kind} {name!r} is unknown; allowed are {', '.join(measures)}")
    return measures[name]
