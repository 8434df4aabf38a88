"""Every number against scipy on raw values, or against a second, slow way to compute it."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from debiasbench.statistics import (
    Comparison,
    compare,
    detectable_gap,
    gap_interval,
    holm,
    paired_t,
    welch,
    wilcoxon,
)

NAN = math.nan
BETTER = [0.912, 0.934, 0.951, 0.907, 0.949]
WORSE = [0.871, 0.940, 0.902, 0.866, 0.930, 0.884]


def numbers(seed, n, mean=0.8, spread=0.02):
    return np.random.default_rng(seed).normal(mean, spread, n)


def same(found, expected):
    return found == expected or (math.isnan(found) and math.isnan(expected))


# --- Welch


def slow_welch(x, y):
    """Welch and Satterthwaite, written out."""
    n, m = len(x), len(y)
    mean_x, mean_y = sum(x) / n, sum(y) / m
    square_x = sum((value - mean_x) ** 2 for value in x) / (n - 1) / n
    square_y = sum((value - mean_y) ** 2 for value in y) / (m - 1) / m
    t = (mean_x - mean_y) / math.sqrt(square_x + square_y)
    freedom = (square_x + square_y) ** 2 / (square_x**2 / (n - 1) + square_y**2 / (m - 1))
    return stats.t.sf(t, freedom)


@pytest.mark.parametrize(("x", "y"), [(BETTER, WORSE), (WORSE, BETTER), (BETTER[:2], WORSE), (BETTER[:2], WORSE[:2])])
def test_welch_is_one_sided_with_unequal_variances(x, y):
    assert welch(x, y) == pytest.approx(slow_welch(x, y), rel=1e-9)
    expected = stats.ttest_ind(x, y, equal_var=False, alternative="greater").pvalue
    assert welch(x, y) == pytest.approx(expected, rel=1e-12)
    assert welch(np.array(x), np.array(y)) == welch(x, y)


def test_welch_turned_round_is_the_other_tail():
    assert welch(BETTER, WORSE) + welch(WORSE, BETTER) == pytest.approx(1)
    assert welch(BETTER, WORSE) < 0.05


@pytest.mark.parametrize(("x", "y"), [([], []), ([0.5], WORSE), (BETTER, [0.5])])
def test_no_test_with_fewer_than_two_runs_a_side(x, y):
    assert math.isnan(welch(x, y))


@pytest.mark.parametrize(
    ("x", "y", "p"),
    [
        ([0.5] * 3, [0.25] * 3, 0.0), ([0.25] * 3, [0.5] * 3, 1.0), ([0.5] * 3, [0.5] * 4, 0.5),
        # not exact in binary: their mean is not one of them
        ([0.3] * 3, [0.1] * 3, 0.0), ([0.1] * 3, [0.3] * 3, 1.0), ([0.1] * 3, [0.1] * 3, 0.5),
    ],
)  # fmt: skip
def test_welch_without_any_spread_says_which_is_larger(x, y, p):
    assert welch(x, y) == pytest.approx(p, abs=1e-12)


def test_welch_with_spread_on_one_side_only():
    x, y = [0.5, 0.5, 0.5], [0.25, 0.3, 0.35]
    assert welch(x, y) == pytest.approx(slow_welch(x, y), rel=1e-9)


# --- paired


def slow_paired(pairs):
    difference = [a - b for a, b in pairs]
    n = len(difference)
    mean = sum(difference) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in difference) / (n - 1))
    return stats.t.sf(mean / (spread / math.sqrt(n)), n - 1)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_paired_test_is_one_sided_on_the_differences(n):
    pairs = list(zip(BETTER[:n], WORSE[:n], strict=True))
    assert paired_t(pairs) == pytest.approx(slow_paired(pairs), rel=1e-9)
    expected = stats.ttest_rel(*zip(*pairs, strict=True), alternative="greater").pvalue
    assert paired_t(pairs) == pytest.approx(expected, rel=1e-9)


def test_the_paired_test_needs_two_pairs():
    assert math.isnan(paired_t([]))
    assert math.isnan(paired_t([(0.5, 0.4)]))


@pytest.mark.parametrize(
    ("pairs", "p"),
    [
        ([(0.5, 0.25), (0.75, 0.5)], 0.0), ([(0.25, 0.5), (0.5, 0.75)], 1.0), ([(0.5, 0.5), (0.7, 0.7)], 0.5),
        ([(0.3, 0.1), (0.5, 0.3), (0.4, 0.2)], 0.0),  # equal but for rounding
    ],
)  # fmt: skip
def test_the_paired_test_with_equal_differences_says_which_is_larger(pairs, p):
    assert paired_t(pairs) == pytest.approx(p, abs=1e-12)


# --- Wilcoxon


def slow_wilcoxon(pairs):
    """The share of all sign patterns with a rank sum of at least the one seen."""
    difference = np.array([a - b for a, b in pairs])
    ranks = stats.rankdata(abs(difference))
    seen = ranks[difference > 0].sum()
    sums = [ranks @ np.array(signs) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return np.mean([value >= seen - 1e-9 for value in sums])


@pytest.mark.parametrize("seed", range(4))
def test_wilcoxon_is_the_exact_one_sided_signed_rank_test(seed):
    pairs = list(zip(numbers(seed, 8, 0.81), numbers(seed + 100, 8), strict=True))
    assert wilcoxon(pairs) == pytest.approx(slow_wilcoxon(pairs), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "level", "offered"),
    [
        (1, 0.05, False), (4, 0.05, False), (5, 0.05, True), (3, 0.125, True), (3, 0.1249, False),
        (6, 0.05 / 4, False), (7, 0.05 / 4, True), (0, 0.05, False), (0, 1.0, False),
    ],
)  # fmt: skip
def test_wilcoxon_is_offered_only_where_it_could_reach_the_level(n, level, offered):
    pairs = [(0.5 + 0.01 * number, 0.4 + 0.003 * number**2 / 7) for number in range(n)]
    found = wilcoxon(pairs, level=level)
    assert math.isnan(found) is not offered
    if offered:
        assert found == pytest.approx(2.0**-n)
        assert found <= level


def test_wilcoxon_of_equal_values_is_not_offered():
    assert math.isnan(wilcoxon([(0.5, 0.5)] * 8))


# --- Holm


def closed_testing(p):
    """The principle behind Holm's p: the largest Bonferroni p of all sets of hypotheses with this one."""
    m = len(p)
    sets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(m)]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_closed_testing_with_bonferroni(seed):
    generator = np.random.default_rng(seed)
    p = generator.uniform(0, 1, generator.integers(1, 7)) ** 3
    assert holm(p) == pytest.approx(closed_testing(p.tolist()), rel=1e-12)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.9, 0.5, 0.8], [1.0, 1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected)


