"""Significance of differences.

Two conditions: Welch's t-test on their seeds, Holm's correction for the number of comparisons.
Weights of the objective: analysis of variance with interactions of two factors, sums of squares of
type II (statsmodels), as the paper reports for alpha, beta and gamma.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .runs import FACTORS

_ROUNDING = 1e-24
"""A sum of squares that is so small beside the squares of the values is rounding."""


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of equal means; None where it is undefined: fewer than two values on a side, or
    no spread at all."""
    from scipy.stats import ttest_ind

    if min(len(first), len(second)) < 2 or len({*first}) == len({*second}) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # spread at the edge of precision
        p = float(ttest_ind(first, second, equal_var=False).pvalue)
    return None if math.isnan(p) else p


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Corrected for as many comparisons as there are p values; None stays None."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in ps if p is not None]
    if not known:
        return list(ps)
    corrected = iter(multipletests(known, method="holm")[1].tolist())
    return [None if p is None else next(corrected) for p in ps]


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of an analysis of variance; `partial_eta2` is the share of the variance that is not
    explained by other terms."""

    term: str
    df: int
    f: float
    p: float
    partial_eta2: float


@dataclass(frozen=True, slots=True)
class Anova:
    """All terms, the degrees of freedom that are left, how many runs they come from and how many
    were left out, and pairs of factors of which not all combinations were run, so that their
    interaction is unknown."""

    effects: tuple[Effect, ...]
    residual_df: int
    runs: int
    left_out: int
    without_interaction: tuple[str, ...]


def anova(values: Sequence[float], weights: Sequence[Mapping[str, Any]]) -> Anova | str:
    """ANOVA of the metric by the factors with several values; or the reason why there is none.

    A run whose values occur nowhere else, such as the one that a sweep started from, is left out
    where it would confound effects or interactions."""
    import pandas

    rows = [[each[name] for name in FACTORS] for each in weights]
    frame = pandas.DataFrame(rows, columns=list(FACTORS))
    frame["value"] = list(values)
    design = _Design(frame)
    if len(design.factors) < 2:
        return "fewer than two of alpha, beta and gamma have several values"
    if design.uncrossed:
        narrower = _Design(_without_lone_values(frame, design.factors))
        if narrower.is_complete or design.is_confounded:
            design = narrower
    if design.is_confounded or len(design.factors) < 2:
        return "alpha, beta and gamma were not varied apart from each other"
    return design.effects(left_out=len(frame) - len(design.frame))


class _Design:
    """A model of all factors and of all interactions of two that can be estimated."""

    def __init__(self, frame: Any) -> None:
        """`frame` has a column for each factor, and `value`."""
        from statsmodels.formula.api import ols

        self.frame = frame
        self.factors = [name for name in FACTORS if frame[name].nunique() > 1]
        pairs = list(combinations(self.factors, 2))
        crossed = [pair for pair in pairs if _is_crossed(frame, pair)]
        self.uncrossed = tuple(" x ".join(pair) for pair in pairs if pair not in crossed)
        terms = [f"C({name})" for name in self.factors] + [f"C({a}):C({b})" for a, b in crossed]
        self._model = ols(f"value ~ {' + '.join(terms)}", frame) if len(self.factors) > 1 else None

    @property
    def is_complete(self) -> bool:
        """Whether all interactions can be estimated."""
        return len(self.factors) > 1 and not self.uncrossed and not self.is_confounded

    @property
    def is_confounded(self) -> bool:
        """Whether the effects of factors are confounded."""
        if self._model is None:
            return False
        return bool(np.linalg.matrix_rank(self._model.exog) < self._model.exog.shape[1])

    def effects(self, left_out: int) -> Anova | str:
        """The table of all terms, or why there is none."""
        from statsmodels.stats.anova import anova_lm

        assert self._model is not None
        fitted = self._model.fit()
        values = self.frame["value"].to_numpy()
        rounding = _ROUNDING * len(values) * np.square(values).max()
        if fitted.df_resid < 1 or fitted.ssr <= rounding:
            return "too few runs that differ only in their seed, or no variance among them"
        return Anova(
            effects=tuple(_effects(anova_lm(fitted, typ=2))),
            residual_df=int(fitted.df_resid),
            runs=len(self.frame),
            left_out=left_out,
            without_interaction=self.uncrossed,
        )


def _without_lone_values(frame: Any, factors: Sequence[str]) -> Any:
    """Only combinations of which each value occurs in another combination as well."""
    while len(frame):
        seen = frame[list(factors)].drop_duplicates()
        lone = np.zeros(len(frame), dtype=bool)
        for name in factors:
            counts = seen[name].value_counts()
            lone |= frame[name].map(counts).to_numpy() == 1
        if not lone.any():
            break
        frame = frame[~lone]
    return frame


def _is_crossed(frame: Any, pair: tuple[str, str]) -> bool:
    first, second = pair
    combinations_run = len(frame[[first, second]].drop_duplicates())
    return bool(combinations_run == frame[first].nunique() * frame[second].nunique())


def _effects(table: Any) -> list[Effect]:
    rest = table.loc["Residual", "sum_sq"]
    return [
        Effect(
            term=term.replace("C(", "").replace(")", "").replace(":", " x "),
            df=int(row["df"]),
            f=float(row["F"]),
            p=float(row["PR(>F)"]),
            partial_eta2=float(row["sum_sq"] / (row["sum_sq"] + rest)),
        )
        for term, row in table.iterrows()
        if term != "Residual"
    ]
