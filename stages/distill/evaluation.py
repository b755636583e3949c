"""Metrics of a task, and predictions of a student without a trainer."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax

from ...cache_schemas.errors import TrainingError
from ..corpus.labels import LabelSpace, LabelValues, is_missing
from .batches import DistillDataset
from .calibration import Calibration, calibration_sums
from .label_metrics import (
    MULTILABEL_METRICS,
    OUTPUTS_METRICS,
    REGRESSION_METRICS,
    by_class,
    by_output,
    correlations,
    multilabel_metrics,
    output_metrics,
)
from .measures import TEACHER_ERRORS
from .student import INPUTS, Student

CLASSIFICATION_METRICS = ("accuracy", "macro_f1", "f1", "matthews", "ece")
CROSS_ENTROPY = "cross_entropy"
"""Metric of probabilities as labels."""
_ERRORS = (
    *("mse", "rmse", "loss", "ece", CROSS_ENTROPY, "hamming_loss"),
    *("perplexity", "bits_per_byte"),
    *TEACHER_ERRORS,
)
"""The smaller, the better."""

DISTINCT = "distinct_predictions"

Outputs = npt.NDArray[Any]


def metric_names(space: LabelSpace, soft: bool = False) -> tuple[str, ...]:
    """The metrics of a task, the default first; `f1` is that of class 1 and exists for two classes
    only, `cross_entropy` for `soft` labels only. A student without a task has the loss of its
    objective."""
    if space.task == "none":
        return ("loss",)
    if space.multilabel:
        return MULTILABEL_METRICS
    if space.regression:
        return OUTPUTS_METRICS if space.num_labels > 1 else REGRESSION_METRICS
    names = CLASSIFICATION_METRICS + ((CROSS_ENTROPY,) if soft else ())
    return names if space.num_labels == 2 else tuple(name for name in names if name != "f1")


def task_metrics(outputs: Outputs, labels: LabelValues, space: LabelSpace) -> dict[str, float]:
    """Metrics of outputs [N, K] over the rows of labels, [N] or [N, K], that have one.

    The class of a row with probabilities is the most probable one. A correlation that is undefined
    because all predictions are equal is 0. Raises TrainingError for outputs that are no finite
    numbers: there is nothing to measure."""
    if space.task == "none":
        return {}
    require_finite(outputs)
    given = ~is_missing(labels)
    shown, wanted = outputs[given], labels[given]
    if space.multilabel:
        return multilabel_metrics(shown, wanted)
    if space.regression:
        shown = shown.astype(np.float64)
        return output_metrics(shown, wanted) if wanted.ndim == 2 else _regression(shown, wanted)
    soft: dict[str, float] = {}
    if wanted.ndim == 2:
        log_probabilities = log_softmax(shown.astype(np.float64), axis=1)
        soft[CROSS_ENTROPY] = float(-(wanted * log_probabilities).sum(axis=1).mean())
        wanted = wanted.argmax(axis=1)
    found = _classification(shown.argmax(1), wanted, space)
    return found | {"ece": calibration(shown, wanted).error} | soft


def detailed_metrics(
    outputs: Outputs, labels: LabelValues, space: LabelSpace
) -> dict[str, dict[str, dict[str, float]]]:
    """`per_class` of a multilabel task, `per_output` of a regression with several; else nothing."""
    given = ~is_missing(labels)
    if space.multilabel:
        return {"per_class": by_class(outputs[given], labels[given], space)}
    if space.regression and labels.ndim == 2:
        shown = outputs[given].astype(np.float64)
        return {"per_output": by_output(shown, labels[given], space)}
    return {}


def distinct_predictions(
    outputs: Outputs, labels: LabelValues, space: LabelSpace
) -> dict[str, float]:
    """Number of distinct classes, sets of classes, or values, predicted for rows with a label: 1
    for a student that has learned nothing. Empty if there is nothing to distinguish."""
    if space.task == "none":
        return {}
    given = ~is_missing(labels)
    if len(np.unique(labels[given], axis=0)) < 2:
        return {}
    shown = outputs[given]
    if space.multilabel:
        shown = shown > 0
    elif not space.regression:
        shown = shown.argmax(1)
    return {DISTINCT: float(len(np.unique(shown, axis=0)))}


def require_finite(outputs: Outputs) -> None:
    """Raise TrainingError for outputs [N, K] that are no finite numbers."""
    broken = int((~np.isfinite(outputs)).any(axis=1).sum())
    if broken:
        raise TrainingError(
            f"the student's outputs for {broken} of {len(outputs)} texts are not finite; its "
            "weights have diverged: train again with a lower learning_rate"
        )


def _classification(
    predicted: LabelValues, labels: LabelValues, space: LabelSpace
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    classes = list(range(space.num_labels))
    metrics = {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, labels=classes, average="macro", zero_division=0),
        "matthews": 0 if _constant(predicted, labels) else matthews_corrcoef(labels, predicted),
    }
    if space.num_labels == 2:
        metrics["f1"] = f1_score(labels, predicted, zero_division=0)
    return {name: float(value) for name, value in metrics.items()}


def calibration(outputs: Outputs, labels: LabelValues) -> Calibration:
    """Calibration of logits [N, K] with labels [N], all of them given; the confidence of a
    prediction is the softmax of its class. Raises TrainingError for outputs that are not finite."""
    require_finite(outputs)
    return calibration_sums(outputs, labels).by_bin


def _regression(outputs: Outputs, labels: Outputs) -> dict[str, float]:
    predicted = outputs.reshape(-1)
    mse = float(np.square(predicted - labels).mean())
    return correlations(predicted, labels) | {"mse": mse}


def _constant(predicted: Outputs, labels: Outputs) -> bool:
    return bool(np.ptp(predicted) == 0 or np.ptp(labels) == 0)


def better(metric: str, new: float, old: float | None) -> bool:
    """Whether a value of a metric is better than another; anything is better than none."""
    if old is None or math.isnan(old):
        return True
    return new < old if lower_is_better(metric) else new > old


def lower_is_better(metric: str) -> bool:
    """Whether a metric, maybe with the name of a source before it, is an error."""
    return metric.rpartition(".")[2] in _ERRORS


def predict(student: Student, dataset: DistillDataset, batch_size: int) -> Outputs:
    """The outputs [N, K] of a student, in eval mode, on the device it is on."""
    return represent(student, dataset, batch_size)[1]


def represent(
    student: Student, dataset: DistillDataset, batch_size: int
) -> tuple[Outputs, Outputs]:
    """Pooled texts [N, D] and outputs [N, K] of a student, likewise."""
    device = next(student.parameters()).device
    student.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(dataset), batch_size):
            indices = list(range(start, min(start + batch_size, len(dataset))))
            batch = dataset.__getitems__(indices)
            inputs = {name: t.to(device) for name, t in batch.items() if name in INPUTS}
            parts.append([t.float().cpu().numpy() for t in student(**inputs)])
    pooled, outputs = (np.concatenate(part) for part in zip(*parts, strict=True))
    return pooled, outputs
