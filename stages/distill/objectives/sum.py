"""A weighted sum of objectives, which is an objective.

    total = task? + sum of weight(progress) * objective's total

Each objective reads its own sources. Where labels are given and none of the objectives scores them
(`Reads.task`), the task's own loss is added once, with weight 1. Weights are numbers, or functions
of the progress of training: of the share of its steps that are made, so that a run that is cut and
resumed has the losses of one that was not.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_serializer
from torch import Tensor, nn

from ..losses import task_loss
from .base import Objective, ObjectiveOptions, Sizes, Sources, TeacherSide, named_terms


class WeightSchedule(BaseModel):
    """A weight that moves from one value to another while a run goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    begin: float = Field(alias="from", ge=0, allow_inf_nan=False, description="weight at the start")
    end: float = Field(alias="to", ge=0, allow_inf_nan=False, description="weight at the end")
    until: float = Field(
        default=1.0, gt=0, le=1, description="share of the steps after which the end is reached"
    )
    shape: Literal["linear", "cosine"] = Field(
        default="linear", description="course: linear, or cosine (slow at both ends)"
    )

    @model_serializer
    def _as_written(self) -> dict[str, float | str]:
        return {"from": self.begin, "to": self.end, "until": self.until, "shape": self.shape}

    def at(self, progress: float) -> float:
        """The weight when a share of the steps, 0 to 1, is made."""
        passed = min(progress / self.until, 1.0)
        if self.shape == "cosine":
            passed = (1 - math.cos(math.pi * passed)) / 2
        return self.begin + passed * (self.end - self.begin)


Weight = float | WeightSchedule


class SummedObjective(Objective):
    """Several objectives at once; `progress` is set before each step."""

    def __init__(self, parts: Sequence[Objective], weights: Sequence[Weight], sizes: Sizes) -> None:
        """`sizes` of the student; each part has been made for its own sources."""
        super().__init__(ObjectiveOptions(), sizes)
        self.each = nn.ModuleList(parts)
        self.weights = tuple(weights)
        self.sources = tuple(dict.fromkeys(name for part in parts for name in part.sources))
        self.progress = 0.0
        self._adds_task = not any(part.reads.task for part in parts)

    @property
    def parts(self) -> Sequence[Objective]:
        """The objectives that are summed up here."""
        return tuple(self.each)  # type: ignore[arg-type]

    def of_sources(
        self,
        pooled_BD: Tensor,
        output_BK: Tensor | None,
        sources: Sources,
        labels_B: Tensor | None,
    ) -> dict[str, Tensor]:
        """total; task, where no part scores the labels; the terms of each part as
        `label.term`, before its weight; and `label.weight`, where that moves."""
        total: Tensor | None = None
        reported: dict[str, Tensor] = {}
        if self._adds_task and output_BK is not None and labels_B is not None:
            total = task_loss(output_BK, labels_B, self.sizes.regression)
            reported["task"] = total
        # An evaluation in the middle of a run weighs as the end does, or epochs would not compare.
        progress = self.progress if self.training else 1.0
        for part, weight in zip(self.parts, self.weights, strict=True):
            scores = part.reads.task
            terms = part.of_sources(
                pooled_BD, output_BK if scores else None, sources, labels_B if scores else None
            )
            if isinstance(weight, WeightSchedule):
                weight = weight.at(progress)
                reported[f"{part.label}.weight"] = torch.full((), weight, device=pooled_BD.device)
            weighed = weight * terms.pop("total")
            total = weighed if total is None else total + weighed
            reported |= {f"{part.label}.{name}": term for name, term in terms.items()}
        assert total is not None
        return named_terms(total, **reported)

    def forward(
        self, pooled_BD: Tensor, output_BK: Tensor, feature_BH: TeacherSide, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """Not for a sum: its parts read different features."""
        raise TypeError("a sum of objectives is asked by `of_sources`")
