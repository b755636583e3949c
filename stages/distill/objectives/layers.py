"""Objectives that compare hidden layers, pooled to a vector per text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import JobError
from ...pooling import pool
from ..losses import accumulated
from ..losses.layers import hidden_layers_loss, mixed_layers
from .base import Reads, Sizes, StudentSide, require_layers
from .one_loss import LayersObjective
from .options import HiddenLayersOptions


class HiddenLayersObjective(LayersObjective):
    """Hidden layers of the student, projected onto pooled layers of the teacher.

    Formula: task + beta · mean over features i of distance(projection_i(pool(h_map(i))), t_i)
    Source: Sun et al., PKD, arXiv 1908.09355 (last, normalised); Jiao et al., TinyBERT, arXiv
    1909.10351 (uniform); Romero et al., FitNets, arXiv 1412.6550 (one layer); `learned` weighs
    layers as Passban et al., ALP-KD, arXiv 2012.14022, but those of the student, so that no target
    is left out.

    Owns `projections`, a linear map for each feature, and `scores` [features, layers] of a map that
    is learned.
    """

    Options = HiddenLayersOptions
    options: HiddenLayersOptions
    reads: ClassVar[Reads] = Reads(
        features=None,
        student=frozenset({"layers", "output"}),
        labels=False,
        headless=True,
        task=False,
    )

    def __init__(self, options: HiddenLayersOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        targets = [sizes.feature_dim, *(torch.Size(shape).numel() for shape in sizes.more_shapes)]
        self.layers = _layers(options, len(targets), sizes)
        widths = [sizes.layer_dims[layer] for layer in self.layers]
        self.scores: nn.Parameter | None = None
        if options.map == "learned":
            if len(set(widths)) > 1:
                raise JobError(
                    f"map=learned: the student's layers have {len(set(widths))} widths, which have "
                    "no mean; use uniform, last or a list"
                )
            self.scores = nn.Parameter(torch.zeros(len(targets), len(widths)))
            widths = [widths[0]] * len(targets)
        self.projections = nn.ModuleList(map(nn.Linear, widths, targets))

    @classmethod
    def layers_of(cls, options: Any) -> tuple[int, ...]:
        """Those of a list; of other maps, they follow from the sizes."""
        return () if isinstance(options.map, str) else options.map

    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports layers."""
        assert side.mask_BT is not None
        found = [accumulated(side.layers[layer]) for layer in self.layers]
        pooled = [pool(states, side.mask_BT, [self.options.layer_pooling]) for states in found]
        if self.scores is not None:
            pooled_LBD = torch.stack(pooled)
            pooled = [mixed_layers(pooled_LBD, scores_L) for scores_L in self.scores]
        loss = hidden_layers_loss(
            [
                accumulated(projection(each))
                for projection, each in zip(self.projections, pooled, strict=True)
            ],
            [feature.flatten(start_dim=1) for feature in features],
            self.options.distance,
            self.options.normalize,
        )
        return loss, {"layers": loss}


def _layers(options: HiddenLayersOptions, features: int, sizes: Sizes) -> tuple[int, ...]:
    """The student's layer of each feature; all layers, of a map that is learned."""
    count = len(sizes.layer_dims) - 1
    name = "hidden_layers"
    if not isinstance(options.map, str):
        if len(options.map) != features:
            raise JobError(
                f"map: names {len(options.map)} layers, and objective {name} reads {features} "
                "features; name a layer for each"
            )
        return options.map
    require_layers(name, (1,), sizes)
    if options.map == "learned":
        return tuple(range(1, count + 1))
    if features > count:
        raise JobError(
            f"objective {name}: {features} features for a student of {count} layers; name fewer "
            "features, or use map=learned"
        )
    if options.map == "last":
        return tuple(range(count - features + 1, count + 1))
    return tuple(-(-number * count // features) for number in range(1, features + 1))
