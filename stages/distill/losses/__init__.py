"""The losses, as pure functions of tensors: no model, no settings, no state, a file a family.

In: what the heads return (after ReLU for regression), the labels and the weights. Out: scalars.
Shapes: B rows, K classes or outputs of a regression, H numbers of a feature; B >= 1.
    output, aux_output [B, K]   projection, feature [B, H]   labels [B] or [B, K] (`task.py`)
A missing label is -100, or NaN among floats. Such a row counts wherever the teacher teaches, but
not for the task; with no label at all the task is 0, with a graph, so that backward still runs.
Half-precision inputs are accumulated in float32; float64 stays float64. Nothing here reads a value
back from the device, so no loss makes a GPU wait.
"""

from .armada import MANIFOLDS, ArmadaTerms, aligner_loss, armada_loss
from .distances import DISTANCES, choose
from .features import FeatureTerms, feature_loss
from .logits import KDTerms, kd_loss
from .task import (
    MISSING_LABEL,
    accumulated,
    are_multilabel,
    are_probabilities,
    likeliest_classes,
    task_loss,
)

__all__ = [
    "DISTANCES",
    "MANIFOLDS",
    "MISSING_LABEL",
    "ArmadaTerms",
    "FeatureTerms",
    "KDTerms",
    "accumulated",
    "aligner_loss",
    "are_multilabel",
    "are_probabilities",
    "armada_loss",
    "choose",
    "feature_loss",
    "kd_loss",
    "likeliest_classes",
    "task_loss",
]
