"""Objectives that compare attention layers: their queries, keys and values."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ....cache_schemas.errors import JobError
from ..losses import accumulated
from ..losses.attention import attention_relations_loss
from .base import Reads, Sizes, StudentSide
from .one_loss import LayersObjective
from .options import AttentionRelationsOptions


class AttentionRelationsObjective(LayersObjective):
    """Relations between tokens among queries, keys and values of an attention layer.

    Formula: task + beta · Σ over queries, keys, values of the mean KL(teacher ‖ student) of
    softmax(a·aᵀ/√d) in relation_heads heads
    Source: Wang et al., MiniLMv2, arXiv 2012.15828.

    Owns nothing: widths and numbers of heads need not be equal. Holds the relation_heads·T·T
    relations of each text.
    """

    Options = AttentionRelationsOptions
    options: AttentionRelationsOptions
    reads: ClassVar[Reads] = Reads(
        axis="tokens",
        student=frozenset({"attention", "output"}),
        labels=False,
        headless=True,
        task=False,
    )

    def __init__(self, options: AttentionRelationsOptions, sizes: Sizes) -> None:
        super().__init__(options, sizes)
        shape = sizes.feature_shape or ()
        width = sizes.feature_dim // 3
        if shape != (3, width):
            raise JobError(
                f"objective attention_relations: the feature has shape {list(shape)}, not that of "
                "queries, keys and values; name one of attention_layers of an encoder"
            )
        (layer,) = self.attention
        for side, numbers in (("student", sizes.attention_dims[layer]), ("teacher", width)):
            if numbers % options.relation_heads:
                raise JobError(
                    f"relation_heads: {options.relation_heads} does not divide the {numbers} "
                    f"numbers of a query of the {side}; choose a divisor"
                )

    @classmethod
    def attention_of(cls, options: Any) -> tuple[int, ...]:
        """The one layer."""
        return (options.student_layer,)

    def loss(
        self, side: StudentSide, features: tuple[Tensor, ...]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reports relations."""
        assert side.mask_BT is not None
        (layer,), (feature_BT3H,) = self.attention, features
        student_BT3D = accumulated(side.attention[layer])
        heads = self.options.relation_heads
        loss = attention_relations_loss(student_BT3D, feature_BT3H, side.mask_BT, heads)
        return loss, {"relations": loss}
