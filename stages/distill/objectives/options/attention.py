"""Options of objectives that compare attention layers."""

from pydantic import Field

from .base import BetaOptions


class AttentionRelationsOptions(BetaOptions):
    """Options of the objective attention_relations."""

    student_layer: int = Field(
        default=-1, description="layer of the student: 1 is the first, -1 the last"
    )
    relation_heads: int = Field(
        default=12,
        ge=1,
        description="parts that queries, keys and values of either side are divided into; divides "
        "the width of both",
    )
