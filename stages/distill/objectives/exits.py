"""Objectives that branch off the student's layers into logits.

Shapes: B rows, T tokens, K classes; hidden states [B, T, width] of a layer.
"""

import torch
from torch import Tensor, nn

from ....cache_schemas.errors import MissingFeatureError
from ...pooling import pool
from ..losses import accumulated, likeliest_classes
from ..losses.targets import ofa_loss
from .base import Reads, Sizes, Sources, StudentSide, require_layers
from .one_loss import BetaObjective
from .options import OFAOptions


class OFAObjective(BetaObjective):
    """Layers of the student branch into class logits, each of which meets the teacher's.

    Formula: task + beta · mean over exits, the student's own logits among them, of
    -(1 + p_t[y])^γ log p_s[y] - sum over other classes of p_t log p_s
    Source: Hao et al., One-for-All, arXiv 2310.19444, equations 6 and 8: layers of another
    architecture are compared where all have the same meaning, in logits.

    Owns `exits`, for each layer a normalisation and a linear map of its pooled states to logits.
    """

    Options = OFAOptions
    options: OFAOptions
    reads = Reads(
        default_feature="logits",
        classes=True,
        regression=False,
        student=frozenset({"layers", "output"}),
    )

    def __init__(self, options: OFAOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        require_layers("ofa", options.layers, sizes)
        widths = [sizes.layer_dims[layer] for layer in options.layers]
        self.exits = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sizes.num_labels))
            for width in widths
        )
        _ = sizes.feature_dim  # raises MissingFeatureError

    @classmethod
    def layers_of(cls, options: OFAOptions) -> tuple[int, ...]:
        """The layers that branch."""
        return options.layers

    def of_sources(
        self, side: StudentSide, sources: Sources, labels_B: Tensor | None
    ) -> dict[str, Tensor]:
        """total, task, ofa."""
        assert side.mask_BT is not None
        assert side.output_BK is not None
        assert labels_B is not None
        feature = sources.get(self.sources[0])
        if not isinstance(feature, Tensor):
            raise MissingFeatureError("ofa needs a teacher's logits and the batch carries none")
        teacher_BK = accumulated(feature.detach()).flatten(start_dim=1)
        classes_B, gamma = likeliest_classes(labels_B), float(self.options.enhancement)
        losses = [ofa_loss(accumulated(side.output_BK), teacher_BK, classes_B, gamma)]
        for layer, branch in zip(self.options.layers, self.exits, strict=True):
            states_BTD = accumulated(side.layers[layer])
            pooled_BD = pool(states_BTD, side.mask_BT, [self.options.layer_pooling])
            losses.append(ofa_loss(accumulated(branch(pooled_BD)), teacher_BK, classes_B, gamma))
        loss = torch.stack(losses).mean()
        return self.beside_task(loss, side.output_BK, labels_B, ofa=loss)