def test_holm_leaves_nan_where_it_is_and_does_not_count_it():
    found = holm([NAN, 0.03, NAN, 0.01])
    assert [math.isnan(value) for value in found] == [True, False, True, False]
    assert found[1::2] == pytest.approx([0.03, 0.02])
    assert all(math.isnan(value) for value in holm([NAN, NAN]))


# --- intervals


def test_below_ten_runs_the_interval_of_the_gap_is_welchs():
    for n, m in ((2, 2), (3, 5), (9, 9), (9, 30), (30, 9)):
        x, y = numbers(n, n), numbers(m + 50, m, 0.78, 0.05)
        square_x, square_y = x.var(ddof=1) / n, y.var(ddof=1) / m
        freedom = (square_x + square_y) ** 2 / (square_x**2 / (n - 1) + square_y**2 / (m - 1))
        half = stats.t.ppf(0.975, freedom) * math.sqrt(square_x + square_y)
        gap = x.mean() - y.mean()
        assert gap_interval(x, y) == pytest.approx((gap - half, gap + half), rel=1e-9)


def test_from_ten_runs_the_interval_of_the_gap_is_bootstrapped_with_bca():
    generator = np.random.default_rng(5)
    x, y = 0.7 + 0.02 * generator.exponential(1, 12) ** 2, 0.7 + 0.002 * generator.normal(0, 1, 10)

    def gap(first, second, axis):
        return first.mean(axis) - second.mean(axis)

    found = gap_interval(x, y)
    expected = stats.bootstrap((x, y), gap, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), rel=1e-12)
    # in the large: above the percentiles on both sides, as the sample is skewed to the right
    resampled = generator.choice(x, (20_000, 12)).mean(1) - generator.choice(y, (20_000, 10)).mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    assert low < found[0] < low + 0.3 * (high - low)
    assert high < found[1] < high + 0.5 * (high - low)


