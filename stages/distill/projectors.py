"""Projectors: trainable maps from the student's pooled text [B, D] into the teacher's space [B, H].

linear      W s + b
orthogonal  the same with W orthogonal (of the narrower side's dimension)
mlp         W₂ GELU(W₁ s + b₁) + b₂, as wide inside as the wider side
none        s itself, as wide as the feature
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cache_schemas.errors import JobError
from .aligner import NormalLinear, ProjectionHead
from .objectives.base import Sizes
from .objectives.options import ProjectorOptions


class MLPProjector(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        width = max(input_dim, output_dim)
        self.hidden = NormalLinear(input_dim, width)
        self.output = NormalLinear(width, output_dim)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        projected: Tensor = self.output(F.gelu(self.hidden(input)))
        return projected


Projector = ProjectionHead | MLPProjector | nn.Identity


class WithProjector:
    """An objective with a map into the teacher's space: its student is a model of embeddings."""

    projection: Projector


def make_projector(name: str, options: ProjectorOptions, sizes: Sizes) -> Projector:
    """A new projector of an objective of some name. Raises JobError for none between two
    widths."""
    input_dim, output_dim = sizes.pooled_dim, sizes.feature_dim
    if options.projector == "none":
        if input_dim != output_dim:
            raise JobError(
                f"objective {name}: projector=none: the student's texts have {input_dim} numbers, "
                f"the teacher's feature {output_dim}; set embedding_dim={output_dim} "
                "(task=embedding), or projector=linear"
            )
        return nn.Identity()
    if options.projector == "mlp":
        return MLPProjector(input_dim, output_dim)
    return ProjectionHead(
        input_dim, output_dim, options.is_orthogonal, options.orthogonal_map, bias=True
    )


def as_wide_as(student_BD: Tensor, feature_BH: Tensor) -> Tensor:
    """What student embeddings of D numbers are to meet of a feature: its first D numbers, at the
    length that the whole has [B, D]. Source: Matryoshka, arXiv 2205.13147, of a teacher."""
    width = student_BD.shape[-1]
    if width == feature_BH.shape[-1]:
        return feature_BH
    cut_BD = feature_BH[..., :width]
    whole_B1, own_B1 = (
        torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (feature_BH, cut_BD)
    )
    met_BD: Tensor = cut_BD * (whole_B1 / torch.where(own_B1 > 0, own_B1, 1))
    return met_BD
