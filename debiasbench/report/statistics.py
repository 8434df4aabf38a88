"""Comparing methods from few runs: tests, corrections, effect sizes, intervals, and detectable gaps.

This module also ranks methods, on one dataset and over many, and counts per-sample scores. All functions take plain
sequences of numbers; scipy does the statistics. Spread is the sample standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

NAN = float("nan")
LEVEL = 0.05  # of every test, over all comparisons of its table
SAME = 1e-12  # numbers this close count as equal: equal fractions may differ by rounding
FEWEST_METHODS, FEWEST_DATASETS = 3, 6  # for a test of ranks over datasets: see `enough`
MOST_EXACT, N_DRAWS = 14, 19_999  # up to this many pairs all sign patterns are counted; beyond, this many are drawn
N_RESAMPLES = 9999  # of the bootstrap
AT_ONCE = 2**20  # numbers in memory at once, of a table that is only summed up
LARGE_SUM = 100 * np.finfo(float).eps  # relative error of sums that are too large to be exact as floats
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Comparison:
    """One method against another: is `a` better than `b`?

    Attributes:
        gap: mean(a) - mean(b).
        welch: p of Welch's t-test, one-sided for a > b, as in the PGD paper (appendix D.3); nan if neither side has
            any spread.
        paired: p of the one-sided t-test paired by seed; nan without at least two pairs, or if all differences are
            equal.
        wilcoxon: p of the one-sided signed-rank test; nan if this many pairs could never reach the level.
        sign_flip: p of the one-sided permutation test of the pairs; nan if `wilcoxon` has too few pairs.
        effect_size: Hedges' g (the gap in pooled standard deviations, corrected for small n).
        low, high: 95 % interval of the gap.
        detectable: the smallest gap that these n would find with 80 % power, in the metric's unit; like `effect_size`,
            `low` and `high`, it is nan if neither side has any spread.
        correlation: correlation of the pairs; nan with fewer than three.
    """

    n_a: int
    n_b: int
    gap: float
    welch: float
    paired: float
    wilcoxon: float
    sign_flip: float
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
        a, b: one number per run.
        pairs: (a, b) of runs with equal seed and equal data.
        n_comparisons: number of tests in the table; with more, `detectable` is larger, and `wilcoxon` and `sign_flip`
            need more pairs.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    gap = float(x.mean() - y.mean()) if len(x) and len(y) else NAN
    if len(x) < 2 or len(y) < 2:
        return Comparison(len(x), len(y), gap, *[NAN] * 9)
    pooled = math.sqrt(((len(x) - 1) * _deviation(x) ** 2 + (len(y) - 1) * _deviation(y) ** 2) / (len(x) + len(y) - 2))
    low, high = gap_interval(x, y)
    level = LEVEL / n_comparisons
    return Comparison(
        n_a=len(x),
        n_b=len(y),
        gap=gap,
        welch=welch(x, y),
        paired=paired_t(pairs),
        wilcoxon=wilcoxon(pairs, level=level),
        sign_flip=sign_flip(pairs, level=level),
        effect_size=hedges_g(gap, pooled, len(x) + len(y)),
        low=low,
        high=high,
        detectable=pooled * detectable_gap(len(x), len(y), level=level) if pooled else NAN,
        correlation=_correlation(pairs),
    )


def hedges_g(gap: float, deviation: float, n: int) -> float:
    """The gap in standard deviations, corrected for few runs (n: those of both sides); nan if the deviation is 0."""
    if deviation == 0:
        return NAN
    return gap / deviation * (1 - 3 / (4 * n - 9))


def _flat(x: Numbers) -> bool:
    """Whether all values are equal, up to rounding."""
    return bool(np.ptp(np.asarray(x, dtype=float)) <= SAME)


def _deviation(x: Numbers) -> float:
    """Sample standard deviation, exactly 0 if there is no spread."""
    return 0.0 if _flat(x) else float(np.std(x, ddof=1))


def welch(x: Numbers, y: Numbers) -> float:
    """P of Welch's one-sided t-test for mean(x) > mean(y); nan with fewer than two runs a side or without any spread.

    If runs are equal within both sides, nothing is known about the spread of other runs: t is infinite or undefined,
    and there is no p.
    """
    if len(x) < 2 or len(y) < 2 or (_flat(x) and _flat(y)):
        return NAN
    sides = (np.mean(x), _deviation(x), len(x), np.mean(y), _deviation(y), len(y))
    return float(stats.ttest_ind_from_stats(*sides, equal_var=False, alternative="greater").pvalue)


def paired_t(pairs: Sequence[tuple[float, float]]) -> float:
    """P of the one-sided paired t-test for a > b; nan with fewer than two pairs, or if all differences are equal."""
    difference = _differences(pairs)
    if len(difference) < 2 or _flat(difference):
        return NAN
    return float(stats.ttest_1samp(difference, 0, alternative="greater").pvalue)


def wilcoxon(pairs: Sequence[tuple[float, float]], *, level: float = LEVEL) -> float:
    """P of the one-sided signed-rank test; nan if even pairs that all have the same sign could not reach `level`."""
    difference = _differences(pairs)
    if smallest_p(len(difference)) > level or not difference.any():
        return NAN
    return float(stats.wilcoxon(difference, alternative="greater").pvalue)


def sign_flip(pairs: Sequence[tuple[float, float]], *, level: float = LEVEL, seed: int = 0) -> float:
    """P of the one-sided permutation test of the mean difference for a > b.

    If the two methods were alike, each difference could equally have the other sign. p is the fraction of sign patterns
    with a mean of at least the observed one. Up to n = 14, these are all 2^n patterns; beyond, they are 19,999 drawn
    patterns and the observed one. The test makes no assumption about the distribution of runs.

    Args:
        pairs: (a, b) of runs with equal seed and equal data.
        level: the level that p must be able to reach.
        seed: seed of the drawn patterns.

    Returns:
        p; nan if even pairs that all have the same sign could not reach `level`, or if no pair differs.
    """
    difference = _differences(pairs)
    if smallest_p(len(difference)) > level or not difference.any() or np.isnan(difference).any():
        return NAN
    steps = np.rint(difference / SAME)  # whole numbers, so that equal sums are equal in any order
    exact = len(steps) <= MOST_EXACT
    n_patterns, rng = 2 ** len(steps) if exact else N_DRAWS, np.random.default_rng(seed)
    seen = steps.sum()
    n_as_large = 0 if exact else 1  # the observed pattern itself
    for first, rows in _blocks(n_patterns, len(steps)):
        if exact:
            bits = np.arange(first, first + rows)[:, None] >> np.arange(len(steps)) & 1
        else:
            bits = rng.integers(0, 2**32, (rows, len(steps)), dtype=np.uint32) & 1
        n_as_large += int(np.count_nonzero((2.0 * bits - 1) @ steps >= seen - abs(seen) * LARGE_SUM))
    return float(n_as_large / (n_patterns if exact else n_patterns + 1))


def _blocks(n_rows: int, n_columns: int) -> Iterator[tuple[int, int]]:
    """Blocks of the rows of a table that is never in memory as a whole: first row and number of rows of each."""
    rows = max(1, AT_ONCE // n_columns)
    return ((first, min(rows, n_rows - first)) for first in range(0, n_rows, rows))


def smallest_p(n_pairs: int) -> float:
    """The smallest p that a test on the signs of pairs can give: 2^-n, if all signs are equal."""
    return 2.0**-n_pairs


def _differences(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """Differences a - b of pairs, float (n,), exactly 0 if they are equal up to rounding."""
    difference = np.asarray(pairs, dtype=float).reshape(-1, 2) @ (1, -1)
    return np.where(np.abs(difference) <= SAME, 0.0, difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; nan values stay nan and do not count."""
    p = np.asarray(p_values, dtype=float)
    usable = np.flatnonzero(~np.isnan(p))
    corrected = np.full(len(p), NAN)
    running = 0.0
    for rank, index in enumerate(usable[np.argsort(p[usable], kind="stable")]):
        running = max(running, min(1.0, (len(usable) - rank) * p[index]))
        corrected[index] = running
    return corrected.tolist()