def test_the_bootstrap_gives_the_same_interval_again_and_leaves_the_global_generator_alone():
    x, y = numbers(1, 15), numbers(2, 15)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert gap_interval(x, y) == gap_interval(x, y)
    assert gap_interval(x, y) != gap_interval(x, y, seed=1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("n", [2, 3, 9, 10, 25])
def test_every_interval_contains_its_estimate(n):
    for seed in range(5):
        x, y = numbers(seed, n, 0.9), numbers(seed + 50, n)
        low, high = gap_interval(x, y)
        assert low < x.mean() - y.mean() < high


@pytest.mark.parametrize("value", [0.25, 0.1])
@pytest.mark.parametrize("n", [3, 12])
def test_without_any_spread_the_interval_is_the_gap(value, n):
    assert gap_interval(np.full(n, value), np.full(n, 0.3)) == pytest.approx((value - 0.3,) * 2, abs=1e-12)


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    covered = 0
    for seed in range(400):
        low, high = gap_interval(numbers(seed, 4, 0.9, 0.01), numbers(seed + 1000, 4, 0.8, 0.03))
        covered += low < 0.1 < high
    assert 0.92 <= covered / 400 <= 0.98


# --- what could be found


@pytest.mark.parametrize(("n", "n_comparisons", "expected"), [(3, 1, 2.5), (3, 4, 3.7), (25, 1, 0.71), (25, 4, 0.90)])
def test_the_detectable_gaps_of_the_design(n, n_comparisons, expected):
    assert detectable_gap(n, n, level=0.05 / n_comparisons) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("n", "m", "level"), [(3, 3, 0.05), (3, 3, 0.05 / 4), (25, 25, 0.05 / 4), (3, 25, 0.05)])
def test_a_gap_called_detectable_is_found_in_eighty_percent_of_simulated_experiments(n, m, level):
    generator = np.random.default_rng(0)
    x = generator.normal(detectable_gap(n, m, level=level), 1, (4000, n))
    y = generator.normal(0, 1, (4000, m))
    p = stats.ttest_ind(x, y, axis=1, alternative="greater").pvalue
    assert (p < level).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("n", "m", "level", "power"),
    [(2, 2, 0.05, 0.8), (2, 2, 0.05 / 20, 0.8), (3, 5, 0.05, 0.9), (200, 100, 0.01, 0.8), (3, 3, 0.05, 0.5)],
)
def test_the_power_at_the_detectable_gap_is_right_by_integration(n, m, level, power):
    freedom, scale = n + m - 2, math.sqrt(n * m / (n + m))
    critical = stats.t.ppf(1 - level, freedom)
    gap = detectable_gap(n, m, level=level, power=power)

    def found(spread):  # given the estimated spread, t exceeds the critical value with this probability
        return stats.norm.sf(critical * spread - gap * scale) * stats.chi.pdf(spread * math.sqrt(freedom), freedom)

    value, _ = integrate.quad(found, 0, 6, limit=400, points=[0.5, 1, 2])
    assert value * math.sqrt(freedom) == pytest.approx(power, abs=2e-4)


def test_nothing_is_detectable_with_a_single_run():
    assert math.isnan(detectable_gap(1, 5))
    assert math.isnan(detectable_gap(5, 1))


