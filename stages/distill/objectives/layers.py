"""Objectives that compare hidden layers: bases, and the one of layers pooled to a vector per text.

MappedLayersObjective      a layer of the student, or a mean of all, for each feature
ProjectedLayersObjective   with a linear projection onto each feature
"""

from collections.abc import Mapping, Sequence
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
from .options.layers import MappedLayersOptions, ProjectedLayersOptions


class MappedLayersObjective(LayersObjective):
    """An objective that reads a layer of the student for each feature of the teacher.

    Owns `scores` [features, layers] of a map that is learned, 0 at first: all layers alike."""

    options: MappedLayersOptions
    reads: ClassVar[Reads] = Reads(
        features=None,
        student=frozenset({"layers", "output"}),
        labels=False,
        headless=True,
        task=False,
    )

    def __init__(self, options: MappedLayersOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.targets = [sizes.feature_dim, *(torch.Size(s).numel() for s in sizes.more_shapes)]
        """Numbers of each feature."""
        self.layers = _layers(options, len(self.targets), sizes)
        self.widths = [sizes.layer_dims[layer] for layer in self.layers]
        """Width of the student's side of each feature."""
        self.scores: nn.Parameter | None = None
        if options.map == "learned":
            if len(set(self.widths)) > 1:
                raise JobError(
                    f"map=learned: the student's layers have {len(set(self.widths))} widths, which "
                    "have no mean; use uniform, last or a list"
                )
            self.scores = nn.Parameter(torch.zeros(len(self.targets), len(self.layers)))
            self.widths = [self.widths[0]] * len(self.targets)

    @classmethod
    def require_inputs(cls, name: str, options: Any, sizes: Sizes) -> None:
        """Raises JobError for a map that does not fit the student's layers and the features."""
        super().require_inputs(name, options, sizes)
        if sizes.layer_dims:
            _layers(options, 1 + len(sizes.more_shapes), sizes)

    @classmethod
    def layers_of(cls, options: Any) -> tuple[int, ...]:
        """The layers of a list; of other maps, they follow from the sizes."""
        return () if isinstance(options.map, str) else options.map

    def states(self, side: StudentSide) -> list[Tensor]:
        """Hidden states [B, T, width] of the layers that are read, 0 at padding."""
        assert side.mask_BT is not None
        padding_BT1 = side.mask_BT.unsqueeze(-1) == 0
        read = (accumulated(side.layers[layer]) for layer in self.layers)
        return [states_BTD.masked_fill(padding_BT1, 0) for states_BTD in read]

    def mapped(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The student's side of each feature, of something of each layer that is read."""
        if self.scores is None:
            return list(layers)
        stacked = torch.stack(list(layers))
        return [mixed_layers(stacked, scores_L) for scores_L in self.scores]


class ProjectedLayersObjective(MappedLayersObjective):
    """An objective that compares projections of layers with features.

    Owns `projections`, a linear map for each feature."""

    options: ProjectedLayersOptions

    def __init__(self, options: ProjectedLayersOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        self.projections = nn.ModuleList(map(nn.Linear, self.widths, self.targets))

    def projected(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The projection for each feature, of something of each layer that is read."""
        pairs = zip(self.projections, self.mapped(layers), strict=True)
        return [accumulated(projection(each)) for projection, each in pairs]


class HiddenLayersObjective(ProjectedLayersObjective):
    """Hidden layers of the student, projected onto pooled layers of the teacher.

    Formula: task + beta · mean over features i of distance(projection_i(pool(h_map(i))), t_i)
    Source: Sun et al., PKD, arXiv 1908.09355 (last, normalised); Jiao et al., TinyBERT, arXiv
    1909.10351 (uniform); Romero et al., FitNets, arXiv 1412.6550 (one layer); `learned` weighs
    layers as Passban et al., ALP-KD, arXiv 2012.14022, but those of the student, so that no target
    is left out.
    """

    Options = HiddenLayersOptions
    options: HiddenLayersOptions

    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports layers."""
        assert side.mask_BT is not None
        read = (accumulated(side.layers[layer]) for layer in self.layers)
        pooled = [pool(each, side.mask_BT, [self.options.layer_pooling]) for each in read]
        loss = hidden_layers_loss(
            self.projected(pooled),
            [feature.flatten(start_dim=1) for feature in features],
            self.options.distance,
            self.options.normalize,
        )
        return loss, {"layers": loss}


def _layers(options: MappedLayersOptions, features: int, sizes: Sizes) -> tuple[int, ...]:
    """The student's layer of each feature; all layers, of a map that is learned."""
    count = len(sizes.layer_dims) - 1
    if not isinstance(options.map, str):
        if len(options.map) != features:
            raise JobError(
                f"map: names {len(options.map)} layers of the student for {features} features of "
                "the teacher; name a layer for each"
            )
        return options.map
    require_layers("map", (1,), sizes)
    if options.map == "learned":
        return tuple(range(1, count + 1))
    if features > count:
        raise JobError(
            f"map={options.map}: {features} features for a student of {count} layers; name fewer "
            "features, or use map=learned"
        )
    if options.map == "last":
        return tuple(range(count - features + 1, count + 1))
    return tuple(-(-number * count // features) for number in range(1, features + 1))