def gap_interval(x: np.ndarray, y: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % interval of mean(x) - mean(y): Welch's t with fewer than ten runs a side, otherwise bootstrap (BCa).

    nan without any spread, because then nothing is known about the spread of other runs.
    """
    if _flat(x) and _flat(y):
        return NAN, NAN
    if min(len(x), len(y)) < 10:
        var_x, var_y = _deviation(x) ** 2 / len(x), _deviation(y) ** 2 / len(y)  # variances of the means
        freedom = (var_x + var_y) ** 2 / (var_x**2 / (len(x) - 1) + var_y**2 / (len(y) - 1))
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(var_x + var_y)
        gap = float(np.mean(x) - np.mean(y))
        return gap - half, gap + half
    if np.isnan(x).any() or np.isnan(y).any():
        return NAN, NAN
    rng = np.random.default_rng(seed)
    distribution = _resampled_means(x, rng) - _resampled_means(y, rng)
    result = stats.bootstrap(
        (x, y),
        lambda first, second, axis: first.mean(axis=axis) - second.mean(axis=axis),
        method="BCa",
        n_resamples=0,  # none besides those given below
        bootstrap_result=SimpleNamespace(bootstrap_distribution=distribution),
        batch=max(1, AT_ONCE // max(len(x), len(y))),
    ).confidence_interval
    return float(result.low), float(result.high)


def mean_interval(values: Numbers) -> tuple[float, float]:
    """95 % t interval of a mean; nan with fewer than two values or without any spread."""
    if len(values) < 2 or _flat(values):
        return NAN, NAN
    mean, half = float(np.mean(values)), _deviation(values) / math.sqrt(len(values))
    half *= float(stats.t.ppf(0.975, len(values) - 1))
    return mean - half, mean + half


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of N_RESAMPLES resamples of the same size, drawn with replacement as in `stats.bootstrap`."""
    n = len(values)
    return np.concatenate([
        values[rng.integers(0, n, (rows, n))].mean(axis=1) for _, rows in _blocks(N_RESAMPLES, n)
    ])  # fmt: skip


def detectable_gap(n_a: int, n_b: int, *, level: float = LEVEL, power: float = 0.8) -> float:
    """The gap, in standard deviations, that a one-sided t-test with these n finds with this power.

    With n = 3 a side it is 2.5 at level .05. nan with fewer than two runs a side.
    """
    if n_a < 2 or n_b < 2:
        return NAN
    freedom = n_a + n_b - 2
    critical = stats.t.ppf(1 - level, freedom)
    scale = math.sqrt(n_a * n_b / (n_a + n_b))

    def lacking(gap: float) -> float:
        found = float(stats.nct.sf(critical, freedom, gap * scale))
        return (1.0 if math.isnan(found) else found) - power  # nct returns nan for large gaps, where the power is 1

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high, xtol=1e-6))


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    values = np.asarray(pairs, dtype=float).reshape(-1, 2)
    if len(values) < 3 or _flat(values[:, 0]) or _flat(values[:, 1]):
        return NAN
    return float(np.corrcoef(values.T)[0, 1])


