"""Metrics against numbers by hand and NumPy; which of two values is better; predictions."""

import math
import warnings

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import TrainingError
from armada.stages.corpus.labels import NO_LABELS, LabelSpace
from armada.stages.distill.evaluation import (
    better,
    calibration,
    metric_names,
    predict,
    task_metrics,
)
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student_source import load_student
from tiny_runs import NUMBERS, TEXTS, THREE_CLASSES, TWO_CLASSES, class_labels, dataset

NAN = float("nan")


def one_hot(predicted: list[int], classes: int) -> np.ndarray:
    """Outputs of which the predicted class is the largest, all of them negative."""
    return np.eye(classes, dtype=np.float32)[predicted] - 2


def column(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


# --- by hand


def test_two_classes():
    # Of class 1: 3 found and right (tp), 1 found and wrong (fp), 2 missed (fn); 4 right zeros (tn).
    labels = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    predicted = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    metrics = task_metrics(one_hot(predicted, 2), labels, TWO_CLASSES)
    f1, f0 = 2 * 3 / (2 * 3 + 1 + 2), 2 * 4 / (2 * 4 + 2 + 1)
    matthews = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    ece = abs(0.7 - 1 / (1 + math.exp(-1)))  # all as sure as each other
    assert metrics == pytest.approx(
        {"accuracy": 0.7, "f1": f1, "macro_f1": (f0 + f1) / 2, "matthews": matthews, "ece": ece}
    )


def test_three_classes():
    labels = np.array([0, 0, 1, 1, 2, 2])
    predicted = [0, 1, 1, 1, 2, 0]
    metrics = task_metrics(one_hot(predicted, 3), labels, THREE_CLASSES)
    macro_f1 = (2 * 1 / (2 + 1 + 1) + 2 * 2 / (4 + 1) + 2 * 1 / (2 + 1)) / 3
    # Gorodkin's R_K: (c·s - Σ p·t) / sqrt((s² - Σ p²)(s² - Σ t²)).
    matthews = (4 * 6 - (2 * 2 + 3 * 2 + 1 * 2)) / math.sqrt((36 - 4 - 9 - 1) * (36 - 4 - 4 - 4))
    ece = 4 / 6 - math.e / (math.e + 2)
    assert metrics == pytest.approx(
        {"accuracy": 4 / 6, "macro_f1": macro_f1, "matthews": matthews, "ece": ece}
    )


def test_calibration_by_hand():
    # Confidences 0.9, 0.9, 0.6 and 0.5: bins 14 (twice), 9 and 8, of which the second is wrong.
    outputs = np.log([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    found = calibration(outputs, np.array([0, 0, 0, 0]))
    assert found.counts.tolist() == [1, 1, 2]
    np.testing.assert_allclose(found.confidence, [0.5, 0.6, 0.9])
    np.testing.assert_allclose(found.accuracy, [1, 1, 0.5])
    assert found.error == pytest.approx((0.5 + 0.4 + 2 * 0.4) / 4)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("space", [TWO_CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_outputs_that_are_not_finite_are_refused(broken: float, space: LabelSpace):
    outputs = np.zeros((5, space.num_labels), dtype=np.float32)
    outputs[3, 0] = broken
    with pytest.raises(TrainingError, match="outputs for 1 of 5 texts are not finite"):
        task_metrics(outputs, np.zeros(5, dtype=np.int64), space)
    with pytest.raises(TrainingError, match="not finite"):
        calibration(outputs, np.zeros(5, dtype=np.int64))


def test_full_confidence_is_in_the_last_bin():
    found = calibration(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 1]))
    assert found.counts.tolist() == [2]
    assert found.error == 0


def test_a_class_that_never_occurs_counts_as_nothing_found():
    labels = np.array([0, 1, 0, 1])
    metrics = task_metrics(one_hot([0, 1, 0, 1], 3), labels, THREE_CLASSES)
    assert metrics["macro_f1"] == pytest.approx(2 / 3)


def test_numbers():
    predicted, labels = [1.0, 2.0, 4.0, 3.0], [1.5, 2.5, 3.0, 5.0]
    metrics = task_metrics(column(predicted), np.array(labels), NUMBERS)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1])
    # Ranks 1 2 4 3 and 1 2 3 4: 1 - 6·Σd²/(n(n² - 1)).
    assert metrics["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics["mse"] == pytest.approx((0.25 + 0.25 + 1 + 4) / 4)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_against_numpy(seed):
    rng = np.random.default_rng(seed)
    predicted, labels = rng.standard_normal((2, 200))
    labels = labels + predicted
    metrics = task_metrics(predicted[:, None], labels, NUMBERS)
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, labels)]
    assert metrics["pearson"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1])
    assert metrics["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert metrics["mse"] == pytest.approx(np.mean((predicted - labels) ** 2))


# --- edges


@pytest.mark.parametrize("space", [TWO_CLASSES, THREE_CLASSES], ids=["two", "three"])
def test_rows_without_a_label_are_left_out(space):
    labels = class_labels(40, space.num_labels)
    outputs = np.random.default_rng(1).standard_normal((40, space.num_labels))
    with_missing = labels.copy()
    with_missing[::4] = -100
    given = with_missing != -100
    expected = task_metrics(outputs[given], labels[given], space)
    assert task_metrics(outputs, with_missing, space) == expected
    assert expected["accuracy"] == (outputs[given].argmax(1) == labels[given]).mean()


def test_numbers_that_are_missing_are_left_out():
    labels = np.array([1.0, NAN, 3.0, 2.0, NAN])
    metrics = task_metrics(column([1, 9, 2, 3, -9]), labels, NUMBERS)
    assert metrics == task_metrics(column([1, 2, 3]), np.array([1.0, 3.0, 2.0]), NUMBERS)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
@pytest.mark.parametrize("predicted", [0, 1])
def test_the_same_class_for_all(labels, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = task_metrics(one_hot([predicted] * 4, 2), np.array(labels), TWO_CLASSES)
    assert metrics["accuracy"] == np.mean(np.array(labels) == predicted)
    assert metrics["matthews"] == 0
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        pytest.param([2, 2, 2], [1.0, 2.0, 3.0], id="predictions"),
        pytest.param([1, 2, 3], [2.0, 2.0, 2.0], id="labels"),
        pytest.param([2], [1.0], id="one-row"),
    ],
)
def test_the_same_number_for_all(predicted, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = task_metrics(column(predicted), np.array(labels), NUMBERS)
    assert metrics["pearson"] == metrics["spearman"] == 0
    assert metrics["mse"] == pytest.approx(np.square(np.subtract(predicted, labels)).mean())


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (TWO_CLASSES, {"accuracy", "macro_f1", "f1", "matthews", "ece"}),
        (THREE_CLASSES, {"accuracy", "macro_f1", "matthews", "ece"}),
        (NUMBERS, {"pearson", "spearman", "mse"}),
    ],
    ids=["two", "three", "numbers"],
)
def test_a_task_has_the_metrics_it_names(space: LabelSpace, names):
    outputs = np.random.default_rng(0).standard_normal((9, space.num_labels))
    metrics = task_metrics(outputs, np.arange(9) % space.num_labels * 1.0, space)
    assert set(metrics) == set(metric_names(space)) == names
    assert all(type(value) is float for value in metrics.values())


