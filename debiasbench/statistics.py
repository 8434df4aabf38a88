"""Comparing methods from few runs: tests, corrections, effect sizes, intervals, and what could be found at all.

All functions take plain sequences of numbers; scipy does the statistics. Spread is the sample standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

NAN = float("nan")
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Comparison:
    """One method against another: is `a` better than `b`?

    Attributes:
        gap: mean(a) - mean(b).
        welch: p of Welch's t-test, one-sided for a > b, as in the PGD paper (appendix D.3).
        paired: p of the one-sided t-test paired by seed; nan without at least two pairs.
        wilcoxon: p of the one-sided signed-rank test; nan where this many pairs could never reach the level.
        effect_size: Hedges' g (the gap in pooled standard deviations, corrected for small n).
        low, high: 95 % interval of the gap.
        detectable: the smallest gap that these n would find with 80 % power, in the metric's unit.
        correlation: of the pairs; nan without at least three.
    """

    n_a: int
    n_b: int
    gap: float
    welch: float
    paired: float
    wilcoxon: float
    effect_size: float
    low: float
    high: float
    detectable: float
    correlation: float


def compare(
    a: Sequence[float], b: Sequence[float], pairs: Sequence[tuple[float, float]] = (), *, n_comparisons: int = 1
) -> Comparison:
    """Compare runs of two methods.

    Args:
        a, b: one number a run.
        pairs: (a, b) of runs with equal seed and equal data.
        n_comparisons: how many tests the table holds; tightens what is detectable and when Wilcoxon is offered.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    gap = float(x.mean() - y.mean()) if len(x) and len(y) else NAN
    if len(x) < 2 or len(y) < 2:
        return Comparison(len(x), len(y), gap, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)
    pooled = math.sqrt(((len(x) - 1) * _deviation(x) ** 2 + (len(y) - 1) * _deviation(y) ** 2) / (len(x) + len(y) - 2))
    low, high = gap_interval(x, y)
    level = 0.05 / n_comparisons
    return Comparison(
        n_a=len(x),
        n_b=len(y),
        gap=gap,
        welch=welch(x, y),
        paired=paired_t(pairs),
        wilcoxon=wilcoxon(pairs, level=level),
        effect_size=hedges_g(gap, pooled, len(x) + len(y)),
        low=low,
        high=high,
        detectable=pooled * detectable_gap(len(x), len(y), level=level),
        correlation=_correlation(pairs),
    )


def hedges_g(gap: float, deviation: float, n: int) -> float:
    """The gap in standard deviations, corrected for the bias of few runs (n: of both sides together)."""
    if deviation == 0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / deviation * (1 - 3 / (4 * n - 9))


def _flat(x: Numbers) -> bool:
    """Whether all values are equal, up to what floats make of equal shares."""
    return bool(np.ptp(np.asarray(x, dtype=float)) <= 1e-12)


def _deviation(x: Numbers) -> float:
    """Sample standard deviation, exactly 0 where there is no spread."""
    return 0.0 if _flat(x) else float(np.std(x, ddof=1))


def welch(x: Numbers, y: Numbers) -> float:
    """P of Welch's one-sided t-test for mean(x) > mean(y); nan with fewer than two runs a side."""
    if len(x) < 2 or len(y) < 2:
        return NAN
    if _flat(x) and _flat(y):  # no spread at all: the t statistic is infinite or undefined
        return {1: 0.0, 0: 0.5, -1: 1.0}[int(np.sign(x[0] - y[0]))]
    sides = (np.mean(x), _deviation(x), len(x), np.mean(y), _deviation(y), len(y))
    return float(stats.ttest_ind_from_stats(*sides, equal_var=False, alternative="greater").pvalue)


def paired_t(pairs: Sequence[tuple[float, float]]) -> float:
    """P of the one-sided paired t-test for a > b; nan with fewer than two pairs."""
    if len(pairs) < 2:
        return NAN
    difference = np.asarray(pairs, dtype=float) @ (1, -1)
    if _flat(difference):
        return {1: 0.0, 0: 0.5, -1: 1.0}[int(np.sign(difference[0]))]
    return float(stats.ttest_1samp(difference, 0, alternative="greater").pvalue)


def wilcoxon(pairs: Sequence[tuple[float, float]], *, level: float = 0.05) -> float:
    """P of the one-sided signed-rank test; nan where even all pairs of one sign could not reach `level`."""
    difference = np.asarray(pairs, dtype=float).reshape(-1, 2) @ (1, -1)
    if not len(difference) or 2.0 ** -len(difference) > level or not difference.any():
        return NAN
    return float(stats.wilcoxon(difference, alternative="greater").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; nan stay nan and do not count."""
    p = np.asarray(p_values, dtype=float)
    usable = np.flatnonzero(~np.isnan(p))
    corrected = np.full(len(p), NAN)
    running = 0.0
    for rank, place in enumerate(usable[np.argsort(p[usable], kind="stable")]):
        running = max(running, min(1.0, (len(usable) - rank) * p[place]))
        corrected[place] = running
    return corrected.tolist()


def gap_interval(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(x) - mean(y): Welch's t below ten runs a side, bootstrap (BCa) from there."""
    if _flat(x) and _flat(y):
        gap = float(np.mean(x) - np.mean(y))
        return gap, gap
    if min(len(x), len(y)) < 10:
        var_x, var_y = _deviation(x) ** 2 / len(x), _deviation(y) ** 2 / len(y)  # of the means
        freedom = (var_x + var_y) ** 2 / (var_x**2 / (len(x) - 1) + var_y**2 / (len(y) - 1))
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(var_x + var_y)
        gap = float(np.mean(x) - np.mean(y))
        return gap - half, gap + half
    if np.isnan(x).any() or np.isnan(y).any():
        return NAN, NAN
    result = stats.bootstrap(
        (x, y),
        lambda first, second, axis: first.mean(axis=axis) - second.mean(axis=axis),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def detectable_gap(n_a: int, n_b: int, *, level: float = 0.05, power: float = 0.8) -> float:
    """The gap, in standard deviations, that a one-sided t-test with these n finds with this power.

    n = 3 a side: 2.5 at level .05. nan with fewer than two runs a side.
    """
    if n_a < 2 or n_b < 2:
        return NAN
    freedom = n_a + n_b - 2
    critical = stats.t.ppf(1 - level, freedom)
    scale = math.sqrt(n_a * n_b / (n_a + n_b))

    def lacking(gap: float) -> float:
        found = float(stats.nct.sf(critical, freedom, gap * scale))
        return (1.0 if math.isnan(found) else found) - power  # nct gives nan far out, where the power is 1

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high, xtol=1e-6))


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    values = np.asarray(pairs, dtype=float).reshape(-1, 2)
    if len(values) < 3 or _flat(values[:, 0]) or _flat(values[:, 1]):
        return NAN
    return float(np.corrcoef(values.T)[0, 1])
