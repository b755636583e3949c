"""Metrics of labels of several numbers a text: classes that hold, and outputs of a regression.

In: outputs [N, K] and labels [N, K], some of them missing. Each metric counts known labels alone. A
class is predicted where its probability is above 1/2, its output above 0.

    micro_f1          2·tp / (2·tp + fp + fn) over all labels at once
    macro_f1          the mean of that of each class; 0 for one neither known to hold nor predicted
    samples_f1        the mean of that of each text; 1 where no class holds and none is predicted
    map               mean average precision: of each class that holds for some text, the sum over
                      thresholds n of (recall_n - recall_{n-1})·precision_n; then the mean
    subset_accuracy   share of texts whose known classes are all right
    hamming_loss      share of labels that are wrong

As in scikit-learn, but for classes that never hold, which are left out of `map`. Of a regression,
`pearson`, `spearman` and `rmse` are means over outputs, `mse` is the mean over all labels.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..corpus.label_kinds import LabelSpace, LabelValues, missing_numbers
from ..retrieval.metrics import average_precision

MULTILABEL_METRICS = (
    "micro_f1",
    "macro_f1",
    "samples_f1",
    "map",
    "subset_accuracy",
    "hamming_loss",
)
REGRESSION_METRICS = ("pearson", "spearman", "mse")
OUTPUTS_METRICS = (*REGRESSION_METRICS, "rmse")

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def multilabel_metrics(outputs_NK: LabelValues, labels_NK: LabelValues) -> dict[str, float]:
    """The metrics of rows that each have a label."""
    known, holds, predicted = _flags(outputs_NK, labels_NK)
    wrong = known & (holds != predicted)
    of_class = known.any(axis=0)
    precisions = _known(_average_precisions(outputs_NK, known, holds))
    return {
        "micro_f1": float(_f1(holds, predicted, None, nothing=0)),
        "macro_f1": float(_f1(holds, predicted, 0, nothing=0)[of_class].mean()),
        "samples_f1": float(_f1(holds, predicted, 1, nothing=1).mean()),
        "map": float(precisions.mean()) if precisions.size else 0.0,
        "subset_accuracy": float((~wrong.any(axis=1)).mean()),
        "hamming_loss": float(wrong.sum() / known.sum()),
    }


def by_class(
    outputs_NK: LabelValues, labels_NK: LabelValues, space: LabelSpace
) -> dict[str, dict[str, float]]:
    """Precision, recall, f1, average precision (none if it never holds) of each class, by name;
    the number of texts where it is known (`examples`) and where it holds (`positives`)."""
    known, holds, predicted = _flags(outputs_NK, labels_NK)
    right = (holds & predicted).sum(axis=0)
    found = {
        "precision": _ratio(right, predicted.sum(axis=0), nothing=0),
        "recall": _ratio(right, holds.sum(axis=0), nothing=0),
        "f1": _f1(holds, predicted, 0, nothing=0),
        "average_precision": _average_precisions(outputs_NK, known, holds),
        "examples": known.sum(axis=0),
        "positives": holds.sum(axis=0),
    }
    return _by_name(found, space)


def output_metrics(outputs_NK: Floats, labels_NK: Floats) -> dict[str, float]:
    """The metrics of outputs of a regression, of rows that each have a label."""
    found = _outputs(outputs_NK, labels_NK)
    errors = np.square(outputs_NK - labels_NK)
    means = {name: float(_known(found[name]).mean()) for name in OUTPUTS_METRICS if name != "mse"}
    return means | {"mse": float(errors[~np.isnan(errors)].mean())}


def by_output(
    outputs_NK: Floats, labels_NK: Floats, space: LabelSpace
) -> dict[str, dict[str, float]]:
    """Metrics of each output, by name, and the number of texts where it is known."""
    return _by_name(_outputs(outputs_NK, labels_NK), space)


def correlations(predicted: Floats, labels: Floats) -> dict[str, float]:
    """pearson and spearman of numbers [N]; 0 if all predictions, or all labels, are equal."""
    from scipy.stats import pearsonr, spearmanr

    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predicted, labels).statistic),
        "spearman": float(spearmanr(predicted, labels).statistic),
    }


def _flags(outputs: LabelValues, labels: LabelValues) -> tuple[Flags, Flags, Flags]:
    """Which labels are known; of those, which classes hold, and which are predicted."""
    known = ~missing_numbers(labels)
    return known, known & (labels == 1), known & (outputs > 0)


def _f1(holds: Flags, predicted: Flags, axis: int | None, nothing: float) -> Floats:
    right = 2 * (holds & predicted).sum(axis=axis)
    return _ratio(right, holds.sum(axis=axis) + predicted.sum(axis=axis), nothing)


def _ratio(part: LabelValues, whole: LabelValues, nothing: float) -> Floats:
    """part / whole, and `nothing` where that is 0 / 0."""
    found: Floats = np.where(whole == 0, nothing, part / np.maximum(whole, 1))
    return found


def _average_precisions(outputs: LabelValues, known: Flags, holds: Flags) -> Floats:
    """Average precision of each class [K]; NaN for one that never holds."""
    return np.array(
        [
            average_precision(outputs[of, number], holds[of, number])
            for number, of in enumerate(known.T)
        ]
    )


def _outputs(outputs: Floats, labels: Floats) -> dict[str, Floats]:
    """Metrics of each output [K]; NaN for one of which no label is known."""
    rows = []
    for number in range(labels.shape[1]):
        known = ~np.isnan(labels[:, number])
        predicted, wanted = outputs[known, number], labels[known, number]
        if not len(wanted):
            rows.append(dict.fromkeys(OUTPUTS_METRICS, np.nan) | {"examples": 0.0})
            continue
        mse = float(np.square(predicted - wanted).mean())
        errors = {"mse": mse, "rmse": mse**0.5, "examples": float(len(wanted))}
        rows.append(correlations(predicted, wanted) | errors)
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _by_name(found: Mapping[str, LabelValues], space: LabelSpace) -> dict[str, dict[str, float]]:
    counts = ("examples", "positives")
    return {
        name: {
            metric: int(values[number]) if metric in counts else float(values[number])
            for metric, values in found.items()
            if not np.isnan(values[number])
        }
        for number, name in enumerate(space.shown_names)
    }