def pairwise_welch(runs: Sequence[Numbers]) -> np.ndarray:
    """P of Welch's one-sided test of each method against each other, before any correction.

    Args:
        runs: for each of M methods, one number per run; higher is better.

    Returns:
        float (M, M): at [a, b] the p of mean(a) > mean(b); nan on the diagonal and if a side has fewer than two runs.
        `holm` of all these numbers corrects for both directions of every pair, so no direction needs to be chosen
        after the fact.
    """
    p = np.full((len(runs), len(runs)), NAN)
    for a, x in enumerate(runs):
        for b, y in enumerate(runs):
            if a != b:
                p[a, b] = welch(x, y)
    return p


def ranks_with_ties(means: Numbers, separable: np.ndarray) -> np.ndarray:
    """Ranks of methods on one dataset: 1 + the number of separably better methods; those not separated share a rank.

    These are competition ranks (1, 1, 3): they depend only on the pairs, not on the order of methods. "Not separable"
    does not mean equivalent, so a method with a large spread may share rank 1 with the best, while one with a higher
    mean and less spread ranks lower. A method with one run is behind no other, because no test is possible. So show n
    beside these ranks.

    Args:
        means: (M,), higher is better; nan for a method without runs.
        separable: bool (M, M): whether a test separates a from b; only the direction of the means counts.

    Returns:
        float (M,): ranks from 1, nan where the mean is nan.
    """
    mean = np.asarray(means, dtype=float)
    better = np.asarray(separable, dtype=bool) & (mean[:, None] > mean)  # [a, b]: a is better than b
    return np.where(np.isnan(mean), NAN, 1.0 + better.sum(axis=0))