# --- all together


def test_a_comparison_holds_all_of_it():
    pairs = list(zip(BETTER, WORSE[:5], strict=True))
    found = compare(BETTER, WORSE, pairs, n_comparisons=4)
    a, b = np.array(BETTER), np.array(WORSE)
    gap = a.mean() - b.mean()
    pooled = math.sqrt((4 * a.var(ddof=1) + 5 * b.var(ddof=1)) / 9)
    low, high = gap_interval(a, b)
    assert vars(found) == pytest.approx(
        vars(
            Comparison(
                n_a=5, n_b=6, gap=gap, welch=slow_welch(BETTER, WORSE),
                paired=slow_paired(pairs), wilcoxon=NAN,
                effect_size=gap / pooled * (1 - 3 / (4 * 9 - 1)), low=low, high=high,
                detectable=pooled * detectable_gap(5, 6, level=0.05 / 4),
                correlation=stats.pearsonr(BETTER, WORSE[:5])[0],
            )
        ),
        rel=1e-9, nan_ok=True,
    )  # fmt: skip
    assert compare(BETTER, WORSE, pairs).wilcoxon == pytest.approx(slow_wilcoxon(pairs))


@pytest.mark.parametrize("n", [2, 3, 5, 25])
def test_the_effect_size_is_corrected_for_few_runs(n):
    x, y = numbers(1, n, 0.9), numbers(2, n)
    d = (x.mean() - y.mean()) / math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    freedom = 2 * n - 2  # Hedges' exact factor, of which 1 - 3 / (4 freedom - 1) is the usual approximation
    exact = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    assert compare(x, y).effect_size == pytest.approx(exact * d, rel=0.02 if n == 2 else 0.003)


@pytest.mark.parametrize(
    ("a", "b", "gap"), [([0.5], [0.25, 0.5], 0.125), ([0.5, 0.25], [0.25], 0.125), ([], [0.5], NAN)]
)
def test_with_fewer_than_two_runs_there_is_a_gap_and_nothing_else(a, b, gap):
    found = vars(compare(a, b, [(0.5, 0.25)]))
    assert (found.pop("n_a"), found.pop("n_b")) == (len(a), len(b))
    assert same(found.pop("gap"), gap)
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("n", [3, 12])
def test_a_run_that_is_nan_makes_every_number_nan_and_none_wrong(n):
    x, y = numbers(1, n), numbers(2, n)
    x[1] = NAN
    found = vars(compare(x, y, list(zip(x, y, strict=True))))
    assert (found.pop("n_a"), found.pop("n_b")) == (n, n)
    assert {name for name, value in found.items() if not math.isnan(value)} == set()


@pytest.mark.parametrize("value", [0.5, 0.1])
@pytest.mark.parametrize("n", [3, 12])
def test_equal_runs_without_spread_have_no_gap_and_no_effect(value, n):
    found = compare([value] * n, [value] * n, [(value, value)] * n)
    assert found.gap == 0
    assert found.welch == pytest.approx(0.5)
    assert found.paired == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-12)
    assert found.detectable == pytest.approx(0, abs=1e-12)
    assert found.effect_size == 0 or math.isnan(found.effect_size)
    assert math.isnan(found.correlation)


@pytest.mark.parametrize("value", [0.75, 0.7])
def test_different_runs_without_spread_are_told_apart(value):
    found = compare([value] * 3, [0.5] * 3, [(value, 0.5)] * 3)
    assert found.welch == pytest.approx(0, abs=1e-12)
    assert found.paired == pytest.approx(0, abs=1e-12)
    assert found.effect_size == math.inf
    assert (found.low, found.high) == pytest.approx((value - 0.5,) * 2, abs=1e-12)


def test_the_correlation_needs_three_pairs_and_spread():
    assert math.isnan(compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.7)]).correlation)
    assert math.isnan(compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.2), (0.6, 0.2)]).correlation)
    assert compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.6), (0.5, 1.0)]).correlation == pytest.approx(1)