def test_without_a_task_there_is_the_loss():
    assert metric_names(NO_LABELS) == ("loss",)
    assert task_metrics(column([1.0]), np.array([-100]), NO_LABELS) == {}


@pytest.mark.parametrize(
    ("metric", "new", "old", "expected"),
    [
        ("accuracy", 0.5, None, True),
        ("mse", 0.5, None, True),
        ("accuracy", 0.6, 0.5, True),
        ("accuracy", 0.5, 0.5, False),
        ("pearson", -0.1, 0.1, False),
        ("mse", 0.4, 0.5, True),
        ("mse", 0.5, 0.5, False),
        ("loss", 0.6, 0.5, False),
    ],
)
def test_better(metric, new, old, expected):
    assert better(metric, new, old) == expected


# --- predictions


def test_predictions_are_those_of_the_student_row_by_row(checkpoint):
    torch.manual_seed(0)
    settings = StudentSettings(student=str(checkpoint("bert")))
    student, tokenizer = load_student(settings, THREE_CLASSES, [], 0.1)
    data = dataset(tokenizer, TEXTS, class_labels(len(TEXTS)), {})
    student.train()  # `predict` sees to it that there is no dropout
    outputs = predict(student, data, batch_size=10)
    assert (outputs.shape, outputs.dtype) == ((len(TEXTS), 3), np.float32)
    with torch.no_grad():
        alone = [
            student(**tokenizer(text, return_tensors="pt"))[1].numpy()[0] for text in TEXTS[::9]
        ]
    np.testing.assert_allclose(outputs[::9], alone, rtol=1e-4, atol=1e-6)
