"""Whether higher or lower is better is decided once: what falls as accuracy rises gives the same tests and ranks."""

import functools

import numpy as np
import pandas as pd
import pytest
from made_records import made_record

import debiasbench
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import direction, select
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report import pictures, profile, sections
from debiasbench.report.make import _rank
from debiasbench.report.phrases import display_titles_in
from debiasbench.report.results import Measure, compare, ranks, summaries, to_frame
from debiasbench.report.sections import comparison_table, ranks_table
from debiasbench.report.verdict import verdicts

METHODS = ("vanilla", "pgd", "lff")
DATASETS = [f"cmnist5k:rho={rho}" for rho in (0.01, 0.03, 0.05, 0.1, 0.2, 0.3)]
LOWER = ("loss", "brier_loss", "calibration_error")
TESTS = ("welch", "paired", "wilcoxon", "sign_flip")
SEEDS = 6


@functools.cache
def found():
    """Records of three methods on six datasets, and their table; each of LOWER is 1 - acc_unbiased."""
    records = []
    for cell in expand(list(METHODS), DATASETS, seeds=SEEDS).cells:
        ratio = cell.dataset_parameters["rho"]
        noise = np.random.default_rng([cell.seed, METHODS.index(cell.method)]).normal(0, 0.02)
        value = {"vanilla": 0.4, "pgd": 0.8, "lff": 0.78}[cell.method] + ratio / 5 + noise
        metrics = {"acc_avg": value, "acc_unbiased": value, "acc_aligned": 0.99, **dict.fromkeys(LOWER, 1 - value)}
        records.append(made_record(cell, [EpochFacts(1, metrics, metrics)], {"last": 0}))
    return records, to_frame(records)


def measures(metric, datasets=DATASETS):
    return [Measure(dataset, metric) for dataset in datasets]


def few():
    """The same on two of the datasets."""
    records, table = found()
    return records, table[table.dataset.isin(DATASETS[:2])]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("acc_avg", 1), ("acc_conflict.colour", 1), ("acc_aligned.type_error", 1), ("brier", 1), ("lossless", 1),
        ("error_rate", 1), ("loss", -1), ("brier_loss", -1), ("calibration_error", -1),
    ],
)  # fmt: skip
def test_a_metric_says_by_its_name_what_is_better(metric, expected):
    assert direction(metric) == expected


@pytest.mark.parametrize("metric", LOWER)
def test_the_tests_ask_whether_a_method_is_better(metric):
    _, table = few()
    high, low = (compare(table, reference="vanilla", metric=name) for name in ("acc_unbiased", metric))
    same = [*TESTS, *(f"{test}_holm" for test in TESTS), "detectable", "correlation", "n_a", "n_b", "n_pairs"]
    pd.testing.assert_frame_equal(low[same], high[same])
    assert (low.welch_holm < 0.05).all()
    np.testing.assert_allclose(low.gap, -high.gap)
    np.testing.assert_allclose(low.effect_size, -high.effect_size)
    np.testing.assert_allclose(low[["low", "high"]], -high[["high", "low"]])
    assert (low.gap < 0).all()
    assert "Lower is better: " + metric in sections.tests_table(low).notes[0]
    assert "Lower" not in sections.tests_table(high).notes[0]


@pytest.mark.parametrize("metric", LOWER)
def test_the_best_and_the_ranks_are_the_same(metric):
    records, table = few()
    for high, low in zip(
        *(summaries(table, measures(name, DATASETS[:2])).values() for name in ("acc_unbiased", metric)), strict=True
    ):
        pd.testing.assert_frame_equal(low[["best", "tied", "untested"]], high[["best", "tied", "untested"]])
        assert low["mean"][low.best].item() == low["mean"].min()
    high, low = (ranks(table, measures(name, DATASETS[:2])).to_numpy() for name in ("acc_unbiased", metric))
    assert (high == low).all()
    high, low = (ranks_table(table, measures(name, DATASETS[:2])) for name in ("acc_unbiased", metric))
    assert [[entry.shown for entry in row] for row in low.rows] == [[entry.shown for entry in row] for row in high.rows]
    assert low.notes == [high.notes[0] + f" Lower is better: {metric}.", *high.notes[1:]]
    compared = comparison_table(table, records, measures(metric, DATASETS[:2]))
    bold = {row[0].value for row in compared.rows for entry in row if entry.best}
    assert bold <= {"pgd", "lff"}
    assert compared.notes[0].endswith(f" Lower is better: {metric}.")
    order = _rank(table, Measure(DATASETS[0], "acc_unbiased"), "score")
    assert _rank(table, Measure(DATASETS[0], metric), "score") == order


@pytest.mark.parametrize("metric", LOWER)
def test_a_verdict_says_who_is_lowest(metric):
    _, table = found()
    some = measures(metric)[:1]
    tests = compare(table[table.dataset == DATASETS[0]], reference="vanilla", metric=metric)
    (told,) = verdicts(table, some, tests)
    assert "is best with" in told
    assert "points below vanilla: significant" in told


@pytest.mark.parametrize("metric", LOWER[1:])
def test_figures_rank_and_test_by_it(metric, monkeypatch):
    _, table = found()
    drawn = []
    monkeypatch.setattr(pictures.figures, "critical_difference", lambda averages, *_, **__: drawn.append(averages))
    monkeypatch.setattr(debiasbench.figures.figures, "trials_histogram", lambda *_, **options: drawn.append(options))
    monkeypatch.setattr(debiasbench.figures, "_shown", lambda figure: figure)
    two = table[table.method.isin(["vanilla", "pgd"])]
    for name in ("acc_unbiased", metric):
        pictures.rank_picture(table, measures(name), display_titles_in(table))
        debiasbench.figures.trials(two, metric=name)
    of_high, trials_of_high, of_low, trials_of_low = drawn
    assert of_low == of_high
    assert trials_of_low["p_values"] == pytest.approx(trials_of_high["p_values"])
    assert max(trials_of_low["p_values"].values()) < 1e-6


def test_a_profile_names_the_lowest():
    values = {"a": np.array([0.1, 0.12]), "b": np.array([0.5, 0.55])}
    assert [profile._spread(values, set(), sign)[0].value for sign in (1, -1)] == ["b", "a"]
    assert [profile._spread(values, set(), sign)[1].value for sign in (1, -1)] == [pytest.approx(0.415)] * 2


@pytest.mark.parametrize(("headline", "chosen"), [("acc_unbiased", 1), ("loss", 2), ("brier_loss", 2)])
def test_the_oracle_takes_the_best_epoch(headline, chosen):
    rows = [EpochFacts(epoch, {}, {"acc_unbiased": acc, "loss": loss, "brier_loss": loss})
            for epoch, acc, loss in ((1, 0.2, 3.0), (2, 0.9, 2.0), (3, 0.5, 1.0))]  # fmt: skip
    assert select(rows, (headline,))["test_oracle"] == chosen


@pytest.mark.parametrize("metric", ["seconds", "seed", "n_worst", "epoch", "method", "acc_unbaised"])
def test_what_is_no_metric_is_not_compared(metric):
    """Of the time or a count, nobody says what is better."""
    _, table = found()
    with pytest.raises(BenchmarkError, match=f"No metric '{metric}'"):
        compare(table, metric=metric)


def test_a_split_that_is_none_is_refused():
    _, table = found()
    with pytest.raises(BenchmarkError, match=r"split must be valid or test\. Got 'tset'"):
        compare(table, split="tset")
