"""Every number against scipy on raw values, or against a second, slow way to compute it."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, stats

from debiasbench.report import statistics
from debiasbench.report.statistics import (
    Comparison,
    average_ranks,
    cliques,
    compare,
    detectable_gap,
    enough,
    friedman,
    gap_interval,
    holm,
    nemenyi_difference,
    paired_t,
    pairwise_welch,
    rank_test,
    ranks_by_dataset,
    ranks_with_ties,
    score_bins,
    sign_flip,
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
    ("x", "y"),
    # 0.3 and 0.1 are not exact in binary: their mean is not one of them
    [([0.5] * 3, [0.25] * 3), ([0.25] * 3, [0.5] * 3), ([0.5] * 3, [0.5] * 4), ([0.3] * 3, [0.1] * 3)],
)
def test_welch_without_any_spread_is_no_test(x, y):
    assert math.isnan(welch(x, y))


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
    "pairs",
    [
        [(0.5, 0.25), (0.75, 0.5)], [(0.25, 0.5), (0.5, 0.75)], [(0.5, 0.5), (0.7, 0.7)],
        [(0.3, 0.1), (0.5, 0.3), (0.4, 0.2)],  # equal but for rounding
    ],
)  # fmt: skip
def test_the_paired_test_of_equal_differences_is_no_test(pairs):
    assert math.isnan(paired_t(pairs))


# --- Wilcoxon


def slow_wilcoxon(pairs):
    """The fraction of all sign patterns with a rank sum of at least the one seen."""
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
@pytest.mark.parametrize("test", [wilcoxon, sign_flip])
def test_tests_of_signs_are_offered_only_where_they_could_reach_the_level(test, n, level, offered):
    pairs = [(0.5 + 0.01 * number, 0.4 + 0.003 * number**2 / 7) for number in range(n)]
    found = test(pairs, level=level)
    assert math.isnan(found) is not offered
    if offered:
        assert found == pytest.approx(2.0**-n)
        assert found <= level


@pytest.mark.parametrize("test", [wilcoxon, sign_flip])
def test_tests_of_signs_of_equal_values_are_not_offered(test):
    assert math.isnan(test([(0.5, 0.5)] * 8))
    assert math.isnan(test([(0.1 + 0.2, 0.3)] * 8))  # equal but for rounding


# --- sign flip


def slow_sign_flip(pairs):
    """The fraction of all sign patterns of the differences with a sum of at least the one seen, in exact fractions."""
    difference = [Fraction(str(a)) - Fraction(str(b)) for a, b in pairs]
    patterns = list(itertools.product((1, -1), repeat=len(difference)))
    sums = [sum(sign * one for sign, one in zip(signs, difference, strict=True)) for signs in patterns]
    return sum(value >= sum(difference) for value in sums) / len(patterns)


@pytest.mark.parametrize("digits", [2, 6])  # two: many sums are equal
@pytest.mark.parametrize("mean", [0.78, 0.8, 0.82])
@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_sign_flip_is_the_enumeration_of_all_patterns(n, mean, digits):
    a, b = (np.round(numbers(seed, n, one), digits).tolist() for seed, one in ((n, mean), (n + 50, 0.8)))
    pairs = list(zip(a, b, strict=True))
    assert sign_flip(pairs, level=1.0) == slow_sign_flip(pairs)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.1, 0.2, 0.3], 1 / 8), ([-0.1, -0.2, -0.3], 1.0), ([0.1, 0.2, -0.3], 5 / 8), ([0.1, 0.2, -0.1], 3 / 8),
     ([0.1, 0.1, 0.1], 1 / 8), ([0.0, 0.1, 0.2], 2 / 8)],
)  # fmt: skip
def test_sign_flip_by_hand(differences, p):
    assert sign_flip([(1 + difference, 1.0) for difference in differences], level=1.0) == p


def test_fourteen_pairs_are_exact_and_more_are_drawn():
    pairs = [(a, 0.8) for a in numbers(3, 16, 0.806, 0.02)]
    for n in (14, 16):
        difference = np.array(pairs[:n]) @ (1, -1)
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        exact = (signs @ difference >= difference.sum() - 1e-12).mean()
        assert 0.02 < exact < 0.5
        found = sign_flip(pairs[:n])
        assert found == exact if n == 14 else found == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))
        assert (found * 20_000) == pytest.approx(
            round(found * 20_000), abs=1e-6
        ) or n == 14  # of the one seen, and drawn


def test_drawn_patterns_are_the_same_again_and_leave_the_global_generator_alone():
    pairs = [(a, 0.8) for a in numbers(3, 20, 0.806, 0.02)]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert sign_flip(pairs) == sign_flip(pairs) != sign_flip(pairs, seed=1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("at_once", [1, 100, 2**20])  # of the patterns, which are never there as a whole
@pytest.mark.parametrize("n", [6, 14, 15, 33])
def test_sign_flip_is_the_permutation_test_of_scipy_in_blocks_of_any_size(monkeypatch, n, at_once):
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    pairs = list(zip(np.round(numbers(n, n, 0.806), 4), np.round(numbers(n + 50, n), 4), strict=True))
    expected = stats.permutation_test(
        (np.rint((np.array(pairs) @ (1, -1)) / 1e-12),), lambda values, axis: values.sum(axis=axis),
        permutation_type="samples", alternative="greater", n_resamples=2**14 if n <= 14 else 19_999,
        batch=10_000, rng=np.random.default_rng(3),
    )  # fmt: skip
    assert sign_flip(pairs, seed=3) == expected.pvalue


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


@pytest.mark.parametrize("at_once", [1, 250, 2**20])
@pytest.mark.parametrize(("n", "m"), [(10, 10), (10, 13), (40, 25)])
def test_the_bootstrap_is_that_of_scipy_in_blocks_of_any_size(monkeypatch, n, m, at_once):
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    x, y = numbers(n, n, 0.83), numbers(m + 50, m)
    expected = stats.bootstrap(
        (x, y), lambda one, other, axis: one.mean(axis) - other.mean(axis), method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert gap_interval(x, y, seed=3) == (expected.low, expected.high)


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
def test_without_any_spread_there_is_no_interval(value, n):
    assert np.isnan(gap_interval(np.full(n, value), np.full(n, 0.3))).all()
    low, high = gap_interval(np.full(n, value), numbers(0, n))  # the spread of one side is some
    assert low < high


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
                paired=slow_paired(pairs), wilcoxon=NAN, sign_flip=NAN,
                effect_size=gap / pooled * (1 - 3 / (4 * 9 - 1)), low=low, high=high,
                detectable=pooled * detectable_gap(5, 6, level=0.05 / 4),
                correlation=stats.pearsonr(BETTER, WORSE[:5])[0],
            )
        ),
        rel=1e-9, nan_ok=True,
    )  # fmt: skip
    alone = compare(BETTER, WORSE, pairs)
    assert alone.wilcoxon == pytest.approx(slow_wilcoxon(pairs))
    assert alone.sign_flip == slow_sign_flip(pairs)


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
def test_equal_runs_without_spread_have_no_gap_no_test_and_no_effect(value, n):
    found = compare([value] * n, [value] * n, [(value, value)] * n)
    assert found.gap == 0
    assert np.isnan([found.welch, found.paired, found.wilcoxon, found.sign_flip]).all()
    assert np.isnan([found.low, found.high, found.detectable, found.effect_size, found.correlation]).all()


@pytest.mark.parametrize("value", [0.75, 0.7])
def test_different_runs_without_spread_have_a_gap_and_no_test_of_it(value):
    found = compare([value] * 3, [0.5] * 3, [(value, 0.5)] * 3)
    assert found.gap == pytest.approx(value - 0.5)
    assert np.isnan([found.welch, found.paired]).all()
    assert np.isnan([found.low, found.high, found.detectable, found.effect_size]).all()


def test_the_correlation_needs_three_pairs_and_spread():
    assert math.isnan(compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.7)]).correlation)
    assert math.isnan(compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.2), (0.6, 0.2)]).correlation)
    assert compare(BETTER, WORSE, [(0.1, 0.2), (0.3, 0.6), (0.5, 1.0)]).correlation == pytest.approx(1)


# --- ranks within a dataset, by test


def test_pairwise_p_are_those_of_each_pair_in_both_directions():
    runs = [BETTER, WORSE, [0.5], []]
    p = pairwise_welch(runs)
    assert p.shape == (4, 4)
    for a, b in itertools.product(range(4), repeat=2):
        assert same(p[a, b], NAN if a == b else welch(runs[a], runs[b]))
    assert p[0, 1] + p[1, 0] == pytest.approx(1)


def slow_tied_ranks(means, separable):
    methods = range(len(means))
    return [1 + sum(separable[other][m] and means[other] > means[m] for other in methods) for m in methods]


@pytest.mark.parametrize("seed", range(10))
def test_ranks_with_ties_count_who_is_separably_better_in_any_order(seed):
    generator = np.random.default_rng(seed)
    runs = [generator.normal(mean, spread, 3) for mean, spread in generator.uniform(0.01, 0.1, (7, 2))]
    means = np.array([values.mean() for values in runs])
    p = pairwise_welch(runs)
    separable = np.reshape(holm(p.ravel()), p.shape) < 0.2
    ranks = ranks_with_ties(means, separable)
    assert ranks.tolist() == slow_tied_ranks(means.tolist(), separable.tolist())
    assert ranks[means.argmax()] == 1
    order = generator.permutation(7)
    assert ranks_with_ties(means[order], separable[np.ix_(order, order)]).tolist() == ranks[order].tolist()


@pytest.mark.parametrize(
    ("means", "pairs", "ranks"),
    [
        ([0.9, 0.8, 0.7], [], [1, 1, 1]),
        ([0.9, 0.8, 0.7], [(0, 1), (0, 2), (1, 2)], [1, 2, 3]),
        ([0.7, 0.9, 0.8], [(1, 0), (2, 0)], [3, 1, 1]),  # competition ranks: no second
        ([0.9, 0.8, 0.7], [(0, 2)], [1, 1, 2]),
        ([0.9, 0.8, 0.7], [(0, 1)], [1, 2, 1]),  # the last spreads too widely to be told from the best
        ([0.9, 0.9], [(0, 1), (1, 0)], [1, 1]),  # equal means are never separated
    ],
)
def test_ranks_with_ties_by_hand(means, pairs, ranks):
    separable = np.zeros((len(means),) * 2, dtype=bool)
    for a, b in pairs:
        separable[a, b] = True
    assert ranks_with_ties(means, separable).tolist() == ranks
    assert ranks_with_ties(means, separable | separable.T).tolist() == ranks  # the means say who is better


def test_a_method_without_runs_has_no_rank_and_moves_none():
    ranks = ranks_with_ties([0.9, NAN, 0.7], np.ones((3, 3), dtype=bool))
    assert ranks[[0, 2]].tolist() == [1, 2]
    assert math.isnan(ranks[1])


def test_a_method_with_one_run_is_behind_nobody():
    runs = [[0.9, 0.901, 0.902], [0.1], [0.5, 0.501, 0.502]]
    p = pairwise_welch(runs)
    assert ranks_with_ties([0.901, 0.1, 0.501], np.reshape(holm(p.ravel()), p.shape) < 0.05).tolist() == [1, 1, 2]


# --- ranks over datasets

# areas under the curve of four decision trees on fourteen datasets: Demsar (2006), Table 6, where more digits than
# are printed tell the last two apart on the thirteenth
TREES = [
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749], [0.957, 0.978, 0.946, 0.970],
]  # fmt: skip


def random_scores(seed, n_datasets, n_methods, n_levels=1000):
    return np.random.default_rng(seed).integers(0, n_levels, (n_datasets, n_methods)) / n_levels


def slow_ranks(scores):
    """One more than how many are better, and half a place for each that is equal."""
    return [[1 + sum(b > a for b in row) + (sum(b == a for b in row) - 1) / 2 for a in row] for row in scores]


def test_average_ranks_of_the_published_example():
    assert average_ranks(TREES) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert ranks_by_dataset(TREES)[5].tolist() == [1, 2.5, 4, 2.5]
    assert ranks_by_dataset(TREES)[9].tolist() == [2.5] * 4


def test_the_published_statistics_are_those_without_the_correction_for_ties():
    n, k, ranks = 14, 4, average_ranks(TREES)
    chi_square = 12 * n / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
    assert chi_square == pytest.approx(9.28, abs=0.005)
    assert (n - 1) * chi_square / (n * (k - 1) - chi_square) == pytest.approx(3.69, abs=0.005)
    assert friedman(TREES)[0] == pytest.approx(10.23, abs=0.005)


@pytest.mark.parametrize("n_levels", [1000, 4])
@pytest.mark.parametrize("shape", [(14, 4), (6, 3), (9, 12), (3, 5)])
def test_ranks_and_chi_square_with_and_without_ties(shape, n_levels):
    scores = random_scores(1, *shape, n_levels)
    assert ranks_by_dataset(scores).tolist() == slow_ranks(scores.tolist())
    assert average_ranks(scores) == pytest.approx(np.mean(slow_ranks(scores.tolist()), axis=0))
    assert friedman(scores)[0] == pytest.approx(stats.friedmanchisquare(*scores.T).statistic, rel=1e-9)


@pytest.mark.parametrize("n_levels", [1000, 4])
def test_the_f_of_ranks_is_that_of_a_two_way_analysis_of_variance(n_levels):
    ranks = np.array(slow_ranks(random_scores(2, 8, 5, n_levels).tolist()))
    between = 8 * ((ranks.mean(0) - 3) ** 2).sum() / 4
    residual = ((ranks - ranks.mean(0)) ** 2).sum() / (4 * 7)  # every dataset has the same mean rank
    _, f, p = friedman(-ranks)
    assert f == pytest.approx(between / residual, rel=1e-9)
    assert p == pytest.approx(stats.f.sf(between / residual, 4, 28), rel=1e-9)


def test_a_small_p_is_close_to_what_all_permutations_say():
    n_datasets, orders = 7, list(itertools.permutations((1, 2, 3, 4)))
    counts = Counter({(0, 0, 0, 0): 1})  # in how many ways ranks have these sums
    for _ in range(n_datasets):
        wider = Counter()
        for sums, n in counts.items():
            for order in orders:
                wider[tuple(map(sum, zip(sums, order, strict=True)))] += n
        counts = wider
    sums, ways = np.array(list(counts)), np.array(list(counts.values()))
    spread = ((sums - 2.5 * n_datasets) ** 2).sum(1)
    seen = set()
    for seed in range(60):
        scores = random_scores(seed, n_datasets, 4, 10**9) + np.array([0, 0.3, 0.4, 0.5])
        least = ((ranks_by_dataset(scores).sum(0) - 2.5 * n_datasets) ** 2).sum()
        exact = ways[spread >= least - 1e-9].sum() / ways.sum()
        if exact < 0.1:
            seen.add(exact)
            assert friedman(scores)[2] == pytest.approx(exact, abs=0.015)
    assert len(seen) > 10


@pytest.mark.parametrize(("n_datasets", "n_methods"), [(6, 3), (2, 4), (10, 12)])
def test_where_all_datasets_agree_p_is_the_exact_chance_of_it(n_datasets, n_methods):
    chi_square, f, p = friedman(np.tile(np.arange(n_methods), (n_datasets, 1)))
    assert chi_square == pytest.approx(n_datasets * (n_methods - 1))
    assert f == math.inf
    assert p == pytest.approx(math.factorial(n_methods) ** (1.0 - n_datasets), rel=1e-9)


def test_equal_scores_are_ties_up_to_rounding_and_a_nan_leaves_no_rank():
    scores = [[0.1 + 0.2, 0.3, 0.1], [0.3, 0.3 + 1e-9, 0.1], [0.3, NAN, 0.1]]
    assert ranks_by_dataset(scores)[:2].tolist() == [[1.5, 1.5, 3], [2, 1, 3]]
    assert np.isnan(ranks_by_dataset(scores)[2]).all()
    assert np.isnan(friedman(scores)).all()
    assert friedman(np.full((7, 4), 0.3)) == (0, 0, 1)
    assert np.isnan(friedman(scores[:1])).all()


@pytest.mark.parametrize(
    ("n_methods", "level", "quantile"),
    # Demsar (2006), Table 5 (a)
    [(2, 0.05, 1.960), (3, 0.05, 2.343), (4, 0.05, 2.569), (5, 0.05, 2.728), (10, 0.05, 3.164), (4, 0.1, 2.291)],
)
def test_the_critical_difference_has_the_published_quantiles(n_methods, level, quantile):
    scale = math.sqrt(n_methods * (n_methods + 1) / (6 * 14))
    assert nemenyi_difference(14, n_methods, level=level) / scale == pytest.approx(quantile, abs=1.1e-3)


def test_the_published_example_has_no_pair_at_five_percent_and_two_at_ten():
    assert nemenyi_difference(14, 4) == pytest.approx(1.25, abs=0.005)
    assert nemenyi_difference(14, 4, level=0.1) == pytest.approx(1.12, abs=0.005)
    assert rank_test(TREES).cliques == [[3, 1, 2, 0]]
    assert rank_test(TREES, level=0.1).cliques == [[3, 1, 2], [2, 0]]


def slow_cliques(ranks, difference):
    """All sets within the difference that no such set holds."""
    methods = range(len(ranks))
    sets = [set(s) for size in methods for s in itertools.combinations(methods, size + 1)]
    close = [s for s in sets if max(ranks[m] for m in s) - min(ranks[m] for m in s) < difference]
    return [s for s in close if len(s) > 1 and not any(s < other for other in close)]


@pytest.mark.parametrize("seed", range(12))
def test_cliques_are_the_largest_sets_within_the_difference(seed):
    generator = np.random.default_rng(seed)
    ranks = generator.integers(2, 16, 8) / 2  # with ties
    difference = float(generator.uniform(0.1, 4))
    found = cliques(ranks, difference)
    assert sorted(map(sorted, found)) == sorted(map(sorted, slow_cliques(ranks.tolist(), difference)))
    for group in found:
        assert ranks[group].tolist() == sorted(ranks[group])
    assert [ranks[group[0]] for group in found] == sorted(ranks[group[0]] for group in found)


def test_cliques_at_the_edges():
    assert cliques([], 1.0) == []
    assert cliques([1.0], 1.0) == []
    assert cliques([1.0, 2.0], 1.0) == []  # a whole critical difference apart is separated
    assert cliques([1.5, 1.5, 3.0], 1.0) == [[0, 1]]
    assert cliques([3.0, 1.0, 2.0], math.inf) == [[1, 2, 0]]
    assert cliques([3.0, 1.0, 2.0], NAN) == []


@pytest.mark.parametrize("n_methods", [3, 4, 8, 24])
def test_enough_datasets_can_separate_methods_at_all(n_methods):
    fewest = next(n for n in range(1, 100) if enough(n, n_methods))
    assert nemenyi_difference(fewest, n_methods) < n_methods - 1
    assert math.factorial(n_methods) ** (1.0 - fewest) < 0.05
    assert not enough(100, 2)


@pytest.mark.parametrize("n_methods", [3, 5, 12])
def test_with_enough_datasets_equal_methods_are_seldom_called_different(n_methods):
    fewest = next(n for n in range(1, 100) if enough(n, n_methods))
    difference = nemenyi_difference(fewest, n_methods)
    tables = [random_scores(seed, fewest, n_methods, 10**9) for seed in range(1000)]
    wrong = np.array([friedman(scores)[2] < 0.05 for scores in tables])
    apart = np.array([np.ptp(average_ranks(scores)) >= difference for scores in tables])
    assert wrong.mean() < 0.075  # 6 % and two standard deviations of the share
    assert (wrong & apart).mean() < 0.064  # 5 % and two


def test_three_methods_on_three_datasets_would_be_called_different_too_often():
    p = [friedman(random_scores(seed, 3, 3, 10**9))[2] for seed in range(1000)]
    assert np.mean(np.array(p) < 0.05) > 0.15
    assert not enough(3, 3)


def test_with_too_few_datasets_there_are_ranks_and_no_test():
    scores = random_scores(4, 5, 4)
    found = rank_test(scores)
    assert found.ranks == pytest.approx(average_ranks(scores))
    assert (found.n_datasets, found.tested, found.cliques) == (5, False, [])
    assert math.isnan(found.p)
    assert math.isnan(found.difference)


def test_only_complete_datasets_are_tested():
    scores = random_scores(5, 9, 4)
    scores[2, 1] = scores[7, 3] = NAN
    found, expected = rank_test(scores), rank_test(np.delete(scores, (2, 7), axis=0))
    assert found.n_datasets == expected.n_datasets == 7
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert (found.tested, found.p, found.cliques) == (True, expected.p, expected.cliques)
    nothing = rank_test(np.full((8, 3), NAN))
    assert (nothing.n_datasets, nothing.tested) == (0, False)
    assert np.isnan(nothing.ranks).all()


def test_methods_that_differ_everywhere_are_separated_only_as_far_as_the_difference_says():
    found = rank_test(np.tile([0.1, 0.4, 0.2, 0.3], (8, 1)))
    assert found.ranks.tolist() == [4, 1, 3, 2]
    assert 1 < found.difference < 2
    assert found.cliques == [[1, 3], [3, 2], [2, 0]]


# --- counts of scores


def test_scores_are_counted_in_tenths_of_the_largest():
    score = np.array([0, 0.99, 1, 3, 6.999, 7, 8.9999, 9, 10])
    conflicting = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1], dtype=bool)
    for scale in (1, 0.1, 7.3):
        edges, aligned, conflicts = score_bins(scale * score, conflicting)
        assert edges == pytest.approx(np.arange(11) / 10)
        assert aligned.tolist() == [2, 1, 0, 0, 0, 0, 1, 0, 1, 1]
        assert conflicts.tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("n_bins", [1, 7, 10, 64])
def test_every_sample_is_counted_once_between_its_edges(n_bins):
    generator = np.random.default_rng(0)
    score = generator.exponential(1, 500).astype(np.float32)
    conflicting = generator.random(500) < 0.1
    edges, aligned, conflicts = score_bins(score, conflicting, n_bins)
    share = score.astype(float) / score.max()
    for members, counts in ((~conflicting, aligned), (conflicting, conflicts)):
        assert counts.sum() == members.sum()
        for place in range(n_bins):
            inside = (share >= edges[place]) & ((share < edges[place + 1]) | (place == n_bins - 1))
            assert counts[place] == (inside & members).sum()


def test_scores_without_a_largest_are_all_in_the_first_bin():
    edges, aligned, conflicts = score_bins(np.zeros(3), np.array([True, False, False]), 2)
    assert (edges.tolist(), aligned.tolist(), conflicts.tolist()) == ([0, 0.5, 1], [2, 0], [1, 0])
    assert [counts.tolist() for counts in score_bins(np.zeros(0), np.zeros(0, dtype=bool), 2)[1:]] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("wrong", [-0.1, NAN, math.inf])
def test_scores_that_are_no_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="at least 0"):
        score_bins(np.array([0.5, wrong]), np.array([True, False]))
