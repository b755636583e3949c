"""Projectors: trainable maps from the student's pooled text [B, D] into the teacher's space [B, H].

linear      W s + b
orthogonal  the same with W orthogonal (of the narrower side's dimension)
mlp         W₂ GELU(W₁ s + b₁) + b₂, as wide inside as the wider side
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .aligner import NormalLinear, ProjectionHead
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


Projector = ProjectionHead | MLPProjector


class WithProjector:
    """An objective with a map into the teacher's space: its student is a model of embeddings."""

    projection: Projector


def make_projector(options: ProjectorOptions, input_dim: int, output_dim: int) -> Projector:
    """A new projector."""
    if options.projector == "mlp":
        return MLPProjector(input_dim, output_dim)
    return ProjectionHead(
        input_dim, output_dim, options.is_orthogonal, options.orthogonal_map, bias=True
    )
