"""Distances between a teacher's and a student's tensors of one shape, as functions of both."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

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


DISTANCES: Mapping[Distance, Measure] = {"mse": mse, "mae": mae, "cosine": cosine_distance}


def choose(measures: Mapping[Any, T], kind: str, name: str) -> T:
    """The measure of that name; raises JobError for an unknown one."""
    if name not in measures:
        raise JobError(f"{kind} {name!r} is unknown; allowed are {', '.join(measures)}")
    return measures[name]
