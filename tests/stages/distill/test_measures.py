"""Measures of a student by its teacher: by hand, by NumPy in float64, scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from armada.stages.distill.calibration import CalibrationSums, calibration_sums
from armada.stages.distill.evaluation import better, lower_is_better
from armada.stages.distill.measures import (
    agreement,
    cosines,
    hacking_begins,
    is_teacher_measure,
    label_agreement,
    label_kl,
    linear_cka,
    pearson,
    predictive_kl,
    root_mean_squared_error,
)
from scipy.special import expit, rel_entr
from scipy.stats import entropy, pearsonr
from sklearn.metrics import accuracy_score, log_loss
from sklearn.metrics import root_mean_squared_error as rmse_of_sklearn
from sklearn.metrics.pairwise import cosine_similarity

RANDOM = np.random.default_rng(0)


def pair(width: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    student, teacher = RANDOM.standard_normal((2, count, width))
    return student.astype(np.float32), (teacher + student).astype(np.float32)


# --- agreement


def test_agreement_by_hand():
    student = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 5.0], [1.0, 0.0]])
    teacher = np.array([[9.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.4]])
    assert agreement(student, teacher) == 3 / 4  # the tie counts for class 0 on both sides


def test_agreement_is_the_accuracy_of_the_teachers_classes():
    student, teacher = pair(5)
    expected = accuracy_score(teacher.argmax(1), student.argmax(1))
    assert agreement(student, teacher) == pytest.approx(expected, abs=0)
    assert agreement(student + 3, 2 * student) == 1


# --- KL


def test_kl_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2; and one text at which they agree.
    teacher, student = np.log([[0.75, 0.25], [0.5, 0.5]]), np.zeros((2, 2))
    by_hand = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert predictive_kl(student, teacher) == pytest.approx(by_hand, rel=1e-14)


def test_kl_against_scipy_and_scikit_learn():
    student, teacher = (each.astype(np.float64) for each in pair(4))
    p, q = (np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (teacher, student))
    assert predictive_kl(student, teacher) == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-12)
    # A teacher that is certain: the log loss of its classes.
    certain = np.where(np.eye(4)[teacher.argmax(1)] > 0, 0.0, -np.inf)
    expected = log_loss(teacher.argmax(1), q, labels=range(4))
    assert predictive_kl(student, certain) == pytest.approx(expected, rel=1e-12)


def test_kl_is_nothing_at_equality_and_blind_to_constants():
    student, teacher = pair(6)
    assert predictive_kl(student, student) == 0
    assert predictive_kl(student + 7, teacher - 100) == pytest.approx(
        predictive_kl(student, teacher), rel=1e-5
    )
    order = RANDOM.permutation(len(student))
    assert predictive_kl(student[order], teacher[order]) == pytest.approx(
        predictive_kl(student, teacher), rel=1e-12
    )
    huge = np.array([[1e4, 0.0]])
    assert predictive_kl(huge, -huge) == pytest.approx(1e4)


# --- labels of several classes


def test_labels_by_hand():
    # Both say yes, both no, and twice they differ; p = 3/4 against q = 1/2 for one label alone.
    student, teacher = np.array([[1.0, -1.0], [2.0, -3.0]]), np.array([[5.0, -0.1], [-1.0, 0.5]])
    assert label_agreement(student, teacher) == 1 / 2
    one = label_kl(np.zeros((1, 2)), np.array([[math.log(3), 0.0]]))
    assert one == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-14)


def test_labels_against_scipy():
    student, teacher = (each.astype(np.float64) for each in pair(3))
    p, q = expit(teacher), expit(student)
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    assert label_kl(student, teacher) == pytest.approx(expected, rel=1e-10)
    assert label_agreement(student, student * 3) == 1


# --- numbers


def test_numbers_by_hand():
    student, teacher = np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [4.0], [5.0]])
    assert root_mean_squared_error(student, teacher) == pytest.approx(math.sqrt(5 / 3))
    # Deviations (-2, -1, 3) and (-7/3, 2/3, 5/3): 9 / sqrt(14 · 26/3).
    assert pearson(student, teacher) == pytest.approx(9 / math.sqrt(14 * 26 / 3))


def test_numbers_against_scikit_learn_and_scipy():
    student, teacher = (each.astype(np.float64) for each in pair(3))
    both = zip(student.T, teacher.T, strict=True)
    assert pearson(student, teacher) == pytest.approx(
        np.mean([pearsonr(*each).statistic for each in both]), rel=1e-12
    )
    flat = rmse_of_sklearn(teacher.reshape(-1), student.reshape(-1))
    assert root_mean_squared_error(student, teacher) == pytest.approx(flat, rel=1e-12)


def test_a_number_that_is_always_the_same_correlates_with_nothing():
    student, teacher = np.full((4, 1), 2.5), np.arange(4.0)[:, None]
    assert pearson(student, teacher) == pearson(teacher, student) == 0


# --- embeddings


def test_cosines_by_hand_and_by_scikit_learn():
    student, teacher = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]])
    assert cosines(student, teacher).tolist() == [pytest.approx(24 / 25), 0.0]
    student, teacher = pair(7)
    expected = np.diag(cosine_similarity(student.astype(np.float64), teacher.astype(np.float64)))
    np.testing.assert_allclose(cosines(student, teacher), expected, rtol=1e-12)


def test_cka_by_hand():
    # Centred, X = (-1, 0, 1) and Y = (-1, 1, 0): (YᵀX)² / (XᵀX · YᵀY) = 1 / (2 · 2).
    student, teacher = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [2.0], [1.0]])
    assert linear_cka(student, teacher) == pytest.approx(1 / 4)


@pytest.mark.parametrize("count", [9, 60], ids=["fewer texts than numbers", "more"])
def test_cka_against_the_definition(count: int):
    student, teacher = RANDOM.standard_normal((count, 12)), RANDOM.standard_normal((count, 20))
    centre = np.eye(count) - 1 / count
    grams = [centre @ each @ each.T @ centre for each in (student, teacher)]
    hsic = np.trace(grams[0] @ grams[1])
    expected = hsic / math.sqrt(np.trace(grams[0] @ grams[0]) * np.trace(grams[1] @ grams[1]))
    assert linear_cka(student, teacher) == pytest.approx(expected, rel=1e-10)


def test_cka_knows_neither_rotations_nor_factors():
    student, teacher = pair(8)
    turned, _ = np.linalg.qr(RANDOM.standard_normal((8, 8)))
    same = linear_cka(student, teacher)
    assert linear_cka(3 * student @ turned + 1, teacher) == pytest.approx(same, rel=1e-5)
    assert linear_cka(student, student @ turned) == pytest.approx(1, rel=1e-6)
    assert linear_cka(np.ones_like(student) * 0.1, teacher) == 0


# --- calibration


def test_calibration_in_parts_is_that_of_the_whole():
    logits, labels = RANDOM.standard_normal((50, 3)), RANDOM.integers(3, size=50)
    whole = calibration_sums(logits, labels)
    parts = calibration_sums(logits[:20], labels[:20]) + calibration_sums(logits[20:], labels[20:])
    assert parts.by_bin.error == pytest.approx(whole.by_bin.error, rel=1e-12)
    assert whole.accuracy == (logits.argmax(1) == labels).mean()


def test_calibration_of_a_certain_teacher():
    certain = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    assert calibration_sums(certain, np.array([0, 0])).by_bin.error == 0.5


def test_confidence_at_the_ends_of_bins():
    sums = CalibrationSums.of(np.array([1 / 15, 1.0, 0.5]), np.array([True, True, False]))
    assert np.flatnonzero(sums.counts).tolist() == [0, 7, 14]


# --- teacher hacking


def test_hacking_begins_where_the_truth_is_nearest():
    teacher = [1.0, 0.7, 0.5, 0.4]
    assert hacking_begins(teacher, [2.0, 1.5, 1.6, 1.8]) == 1
    assert hacking_begins(teacher, [2.0, 1.5, 1.4, 1.3]) is None  # the truth comes nearer
    assert hacking_begins([1.0, 0.7, 0.8], [2.0, 1.5, 1.6]) is None  # both go away: no hacking
    assert hacking_begins([0.1], [0.2]) is None
    assert hacking_begins([], []) is None


# --- directions


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        *((name, True) for name in ("teacher_kl", "teacher_rmse", "teacher_mse", "llm.teacher_kl")),
        *((name, False) for name in ("agreement", "teacher_pearson", "teacher_cka", "a.agreement")),
        *(("loss", True), ("accuracy", False)),
    ],
)
def test_which_of_two_values_is_better(metric: str, lower: bool):
    assert lower_is_better(metric) is lower
    assert better(metric, 0.1, 0.2) is lower


def test_names_of_sources_are_no_measures():
    assert is_teacher_measure("made.logits.agreement")
    assert not is_teacher_measure("agreement.accuracy")
    assert not is_teacher_measure("teacher_accuracy")  # the same in each epoch