def ranks_by_dataset(scores: np.ndarray) -> np.ndarray:
    """Ranks of methods on each dataset from scores (D, M), higher is better: float (D, M), 1 is best.

    Ties share the mean of their ranks; scores that are equal up to rounding are ties. A dataset with a nan has only nan
    ranks, because ranks among different methods cannot be averaged.
    """
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(-scores, axis=1)
    steps = np.diff(np.take_along_axis(scores, order, axis=1), axis=1, prepend=NAN) < -SAME
    level = np.empty_like(scores)  # number of distinct scores that are better
    np.put_along_axis(level, order, np.cumsum(steps, axis=1).astype(float), axis=1)
    level[np.isnan(scores)] = NAN
    return np.asarray(stats.rankdata(level, axis=1), dtype=float)


def average_ranks(scores: np.ndarray) -> np.ndarray:
    """Mean over datasets of `ranks_by_dataset`: scores (D, M) to float (M,), in [1, M]."""
    return ranks_by_dataset(scores).mean(axis=0)


def enough(n_datasets: int, n_methods: int) -> bool:
    """Whether there are enough datasets and methods to test average ranks: three methods on six datasets.

    For two methods there is `wilcoxon`. Demsar's rule of thumb, more than 10 datasets and 5 methods, is for the
    chi-square of Friedman's statistic, which is not used here. The limit of six is our own, from simulations without
    any difference between methods: with six or more datasets, Iman and Davenport's F at level .05 is wrong in 5 to 6 %
    of the cases (3 to 24 methods), with fewer in up to 20 %, and methods are called different in at most 5 %. The
    limit cannot tell whether datasets are independent: several severities of one dataset are less evidence.
    """
    return n_methods >= FEWEST_METHODS and n_datasets >= FEWEST_DATASETS


def friedman(scores: np.ndarray) -> tuple[float, float, float]:
    """Do methods differ over datasets? Friedman's test of scores (D, M) in the form of Iman and Davenport (1980).

    Their F has nearly the right level, while Friedman's chi-square finds too little; Demsar (2006) recommends F. With
    few datasets its p is a little low (four methods, seven datasets: .04, while all permutations give .05). As in
    scipy, the chi-square is corrected for ties (Demsar's own example leaves this out: 9.28 there, 10.23 with it).

    Returns:
        (chi-square, F, p of F). F is infinite if all datasets agree; p is never below 1 / (M!)^(D - 1), the exact
        probability that all agree without ties. All are nan if a score is nan, or with one dataset or method.
    """
    ranks = ranks_by_dataset(scores)
    n_datasets, n_methods = ranks.shape
    if np.isnan(ranks).any() or n_datasets < 2 or n_methods < 2:
        return NAN, NAN, NAN
    between = n_datasets * float(((ranks.mean(axis=0) - (n_methods + 1) / 2) ** 2).sum())
    total = float(((ranks - (n_methods + 1) / 2) ** 2).sum())
    if total == 0:  # on every dataset all methods tie
        return 0.0, 0.0, 1.0
    fraction = between / total  # Kendall's concordance
    chi_square = n_datasets * (n_methods - 1) * fraction
    if fraction > 1 - SAME:
        f, p = math.inf, 0.0
    else:
        f = (n_datasets - 1) * fraction / (1 - fraction)
        p = float(stats.f.sf(f, n_methods - 1, (n_methods - 1) * (n_datasets - 1)))
    return chi_square, f, max(p, math.exp(-(n_datasets - 1) * math.lgamma(n_methods + 1)))


