"""An objective of another package that reads layers: hints (FitNets, arXiv 1412.6550).

total = task + beta * mean over layers of |W_l mean over tokens(h_l) + b_l - feature|^2 / H
"""

from dataclasses import replace
from typing import Any

import torch
from armada.stages.distill.losses import accumulated, task_loss
from armada.stages.distill.objectives.base import (
    Objective,
    ObjectiveOptions,
    Reads,
    Sizes,
    Sources,
    StudentSide,
    named_terms,
)
from armada.stages.pooling import pool
from pydantic import Field
from torch import Tensor, nn


class HintOptions(ObjectiveOptions):
    """Options of the objective hint."""

    layers: tuple[int, ...] = Field(default=(-1,), min_length=1, description="layers to guide")
    beta: float = Field(default=1.0, ge=0, description="weight of the hints")


class HintObjective(Objective):
    """Owns a linear map for each layer."""

    Options = HintOptions
    reads = Reads(student=frozenset({"layers", "output"}), labels=False, headless=True, task=False)

    def __init__(self, options: HintOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        widths = [sizes.layer_dims[layer] for layer in self.layers]
        self.maps = nn.ModuleList([nn.Linear(width, sizes.feature_dim) for width in widths])

    @classmethod
    def layers_of(cls, options: Any) -> tuple[int, ...]:
        layers: tuple[int, ...] = options.layers
        return layers

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        feature_BH = accumulated(self._feature(self.teacher_side(sources)))
        assert side.mask_BT is not None
        hints = []
        for layer, mapped in zip(self.layers, self.maps, strict=True):
            pooled_BD = pool(accumulated(side.layers[layer]), side.mask_BT, ["mean"])
            hints.append((accumulated(mapped(pooled_BD)) - feature_BH).square().mean())
        hint = torch.stack(hints).mean()
        total = self.options.beta * hint
        if side.output_BK is None or labels_B is None:
            return named_terms(total, hint=hint)
        task = task_loss(side.output_BK, labels_B, self.sizes.regression)
        return named_terms(task + total, task=task, hint=hint)


class OfPadding(HintObjective):
    """With a fault: counts padding as tokens."""

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        assert side.mask_BT is not None
        whole = replace(side, mask_BT=torch.ones_like(side.mask_BT))
        return super().of_sources(whole, sources, labels_B)


class OfOne(HintObjective):
    """With a fault: declares a layer that it does not read."""

    @classmethod
    def layers_of(cls, options: Any) -> tuple[int, ...]:
        return (*super().layers_of(options), 0)

    def __init__(self, options: HintOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.maps = self.maps[:-1]

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        read, self.layers = self.layers, self.layers[:-1]
        terms = super().of_sources(side, sources, labels_B)
        self.layers = read
        return terms
