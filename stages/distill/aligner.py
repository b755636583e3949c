"""The small trainable modules between a cached feature and a student: the TS aligner and heads.

In: cached features [B, H] or pooled student text [B, D] of any floating dtype (caches may hold
float16), read in the dtype of the weights. Out: task logits [B, K], points on the manifold [B, H].
Invariant: the map P of the aligner is orthogonal before and after every step.

P is a function of its parameters (an H x H matrix exponential). While it trains it is only applied
to batches (`rotations.py`); frozen, it is worked out once and kept until it changes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal as make_orthogonal

from .objectives.options import OrthogonalMap
from .rotations import rotate

WEIGHT_STD = 0.02


class NormalLinear(nn.Linear):
    """A linear map that starts at N(0, 0.02) with zero bias and reads inputs of any dtype."""

    def reset_parameters(self) -> None:
        """Initialise the weights."""
        nn.init.normal_(self.weight, std=WEIGHT_STD)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class ClassificationHead(nn.Module):
    """drop, then linear; ReLU after it for regression with one output, whose labels are not
    negative. Several outputs may have any sign; classes of a multilabel task are logits, too."""

    def __init__(
        self, input_dim: int, num_labels: int, regression: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.rectified = regression and num_labels == 1
        self.dropout = nn.Dropout(dropout)
        self.linear = NormalLinear(input_dim, num_labels)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, K]."""
        output_BK: Tensor = self.linear(self.dropout(input))
        return F.relu(output_BK) if self.rectified else output_BK


class ProjectionHead(NormalLinear):
    """A linear map D -> H onto the manifold; optionally orthogonal, or with a bias.

    An orthogonal map starts at the QR factor of N(0, 0.02) numbers, which is uniform over the
    orthogonal maps. Assigning to `.weight` takes an orthogonal matrix as it is.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        orthogonal: bool = False,
        orthogonal_map: OrthogonalMap = "matrix_exp",
        bias: bool = False,
    ) -> None:
        super().__init__(input_dim, output_dim, bias=bias)
        self.orthogonal = orthogonal
        self.orthogonal_map = orthogonal_map
        self._kept: tuple[object, Tensor] | None = None
        if orthogonal:
            make_orthogonal(self, orthogonal_map=orthogonal_map)

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        if not self.orthogonal:
            return super().forward(input)
        parameter = self.get_parameter("parametrizations.weight.original")
        if not parameter.requires_grad:
            return self._times(input, self._kept_weight())
        # Its next step may leave no trace in the tensors' versions: nothing kept outlives that.
        self._kept = None
        if self.in_features == self.out_features:
            return self._rotated(input, parameter)
        return self._times(input, self._worked_out())

    def _times(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input.to(weight.dtype), weight, self.bias)

    def _rotated(self, input: Tensor, parameter: Tensor) -> Tensor:
        turned = rotate(input, parameter, self.orthogonal_map)
        with torch.autocast(parameter.device.type, enabled=False):
            return self._times(turned, self.get_buffer("parametrizations.weight.0.base"))

    def _kept_weight(self) -> Tensor:
        state = self._state()
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self._worked_out())
        return self._kept[1]

    def _worked_out(self) -> Tensor:
        # Autocast would round the last product to half precision, and P would not be orthogonal.
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.weight

    def _state(self) -> object:
        """Equal as long as no step, load, assignment or move has touched the weight."""
        tensors = (*self.parameters(), *self.buffers())
        return tuple((id(t), t._version, t.device, t.dtype) for t in tensors)


class AlignerAnswers(NamedTuple):
    """Outputs of an aligner for B features: output [B, K], aux_output [B, K], projection [B, H]."""

    output: Tensor
    aux_output: Tensor
    projection: Tensor


class TSAligner(nn.Module):
    """Reads task logits and a manifold point out of a cached teacher feature.

    hidden = drop(relu(W2 drop(relu(W1 e)))), output = head(hidden)
    projection = P e with P orthogonal, H x H, without bias; aux_output = aux_head(drop(projection))
    W1: H -> M, W2: M -> M. A head drops its input once more, as in the reference. matrix_exp is the
    reference's way to P as well.
    """

    def __init__(
        self,
        feature_dim: int,
        hidden_dim: int,
        num_labels: int,
        regression: bool = False,
        dropout: float = 0.1,
        orthogonal_map: OrthogonalMap = "matrix_exp",
    ) -> None:
        super().__init__()
        self.hidden1 = NormalLinear(feature_dim, hidden_dim)
        self.hidden2 = NormalLinear(hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = ClassificationHead(hidden_dim, num_labels, regression, dropout)
        self.projection = ProjectionHead(feature_dim, feature_dim, True, orthogonal_map)
        self.aux_head = ClassificationHead(feature_dim, num_labels, regression, dropout)

    def forward(self, feature_BH: Tensor) -> AlignerAnswers:
        """Outputs for features [B, H]."""
        hidden_BM = self.dropout(F.relu(self.hidden1(feature_BH)))
        hidden_BM = self.dropout(F.relu(self.hidden2(hidden_BM)))
        projection_BH = self.projection(feature_BH)
        output_BK = self.head(hidden_BM)
        aux_output_BK = self.aux_head(self.dropout(projection_BH))
        return AlignerAnswers(output_BK, aux_output_BK, projection_BH)