def nemenyi_difference(n_datasets: int, n_methods: int, *, level: float = LEVEL) -> float:
    """Critical difference between average ranks of two of M methods if all pairs are tested (Nemenyi; Demsar 2006)."""
    quantile = float(stats.studentized_range.ppf(1 - level, n_methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(n_methods * (n_methods + 1) / (6 * n_datasets))


def cliques(ranks: Numbers, difference: float) -> list[list[int]]:
    """The largest groups of methods whose average ranks (M,) are all less than `difference` apart.

    Returns:
        Indices in `ranks`, best first within a group and from group to group. Groups may overlap, but none contains
        another, and a method that is separated from all others is in none.
    """
    values = np.asarray(ranks, dtype=float)
    order = np.argsort(values, kind="stable")
    groups: list[list[int]] = []
    last = 0  # the end of the group before
    for first in range(len(order)):
        end = first + int((values[order[first:]] - values[order[first]] < difference).sum())
        if end - first > 1 and end > last:
            groups.append(order[first:end].tolist())
            last = end
    return groups


@dataclass(frozen=True)
class RankTest:
    """Whether M methods differ over D datasets, and which: the content of a critical-difference diagram.

    Attributes:
        ranks: float (M,), average ranks over the datasets; 1 is best.
        tested: whether there was `enough` for a test; if not, p and difference are nan and there are no cliques.
        p: from `friedman`. difference: from `nemenyi_difference`.
        cliques: indices of methods that cannot be separated; one group of all if p is not below the level.
    """

    n_datasets: int
    ranks: np.ndarray
    tested: bool
    p: float
    difference: float
    cliques: list[list[int]]


def rank_test(scores: np.ndarray, *, level: float = LEVEL) -> RankTest:
    """Average ranks from scores (D, M), higher is better, and their test if there is `enough`.

    Only datasets on which all methods have a score are used. Whether two methods are separated depends on the other
    methods in the table, because their ranks do (Benavoli, Corani and Mangili, 2016). For a claim about two methods,
    `compare` them.
    """
    scores = np.asarray(scores, dtype=float)
    complete = scores[~np.isnan(scores).any(axis=1)]
    n_datasets, n_methods = complete.shape
    ranks = average_ranks(complete) if n_datasets else np.full(n_methods, NAN)
    if not enough(n_datasets, n_methods):
        return RankTest(n_datasets, ranks, False, NAN, NAN, [])
    _, _, p = friedman(complete)
    difference = nemenyi_difference(n_datasets, n_methods, level=level)
    return RankTest(n_datasets, ranks, True, p, difference, cliques(ranks, difference if p < level else math.inf))


def score_bins(score: ArrayLike, conflicting: ArrayLike, n_bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count aligned and conflicting samples by their fraction of the largest score, as in the paper's Table 14.

    Args:
        score: (N,), at least 0. conflicting: bool (N,).
        n_bins: number of bins of equal width; each includes its lower edge, and the last also its upper edge.

    Returns:
        Edges, float (n_bins + 1,) in [0, 1], and the counts, int (n_bins,), of aligned and conflicting samples. All
        samples are in the first bin if no score is above 0.

    Raises:
        ValueError: a score is negative or not a number.
    """
    values = np.asarray(score, dtype=float)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("Scores are counted as fractions of the largest: they must be finite and at least 0.")
    largest = values.max(initial=0.0)
    # multiply first: then 3 / 10 of the largest is in [.3, .4); the float edge 0.30000000000000004 would put it below
    index = np.floor(values * n_bins / (largest or 1.0)).astype(int).clip(0, n_bins - 1)
    members = np.asarray(conflicting, dtype=bool)
    aligned, conflicts = (np.bincount(index[chosen], minlength=n_bins) for chosen in (~members, members))
    return np.linspace(0, 1, n_bins + 1), aligned, conflicts
