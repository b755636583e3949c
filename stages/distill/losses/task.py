"""The loss of the student's own task, and what all losses share.

Shapes: B rows, K classes (1 for regression); output [B, K], labels [B].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING_LABEL = -100
"""The label of a row that has none, in classification; in regression it is NaN."""


def task_loss(output: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """Cross entropy, or squared error for regression: the mean over the labelled rows.

    output [B, K], or [B, 1] for regression; labels [B]. No label at all: 0, with a graph.
    """
    output = accumulated(output)
    if regression:
        return _labelled_mse(output.squeeze(-1), labels)
    labels = labels.long()
    total = F.cross_entropy(output, labels, ignore_index=MISSING_LABEL, reduction="sum")
    return total / (labels != MISSING_LABEL).sum().clamp(min=1)


def _labelled_mse(output_B: Tensor, labels_B: Tensor) -> Tensor:
    labelled_B = ~torch.isnan(labels_B)
    # Replaced before the subtraction: NaN times the zero gradient of `where` would still be NaN.
    target_B = torch.where(labelled_B, labels_B, 0).to(output_B.dtype)
    squared_B = torch.where(labelled_B, (output_B - target_B).square(), 0)
    return squared_B.sum() / labelled_B.sum().clamp(min=1)


def accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the precision of sums: at least float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
