"""Tests of differences against figures worked out by hand or by a second route."""

import itertools

import numpy as np
import pytest
from armada.pipeline.findings.significance import Anova, anova, holm, welch
from scipy import stats


def test_welch_by_its_formula():
    first, second = [0.9, 0.8, 0.95], [0.2, 0.3, 0.1, 0.25]
    difference = np.mean(first) - np.mean(second)
    a, b = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 4
    df = (a + b) ** 2 / (a**2 / 2 + b**2 / 3)
    expected = 2 * stats.t.sf(difference / np.sqrt(a + b), df)
    assert welch(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second"), [([1.0], [0.1, 0.2]), ([1.0, 1.0], [0.5, 0.5]), ([], [])]
)
def test_no_p_without_spread_or_runs(first, second):
    assert welch(first, second) is None


def test_one_side_without_spread_has_a_p():
    assert 0 < welch([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]) < 0.05


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: times 3, times 2, times 1, and never less than the one before.
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([None]) == [None]


def sweep(effect, seeds=3, betas=(0.0, 1.0)):
    """Values and settings of a full grid of alpha and beta."""
    rng = np.random.default_rng(0)
    settings = [
        {"alpha": a, "beta": b, "gamma": 1.0}
        for a, b in itertools.product((0.0, 0.5, 1.0), betas)
        for _ in range(seeds)
    ]
    return [effect(each) + rng.normal(0, 0.1) for each in settings], settings


def test_two_ways_by_sums_of_squares():
    """The textbook's formulas for a balanced design."""
    values, settings = sweep(lambda each: each["alpha"] + 0.3 * each["alpha"] * each["beta"])
    found = anova(values, settings)
    assert isinstance(found, Anova)
    cube = np.array(values).reshape(3, 2, 3)  # alpha, beta, seed
    grand = cube.mean()
    of_alpha = 6 * np.square(cube.mean(axis=(1, 2)) - grand).sum()
    of_beta = 9 * np.square(cube.mean(axis=(0, 2)) - grand).sum()
    of_cells = 3 * np.square(cube.mean(axis=2) - grand).sum()
    rest = np.square(cube - cube.mean(axis=2, keepdims=True)).sum()
    squares = {"alpha": (of_alpha, 2), "beta": (of_beta, 1)}
    squares["alpha x beta"] = (of_cells - of_alpha - of_beta, 2)
    assert [effect.term for effect in found.effects] == list(squares)
    assert (found.residual_df, found.runs, found.without_interaction) == (12, 18, ())
    for effect in found.effects:
        square, df = squares[effect.term]
        f = square / df / (rest / 12)
        assert effect.df == df
        assert effect.f == pytest.approx(f)
        assert effect.p == pytest.approx(stats.f.sf(f, df, 12))
        assert effect.partial_eta2 == pytest.approx(square / (square + rest))


def test_factors_that_were_not_crossed_have_no_interaction():
    values, settings = sweep(lambda each: each["alpha"], betas=(0.0, 1.0, 2.0))
    kept = [i for i, each in enumerate(settings) if (each["alpha"], each["beta"]) != (1.0, 0.0)]
    found = anova([values[i] for i in kept], [settings[i] for i in kept])
    assert isinstance(found, Anova)
    assert [effect.term for effect in found.effects] == ["alpha", "beta"]
    assert found.without_interaction == ("alpha x beta",)
    assert found.left_out == 0


def test_a_lone_starting_point_is_left_out():
    """It has an alpha and a beta of its own: their effects could not be told apart."""
    values, settings = sweep(lambda each: each["alpha"])
    expected = anova(values, settings)
    start = {"alpha": 0.7, "beta": 0.7, "gamma": 1.0}
    found = anova([*values, 9.0, 9.1], [*settings, start, start])
    assert isinstance(found, Anova)
    assert isinstance(expected, Anova)
    assert (found.effects, found.runs, found.left_out) == (expected.effects, 18, 2)


def test_a_starting_point_with_one_value_of_its_own_is_left_out_for_the_interaction():
    values, settings = sweep(lambda each: each["alpha"])
    start = {"alpha": 0.7, "beta": 1.0, "gamma": 1.0}
    found = anova([*values, 9.0, 9.1], [*settings, start, start])
    assert isinstance(found, Anova)
    assert (found.left_out, found.without_interaction) == (2, ())
    assert [effect.term for effect in found.effects] == ["alpha", "beta", "alpha x beta"]


def test_factors_that_always_change_together():
    settings = [{"alpha": a, "beta": a, "gamma": 1.0} for a in (0.0, 1.0) for _ in range(3)]
    reason = anova(list(range(6)), settings)
    assert reason == "alpha, beta and gamma were not varied apart from each other"


def test_one_at_a_time():
    """Each weight differs from a common point alone: main effects can be told."""
    points = [(0, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (0.5, 1, 1)]
    settings = [
        dict(zip(("alpha", "beta", "gamma"), point, strict=True))
        for point in points
        for _ in range(3)
    ]
    values = [each["alpha"] + 0.01 * i for i, each in enumerate(settings)]
    found = anova(values, settings)
    assert isinstance(found, Anova)
    assert [effect.term for effect in found.effects] == ["alpha", "beta", "gamma"]
    assert (found.runs, found.left_out, len(found.without_interaction)) == (12, 0, 3)
    assert found.effects[0].p < 0.001


def test_one_factor_is_too_few():
    values, settings = sweep(lambda each: each["alpha"])
    kept = [i for i, each in enumerate(settings) if each["beta"] == 0]
    reason = anova([values[i] for i in kept], [settings[i] for i in kept])
    assert reason == "fewer than two of alpha, beta and gamma have several values"
    assert anova([], []) == reason


def test_one_seed_leaves_nothing_to_compare_with():
    values, settings = sweep(lambda each: each["alpha"], seeds=1)
    assert anova(values, settings) == (
        "too few runs that differ only in their seed, or no variance among them"
    )


@pytest.mark.parametrize("value", [0.67, 1 / 3, 1.0, 0.0])
def test_equal_values_have_no_effects(value):
    """Sums of squares of equal numbers are rounding, not variance."""
    _, settings = sweep(lambda each: 0.0)
    reason = anova([value] * len(settings), settings)
    assert reason == "too few runs that differ only in their seed, or no variance among them"
