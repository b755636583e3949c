"""The loss of the student's own task, and what all losses share.

Shapes: B rows, K classes or outputs of a regression; output [B, K]. Labels tell what they are:

int64 [B]                  a class each
float [B, K]               probabilities of the classes; those of a row without a label are NaN
integers [B, K]            multilabel: 1 for each class that holds, 0 for each other one
float [B], or [B, K]       of a regression with one output, or several
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MISSING_LABEL = -100
"""A label that is missing, among integers; among floats it is NaN."""


def are_multilabel(labels: Tensor) -> bool:
    """Whether labels are 0 and 1 of each class."""
    return labels.dim() == 2 and not labels.is_floating_point()


def are_probabilities(labels: Tensor) -> bool:
    """Whether labels of a classification are probabilities of each class."""
    return labels.dim() == 2 and labels.is_floating_point()


def likeliest_classes(labels: Tensor) -> Tensor:
    """int64 [B]: the labels of a classification, of probabilities the class of the largest."""
    if not are_probabilities(labels):
        return labels.long()
    return torch.where(torch.isnan(labels[:, 0]), MISSING_LABEL, labels.argmax(dim=1))


def task_loss(output: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """The mean over known labels of

    cross entropy            -log p_y, or -Σ_k y_k·log p_k of probabilities, p = softmax(output)
    binary cross entropy     of multilabel: -y_k·log p_k - (1 - y_k)·log(1 - p_k), p = sigmoid
    squared error            of a regression

    Known labels are rows of one class or of probabilities, and rows times classes or outputs
    otherwise. No label at all: 0, with a graph.
    """
    output = accumulated(output)
    if regression:
        return _labelled_mse(output if labels.dim() == 2 else output.squeeze(-1), labels)
    if are_multilabel(labels):
        return _binary_cross_entropy(output, labels)
    if are_probabilities(labels):
        return _soft_cross_entropy(output, labels)
    labels = labels.long()
    total = F.cross_entropy(output, labels, ignore_index=MISSING_LABEL, reduction="sum")
    return total / (labels != MISSING_LABEL).sum().clamp(min=1)


def _binary_cross_entropy(output_BK: Tensor, labels_BK: Tensor) -> Tensor:
    known_BK = labels_BK != MISSING_LABEL
    target_BK = torch.where(known_BK, labels_BK, 0).to(output_BK.dtype)
    loss_BK = F.binary_cross_entropy_with_logits(output_BK, target_BK, reduction="none")
    return torch.where(known_BK, loss_BK, 0).sum() / known_BK.sum().clamp(min=1)


def _soft_cross_entropy(output_BK: Tensor, labels_BK: Tensor) -> Tensor:
    known_BK = ~torch.isnan(labels_BK)
    target_BK = torch.where(known_BK, labels_BK, 0).to(output_BK.dtype)
    total = -(target_BK * F.log_softmax(output_BK, dim=-1)).sum()
    return total / known_BK[:, 0].sum().clamp(min=1)


def _labelled_mse(output: Tensor, labels: Tensor) -> Tensor:
    labelled = ~torch.isnan(labels)
    # Replaced before the subtraction: NaN times the zero gradient of `where` would still be NaN.
    target = torch.where(labelled, labels, 0).to(output.dtype)
    squared = torch.where(labelled, (output - target).square(), 0)
    return squared.sum() / labelled.sum().clamp(min=1)


def accumulated(tensor: Tensor) -> Tensor:
    """The tensor in the precision of sums: at least float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
