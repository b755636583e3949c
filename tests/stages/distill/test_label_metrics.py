"""Metrics of labels of several numbers: by hand, and beside scikit-learn's and SciPy's."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from armada.stages.corpus.labels import MISSING, LabelSpace
from armada.stages.distill.evaluation import (
    better,
    detailed_metrics,
    distinct_predictions,
    lower_is_better,
    metric_names,
    task_metrics,
)
from sklearn import metrics as sk

NAN = np.nan
CLASSES = LabelSpace(task="multilabel", num_labels=3, names=("a", "b", "c"))
OUTPUTS = LabelSpace(task="regression", num_labels=2, names=("valence", "arousal"))
SOFT = LabelSpace(task="classification", num_labels=2)
Array = npt.NDArray[Any]


def drawn(rows: int, classes: int, seed: int) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    labels = (draw.random((rows, classes)) < 0.4).astype(np.int8)
    return np.round(draw.normal(size=(rows, classes)) + labels, 1), labels  # with equal outputs


@pytest.mark.parametrize("seed", range(3))
def test_many_classes_as_scikit_learn_has_them(seed: int) -> None:
    outputs, labels = drawn(40, 5, seed)
    predicted = outputs > 0
    space = LabelSpace(task="multilabel", num_labels=5)
    found = task_metrics(outputs, labels, space)
    assert tuple(found) == metric_names(space)
    expected = {
        "micro_f1": sk.f1_score(labels, predicted, average="micro", zero_division=0),
        "macro_f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "samples_f1": sk.f1_score(labels, predicted, average="samples", zero_division=1.0),
        "map": sk.average_precision_score(labels, outputs, average="macro"),
        "subset_accuracy": sk.accuracy_score(labels, predicted),
        "hamming_loss": sk.hamming_loss(labels, predicted),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    by_class = detailed_metrics(outputs, labels, space)["per_class"]
    rows = sk.precision_recall_fscore_support(labels, predicted, average=None, zero_division=0)
    for number, (precision, recall, f1, positives) in enumerate(zip(*rows, strict=True)):
        assert by_class[str(number)] == pytest.approx(
            {
                "precision": precision,
                "recall": recall,
                "f1": f1,
                "average_precision": sk.average_precision_score(
                    labels[:, number], outputs[:, number]
                ),
                "examples": 40,
                "positives": positives,
            }
        )


def test_many_classes_by_hand() -> None:
    """Two texts without all labels, one without any, one where nothing holds or is predicted."""
    outputs = np.array([[1, -1, 2], [-1, 1, 1], [5, 5, 5], [-1, -1, -1.0]])
    labels = np.array([[1, 0, 0], [0, 1, MISSING], [MISSING] * 3, [0, 0, MISSING]], dtype=np.int8)
    found = task_metrics(outputs, labels, CLASSES)
    assert found == pytest.approx(
        {
            "micro_f1": 2 * 2 / (2 * 2 + 1 + 0),
            "macro_f1": (1 + 1 + 0) / 3,
            "samples_f1": (2 / 3 + 1 + 1) / 3,
            "map": 1.0,  # class c holds for no text
            "subset_accuracy": 2 / 3,
            "hamming_loss": 1 / 7,
        }
    )
    by_class = detailed_metrics(outputs, labels, CLASSES)["per_class"]
    assert list(by_class) == ["a", "b", "c"]
    assert "average_precision" in by_class["a"]
    assert "average_precision" not in by_class["c"]
    assert (by_class["c"]["examples"], by_class["c"]["positives"]) == (1, 0)
    assert distinct_predictions(outputs, labels, CLASSES) == {"distinct_predictions": 3}


def test_a_class_of_which_nothing_is_known_counts_nowhere() -> None:
    outputs, labels = drawn(10, 3, 0)
    blank = labels.copy()
    blank[:, 2] = MISSING
    whole = task_metrics(outputs[:, :2], labels[:, :2], CLASSES)
    assert task_metrics(outputs, blank, CLASSES) == pytest.approx(whole)


def test_outputs_by_hand() -> None:
    outputs = np.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [9.0, 9.0]], dtype=np.float32)
    labels = np.array([[2.0, NAN], [3.0, 5.0], [4.0, 1.0], [NAN, NAN]])
    assert metric_names(OUTPUTS) == ("pearson", "spearman", "mse", "rmse")
    found = task_metrics(outputs, labels, OUTPUTS)
    assert found == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0, "mse": 3 / 5, "rmse": (1 + 0) / 2}
    )
    assert detailed_metrics(outputs, labels, OUTPUTS)["per_output"] == {
        "valence": pytest.approx({"pearson": 1, "spearman": 1, "mse": 1, "rmse": 1, "examples": 3}),
        "arousal": pytest.approx({"pearson": 1, "spearman": 1, "mse": 0, "rmse": 0, "examples": 2}),
    }


def test_probabilities_as_labels() -> None:
    """Cross entropy with them; the other metrics are of the likeliest class."""
    outputs = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]))
    labels = np.array([[0.5, 0.5], [NAN, NAN], [1.0, 0.0]])
    found = task_metrics(outputs, labels, SOFT)
    cross = -(0.5 * np.log(0.25) + 0.5 * np.log(0.75) + np.log(0.9)) / 2
    assert found["cross_entropy"] == pytest.approx(cross)
    assert found["accuracy"] == 0.5
    assert set(found) == set(metric_names(SOFT, soft=True))
    assert "cross_entropy" not in metric_names(SOFT)
    assert distinct_predictions(outputs, labels, SOFT) == {"distinct_predictions": 2}


def test_which_are_errors() -> None:
    errors = {
        name for name in (*metric_names(CLASSES), *metric_names(OUTPUTS)) if lower_is_better(name)
    }
    assert errors == {"hamming_loss", "mse", "rmse"}
    assert better("cross_entropy", 0.1, 0.2)
