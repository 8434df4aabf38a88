"""From records to tables, tests and reports: every number against a recomputation on the raw values."""

import dataclasses
import functools
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import changed, failed_record, made_record, stored
from scipy import stats

from debiasbench import drawing
from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import LATER, SELECTION_RULES, select
from debiasbench.experiments import Experiment, write_grid
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, GroupFacts, Seconds, SplitFacts, StageFacts
from debiasbench.report import make as report
from debiasbench.report import page, tables
from debiasbench.report.results import (
    compare,
    headline_of,
    in_parts,
    load_results,
    runs,
    summary,
    to_frame,
    without_settings,
)
from debiasbench.report.statistics import detectable_gap, gap_interval
from debiasbench.report.tables import frame_csv, results_csv

NAN = math.nan
RULES = tuple(SELECTION_RULES)
VANILLA = [0.401, 0.387, 0.422, 0.395, 0.410]
PGD = [0.812, 0.835, 0.803, 0.829, 0.841]
LFF = [0.809, 0.851, 0.797, 0.811, 0.838]
DISEN = [0.620, 0.655, 0.590, 0.701, 0.644]
VALUES = {"vanilla": VANILLA, "pgd:score=loss": PGD, "lff": LFF, "disen": DISEN}
N_EPOCHS = 3


@functools.cache
def new_cell(method, dataset, seed):
    (cell,) = expand([method], [dataset], seeds=[seed]).cells
    return cell


def epochs_of(value):
    """Metrics of three epochs that end at `value` on test; each selection rule has its own favourite."""
    rows = []
    for epoch in range(N_EPOCHS):
        test = value - 0.05 * abs(epoch - 2)
        valid = {
            "loss": (0.5, 0.25, 0.75)[epoch], "n": 500.0, "acc_avg": (0.97, 0.95, 0.96)[epoch],
            "acc_aligned": 0.99, "acc_conflict": (0.4, 0.5, 0.3)[epoch], "n_conflict": 10.0,
            "acc_worst": 0.1, "acc_cellmean": 0.6, "acc_groupmean": 0.6,
        }  # fmt: skip
        test_metrics = {
            "loss": 1 - test, "n": 500.0, "acc_avg": test, "acc_unbiased": test, "acc_aligned": 0.98,
            "acc_conflict": test - 0.02, "n_conflict": 450.0, "acc_worst": test / 2,
        }  # fmt: skip
        rows.append(EpochFacts(epoch, valid, test_metrics))
    return rows


def record(method, seed, value=0.5, *, dataset="cmnist5k", data_seed=0, title=None, epochs=None, **options):
    """A finished record; `options` are what a test changes in it, as read below."""
    cell = new_cell(method, dataset, seed)
    cell = dataclasses.replace(
        cell,
        dataset_parameters={**cell.dataset_parameters, "data_seed": data_seed},
        dataset_title=title or cell.dataset_title,
        method_version=cell.method_version + options.get("version", 0),
        dataset_version=cell.dataset_version + options.get("dataset_version", 0),
    )
    epochs = epochs or epochs_of(value)
    data = {
        "fingerprint": options.get("fingerprint", f"print of {dataset} {data_seed}"),
        "official": options.get("official", True), "note": options.get("note", ""),
        "splits": {name: SplitFacts(n) for name, n in (("train", 4000), ("valid", 500), ("test", 1_234))},
    }  # fmt: skip
    provenance = {"seconds": Seconds(total=12.5), "versions": {"protocol": options.get("protocol", 1)}}
    chosen, identification = select(epochs, ("acc_unbiased",)), options.get("identification", {})
    return made_record(cell, epochs, chosen, data=data, provenance=provenance, identification=identification)


def failure(method, seed):
    return failed_record(new_cell(method, "cmnist5k", seed))


def records_of(values=None, **options):
    return [
        record(method, seed, value, **options)
        for method, numbers in (values or VALUES).items()
        for seed, value in enumerate(numbers)
    ]


def store(folder, records):
    for one in records:
        stored(folder, one)
    return folder


def holm(p):
    """Holm by its rule: sort, multiply, never fall."""
    order = sorted(range(len(p)), key=lambda place: p[place])
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p[place] * (len(p) - rank)))
        corrected[place] = largest
    return corrected


def welch(a, b):
    return stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue


# --- the tidy table


def test_each_cell_has_a_row_for_each_split_and_rule_and_a_failed_one_has_one():
    table = to_frame([*records_of(), failure("jtt", 0)])
    done, failed = table[table.status == "done"], table[table.status == "failed"]
    assert len(done) == 20 * 2 * len(RULES)
    keys = done[["method", "seed", "split", "select"]].itertuples(index=False, name=None)
    assert set(keys) == {
        (method, seed, split, rule)
        for method in VALUES for seed in range(5) for split in ("valid", "test") for rule in RULES
    }  # fmt: skip
    assert len(failed) == 1
    assert failed.method.item() == "jtt"
    metrics = [name for name in table if name.startswith(("acc_", "loss", "n_"))]
    assert failed[[*metrics, "split", "select", "epoch"]].isna().all(axis=None)
    assert len({*table["hash"]}) == 21


def test_a_row_has_the_metrics_of_the_epoch_that_its_rule_selects():
    one = record("pgd", 3, 0.8)
    table = to_frame([one])
    chosen = {"last": 2, "val_loss": 1, "val_acc": 0, "group_val": 1, "test_oracle": 2}
    assert table[table["select"].isin(LATER)].epoch.isna().all()  # schema 1: accuracies of classes were not kept
    for _, row in table[~table["select"].isin(LATER)].iterrows():
        index = chosen[row["select"]]
        metrics = getattr(one.result.epochs[index], row["split"])
        assert row["epoch"] == index
        assert {name: row[name] for name in metrics} == metrics


def test_a_row_says_what_was_run_with_every_parameter():
    one = dataclasses.replace(record("pgd-loss", 3, 0.8, dataset="cmnist5k:rho=0.05"), path=Path("a/b.json"))
    row = to_frame([one]).iloc[0]
    expected = {
        "method": "pgd:score=loss", "dataset": "cmnist5k:rho=0.05", "seed": 3, "data_seed": 0,
        "status": "done",
        "split": "valid", "select": "last", "seconds": 12.5, "official": True, "protocol": 1,
        "path": "a/b.json",
        "fingerprint": "print of cmnist5k:rho=0.05 0", "hash": one.hash, "method.name": "pgd",
        "dataset.name": "cmnist5k", "method.score": "loss", "method.alpha": 0.7, "dataset.rho": 0.05,
        "dataset.data_seed": 0, "recipe.batch_size": 128, "recipe.milestones": (0.4, 0.8),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_a_rule_that_cannot_choose_has_a_row_without_metrics():
    epochs = epochs_of(0.5)
    for row in epochs:
        row.valid["n_conflict"] = 9.0
    table = to_frame([record("pgd", 0, epochs=epochs)])
    chosen = table[table["select"] == "group_val"]
    assert len(chosen) == 2
    assert chosen[["acc_avg", "acc_unbiased", "loss"]].isna().all(axis=None)


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
@pytest.mark.parametrize(
    "records",
    [
        records_of({"pgd": [0.8, 0.7], "vanilla": [0.5, 0.6]}),
        [*records_of({"pgd": [0.5]}), failure("jtt", 0), record("lff", 1, 0.25, dataset="bar")],
        [failure("jtt", 0)],
    ],
    ids=["of one dataset", "of several, one failed", "failed alone"],
)
def test_the_table_in_parts_is_the_table(monkeypatch, records, at_once):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", at_once)
    table, parts = to_frame(records), in_parts(records)
    assert "".join(results_csv(parts)) == "".join(frame_csv(table))
    pd.testing.assert_frame_equal(parts.without_settings(), without_settings(table))
    chosen = table[table["select"].isin(["last", "val_acc"])]
    pd.testing.assert_frame_equal(parts.of_rules(["last", "val_acc"]), chosen.reset_index(drop=True))
    rank = {title: -index for index, title in enumerate(table.method.unique())}
    in_order = table.sort_values("method", key=lambda titles: titles.map(rank), kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(parts.by_method(rank).whole(), in_order)


@pytest.mark.parametrize("name", ["self", "columns", "data", "index", "kwargs"])
def test_a_metric_of_any_name_is_a_column(name):
    epochs = [EpochFacts(epoch=1, valid={"acc_avg": 0.5, name: 0.25}, test={"acc_avg": 0.5, name: 0.125})]
    records = [record("pgd", 0, epochs=epochs), record("lff", 0)]
    table = to_frame(records)
    last = table[(table["select"] == "last") & (table.split == "test")]
    assert last[name].tolist() == pytest.approx([0.125, NAN], nan_ok=True)
    assert "".join(results_csv(in_parts(records))) == "".join(frame_csv(table))


def test_a_folder_of_records_becomes_the_same_table(tmp_path):
    records = records_of()
    table = load_results(store(tmp_path, records))
    expected = to_frame(records)
    order = ["method", "seed", "split", "select"]
    pd.testing.assert_frame_equal(
        table.drop(columns="path").sort_values(order, ignore_index=True),
        expected.drop(columns="path").sort_values(order, ignore_index=True),
        check_like=True,  # the order of the columns follows that of the records
    )
    for path, digest in zip(table.path, table.hash, strict=True):
        assert digest[:8] in path


def test_a_folder_without_records_is_refused_with_what_was_found(tmp_path):
    with pytest.raises(BenchmarkError, match="There is no results folder"):
        load_results(tmp_path / "none")
    with pytest.raises(BenchmarkError, match="There are no records in"):
        load_results(tmp_path)
    (tmp_path / "s0-x.json").write_text("{", encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"There are no records in(.|\n)*s0-x\.json"):
        load_results(tmp_path)


# --- mean, spread, best and tied


def test_a_summary_is_mean_sample_deviation_and_n_of_the_raw_numbers():
    found = summary(to_frame(records_of()), "cmnist5k", "acc_unbiased")
    assert list(found.index) == list(VALUES)
    for method, numbers in VALUES.items():
        assert found.loc[method, "mean"] == pytest.approx(np.mean(numbers), rel=1e-12)
        assert found.loc[method, "std"] == pytest.approx(np.std(numbers, ddof=1), rel=1e-12)
        assert found.loc[method, "count"] == 5


def test_split_rule_and_metric_choose_the_numbers():
    table = to_frame(records_of())
    assert summary(table, "cmnist5k", "acc_unbiased", select="val_loss")["mean"]["lff"] == pytest.approx(
        np.mean(LFF) - 0.05
    )
    assert summary(table, "cmnist5k", "acc_unbiased", select="val_acc")["mean"]["lff"] == pytest.approx(
        np.mean(LFF) - 0.10
    )
    assert summary(table, "cmnist5k", "acc_worst")["mean"]["lff"] == pytest.approx(np.mean(LFF) / 2)
    assert summary(table, "cmnist5k", "acc_avg", split="valid")["mean"]["lff"] == pytest.approx(0.96)


def test_best_and_tied_follow_from_scipy_on_the_raw_numbers():
    found = summary(to_frame(records_of()), "cmnist5k", "acc_unbiased")
    best = max(VALUES, key=lambda method: np.mean(VALUES[method]))
    others = [method for method in VALUES if method != best]
    corrected = dict(zip(others, holm([welch(VALUES[best], VALUES[method]) for method in others]), strict=True))
    assert found["best"].to_dict() == {method: method == best for method in VALUES}
    assert found["tied"].to_dict() == {method: corrected.get(method, 0.0) >= 0.05 for method in VALUES}
    assert sorted(found["tied"]) == [False, False, False, True]  # the test tests something


def test_the_correction_counts_all_other_methods_when_marking_ties():
    values = {
        "pgd": [0.80, 0.82, 0.84],
        "lff": [0.76, 0.781, 0.80],
        "jtt": [0.755, 0.785, 0.794],
        "disen": [0.74, 0.78, 0.81],
    }
    assert 0.05 / 3 < welch(values["pgd"], values["lff"]) < 0.05  # alone, but not among three
    assert summary(to_frame(records_of(values)), "cmnist5k", "acc_unbiased").tied.lff
    two = {name: values[name] for name in ("pgd", "lff")}
    assert not summary(to_frame(records_of(two)), "cmnist5k", "acc_unbiased").tied.lff


def test_with_one_run_nothing_is_tested_and_so_nothing_tied():
    found = summary(to_frame(records_of({"pgd": [0.9], "vanilla": [0.1]})), "cmnist5k", "acc_unbiased")
    assert found["best"].to_dict() == {"pgd": True, "vanilla": False}
    assert found["tied"].to_dict() == {"pgd": False, "vanilla": False}
    assert found["untested"].to_dict() == {"pgd": False, "vanilla": True}
    assert found["std"].isna().all()


def test_without_any_spread_nothing_is_tested_and_so_nothing_tied():
    values = {"pgd": [0.9, 0.9], "vanilla": [0.9, 0.9], "lff": [0.5, 0.9]}
    found = summary(to_frame(records_of(values)), "cmnist5k", "acc_unbiased")
    assert found["tied"].to_dict() == {"pgd": False, "vanilla": False, "lff": True}
    assert found["untested"].to_dict() == {"pgd": False, "vanilla": True, "lff": False}


def test_failed_runs_do_not_count():
    table = to_frame([*records_of({"pgd": PGD}), failure("pgd", 9)])
    assert summary(table, "cmnist5k", "acc_unbiased").loc["pgd", "count"] == 5


# --- tests against a reference


def test_a_comparison_is_scipy_on_the_raw_numbers_and_holm_over_the_dataset():
    found = compare(to_frame(records_of()), reference="vanilla")
    others = ["pgd:score=loss", "lff", "disen"]
    assert found.method.tolist() == others
    p = {
        "welch": [welch(VALUES[method], VANILLA) for method in others],
        "paired": [stats.ttest_rel(VALUES[method], VANILLA, alternative="greater").pvalue for method in others],
    }
    for test, expected in p.items():
        assert found[test].tolist() == pytest.approx(expected, rel=1e-9)
        assert found[f"{test}_holm"].tolist() == pytest.approx(holm(expected), rel=1e-9)
    signs = ["wilcoxon", "wilcoxon_holm", "sign_flip", "sign_flip_holm"]
    assert found[signs].isna().all(axis=None)  # 2^-5 is more than .05 / 3
    for row, method in zip(found.to_dict("records"), others, strict=True):
        a, b = np.array(VALUES[method]), np.array(VANILLA)
        pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        expected = {
            "n_a": 5, "n_b": 5, "n_pairs": 5, "gap": a.mean() - b.mean(),
            "effect_size": (a.mean() - b.mean()) / pooled * (1 - 3 / 31),
            "low": gap_interval(a, b)[0], "high": gap_interval(a, b)[1],
            "detectable": pooled * detectable_gap(5, 5, level=0.05 / 3),
            "correlation": np.corrcoef(a, b)[0, 1],
        }  # fmt: skip
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        assert {name: row[name] for name in ("dataset", "metric", "split", "select", "reference")} == {
            "dataset": "cmnist5k", "metric": "acc_unbiased", "split": "test", "select": "last",
            "reference": "vanilla",
        }  # fmt: skip


def test_the_reference_is_the_first_method_if_none_is_given():
    assert set(compare(to_frame(records_of())).reference) == {"vanilla"}
    swapped = {"lff": LFF, "vanilla": VANILLA}
    found = compare(to_frame(records_of(swapped)))
    assert (found.reference.item(), found.method.item()) == ("lff", "vanilla")
    assert found.welch.item() == pytest.approx(welch(VANILLA, LFF))


def test_datasets_are_corrected_apart():
    hard = {"vanilla": [0.30, 0.34, 0.38], "pgd": [0.36, 0.40, 0.46]}
    records = [*records_of(), *records_of(hard, dataset="cmnist5k:rho=0.05")]
    found = compare(to_frame(records), reference="vanilla")
    assert found.dataset.tolist() == ["cmnist5k"] * 3 + ["cmnist5k:rho=0.05"]
    last = found.iloc[-1]
    assert last.welch == pytest.approx(welch(hard["pgd"], hard["vanilla"]))
    assert last.welch_holm == last.welch


def test_metric_split_and_rule_can_be_chosen():
    table = to_frame(records_of())
    found = compare(table, reference="vanilla", metric="acc_worst", select="val_loss")
    a, b = (np.array(VALUES[method]) / 2 - 0.025 for method in ("lff", "vanilla"))
    row = found.set_index("method").loc["lff"]
    assert (row["metric"], row["select"]) == ("acc_worst", "val_loss")
    assert row.gap == pytest.approx(a.mean() - b.mean())
    assert row.welch == pytest.approx(welch(a, b))


def test_only_runs_of_equal_seed_and_data_seed_are_pairs():
    records = [record("vanilla", seed, VANILLA[seed]) for seed in (0, 1, 2, 3)]
    records += [record("pgd", seed, PGD[seed]) for seed in (1, 2, 3, 4)]
    records += [record("pgd", 0, 0.99, data_seed=1)]
    found = compare(to_frame(records), reference="vanilla").iloc[0]
    assert (found.n_a, found.n_b, found.n_pairs) == (5, 4, 3)
    assert found.paired == pytest.approx(stats.ttest_rel(PGD[1:4], VANILLA[1:4], alternative="greater").pvalue)
    assert found.correlation == pytest.approx(np.corrcoef(PGD[1:4], VANILLA[1:4])[0, 1])
    assert found.welch == pytest.approx(welch([*PGD[1:5], 0.99], VANILLA[:4]))


def test_pairs_do_not_depend_on_the_order_of_the_records():
    records = records_of({"vanilla": VANILLA, "pgd": PGD})
    mixed = [records[place] for place in (3, 9, 0, 5, 7, 2, 1, 8, 4, 6)]
    expected, found = (compare(to_frame(some), reference="vanilla").iloc[0] for some in (records, mixed))
    assert found.paired == pytest.approx(expected.paired)
    assert found.n_pairs == 5


def test_a_method_without_runs_on_a_dataset_takes_no_part_in_its_correction():
    records = [*records_of({"vanilla": VANILLA, "pgd": PGD}), failure("lff", 0)]
    found = compare(to_frame(records), reference="vanilla")
    assert found.method.tolist() == ["pgd"]
    assert found.welch_holm.item() == found.welch.item()


def test_sign_flip_is_in_the_comparison_with_holm():
    more = {"vanilla": [0.40, 0.39, 0.42, 0.40, 0.41, 0.38, 0.43], "pgd": [0.42, 0.44, 0.41, 0.45, 0.46, 0.40, 0.44]}
    lff = [value + 0.01 * (seed + 1) for seed, value in enumerate(more["vanilla"])]
    found = compare(to_frame(records_of({**more, "lff": lff})), reference="vanilla").set_index("method")
    difference = np.subtract(more["pgd"], more["vanilla"])
    patterns = np.array(list(itertools.product((1, -1), repeat=7)))
    p = {"pgd": (patterns @ difference >= difference.sum() - 1e-12).mean(), "lff": 2.0**-7}
    assert 0.01 < p["pgd"] < 0.1
    assert found.sign_flip.to_dict() == p
    assert found.sign_flip_holm.to_dict() == dict(zip(p, holm(list(p.values())), strict=True))


# --- what counts once


TWO = {"vanilla": [0.60, 0.64], "pgd": [0.64, 0.68]}


def of_equal_data(values, data_seeds):
    """Records of data seeds where nothing is drawn: equal data, equal runs."""
    return [one for seed in data_seeds for one in records_of(values, data_seed=seed, fingerprint="the one")]


def test_runs_of_data_seeds_with_equal_data_count_once():
    """Two seeds and three data seeds would be six runs: p .005, where the two have .146."""
    assert welch(TWO["pgd"], TWO["vanilla"]) == pytest.approx(0.146, abs=5e-4)
    assert welch(TWO["pgd"] * 3, TWO["vanilla"] * 3) == pytest.approx(0.005, abs=1e-4)
    table = to_frame(of_equal_data(TWO, (2, 0, 1)))
    found = compare(table, reference="vanilla").iloc[0]
    assert (found.n_a, found.n_b, found.n_pairs) == (2, 2, 2)
    assert found.welch == pytest.approx(welch(TWO["pgd"], TWO["vanilla"]))
    assert runs(table, "cmnist5k", "acc_unbiased").data_seed.tolist() == [0] * 4
    assert summary(table, "cmnist5k", "acc_unbiased")["count"].tolist() == [2, 2]


def test_runs_on_equal_data_are_pairs_whatever_their_data_seeds():
    records = [*of_equal_data({"vanilla": TWO["vanilla"]}, (0, 1)), *of_equal_data({"pgd": TWO["pgd"]}, (1, 2))]
    found = compare(to_frame(records), reference="vanilla").iloc[0]
    assert (found.n_a, found.n_b, found.n_pairs) == (2, 2, 2)


def test_a_report_says_what_counts_once(tmp_path):
    numbers = {"score": {"auroc": 0.9}}
    records = [changed(one, identification=numbers) for one in of_equal_data(TWO, (0, 1, 2))]
    records[0] = changed(records[0], identification={"score": {"auroc": 0.7}})
    found = report.make(store(tmp_path, records), reference="vanilla", figures=False)
    assert {row[2].value for row in found.table("comparison").rows} == {2}
    notes = " ".join(found.table("comparison").notes)
    assert "Runs of one method and seed on equal data count once: 4 of 12." in notes
    assert "All runs share one draw of the data (data seed 0)" in notes
    auroc = {row[1].value: row[3].value for row in found.table("identification").rows}
    assert auroc == pytest.approx({"pgd": 0.9, "vanilla": 0.8})  # the mean of two, not of six
    drawn = report.make(store(tmp_path / "drawn", records_of(TWO)), figures=False)
    assert "count once" not in " ".join(drawn.table("comparison").notes)


# --- why there is a dash


def notes_of_tests(tmp_path, values):
    found = report.make(store(tmp_path, records_of(values)), reference="vanilla", figures=False).table("tests")
    keys = [column.key for column in found.columns]
    return [dict(zip(keys, (entry.shown for entry in row), strict=True)) for row in found.rows], " ".join(found.notes)


def test_equal_differences_are_a_dash_and_a_sentence(tmp_path):
    (row,), notes = notes_of_tests(tmp_path, {"vanilla": [0.25, 0.5, 0.375], "pgd": [0.5, 0.75, 0.625]})
    assert (row["paired"], row["paired_holm"]) == ("-", "-")
    assert row["welch"] != "-"
    assert "A dash for p paired: all differences are equal" in notes
    assert "A dash for p Welch" not in notes


def test_equal_runs_are_a_dash_and_a_sentence(tmp_path):
    (row,), notes = notes_of_tests(tmp_path, {"vanilla": [0.25] * 3, "pgd": [0.5] * 3})
    assert row["gap"] == "+25.00"
    assert {row[key] for key in ("welch", "welch_holm", "low", "effect_size", "detectable")} == {"-"}
    assert "A dash for p Welch: within each method all runs are equal" in notes
    assert "Without spread there is no test, interval, effect size or detectable gap" in notes


def test_what_so_few_pairs_cannot_reach_is_said_in_numbers(tmp_path):
    values = {name: numbers[:3] for name, numbers in VALUES.items()}
    rows, notes = notes_of_tests(tmp_path / "three", values)
    assert {(row["wilcoxon"], row["sign_flip"]) for row in rows} == {("-", "-")}
    assert (
        "With 3 pairs, p of Wilcoxon and sign flip cannot go below .125, but the level after correction is .0167"
        in notes
    )
    (row,), notes = notes_of_tests(tmp_path / "five", {"vanilla": VANILLA, "pgd": PGD})
    assert (row["wilcoxon"], row["sign_flip"]) == (".0312", ".0312")
    assert "neither" not in notes
    assert "A dash" not in notes


# --- kinds of device and precisions


def on(records, device_kind, precision="fp32"):
    """The records as if they had been run there."""
    name = {"cpu": "cpu (x86_64)", "cuda": "NVIDIA H100"}[device_kind]
    told = {"device": name, "device_kind": device_kind, "precision": precision}
    return [dataclasses.replace(one, provenance=dataclasses.replace(one.provenance, **told)) for one in records]


def test_runs_on_different_devices_are_not_paired_and_the_report_says_so(tmp_path):
    vanilla, pgd = (records_of({name: numbers}) for name, numbers in (("vanilla", VANILLA), ("pgd", PGD)))
    records = [*on(vanilla[:3], "cpu"), *on(vanilla[3:], "cuda", "bf16"), *on(pgd[:4], "cpu"), *on(pgd[4:], "cuda")]
    found = compare(to_frame(records), reference="vanilla").iloc[0]
    assert (found.n_a, found.n_b, found.n_pairs) == (5, 5, 3)  # the last two on other devices, or in other precision
    assert found.paired == pytest.approx(stats.ttest_rel(PGD[:3], VANILLA[:3], alternative="greater").pvalue)
    notes = " ".join(report.make(store(tmp_path / "a", records), figures=False).table("comparison").notes)
    where = "on cpu in fp32, on cuda in bf16 and on cuda in fp32"
    assert f"cmnist5k: this table has runs {where}; they are not paired." in notes
    records = [*on(vanilla, "cpu"), *on(pgd, "cuda")]
    made = report.make(store(tmp_path / "b", records), reference="vanilla", figures=False)
    assert "cmnist5k: this table has runs on cpu and on cuda; they are not paired." in made.table("comparison").notes
    assert "A dash for the paired tests" in " ".join(made.table("tests").notes)
    alone = report.make(store(tmp_path / "c", vanilla), figures=False).table("comparison")
    assert "this table has runs" not in " ".join(alone.notes)


def test_one_cell_on_two_devices_is_refused_with_the_reason():
    records = records_of({"vanilla": VANILLA})
    with pytest.raises(BenchmarkError, match="vanilla on cmnist5k with seed 0, one on cpu and one on cuda: keep them"):
        compare(to_frame([*on(records, "cpu"), *on(records, "cuda")]))


@pytest.mark.parametrize(
    ("asked", "told", "expected"),
    [
        ("auto", {"device": "cpu (x86_64)"}, ("cpu", "fp32")),
        ("auto", {"device": "NVIDIA H100"}, ("cuda", "bf16")),
        ("bf16", {"device": "cpu (x86_64)"}, ("cpu", "bf16")),
        ("fp32", {"device": ""}, ("", "fp32")),
        ("auto", {"device": ""}, ("", "")),
        (None, {"device": "NVIDIA H100"}, ("cuda", "fp32")),  # of before there was a choice
        ("auto", {"device": "NVIDIA H100", "device_kind": "cuda", "precision": "fp32"}, ("cuda", "fp32")),
    ],
)
def test_older_records_tell_device_and_precision_by_the_devices_name_and_the_recipe(asked, told, expected):
    one = record("pgd", 0)
    recipe = {key: value for key, value in one.cell.recipe.items() if key != "precision"}
    recipe |= {} if asked is None else {"precision": asked}
    provenance = dataclasses.replace(one.provenance, **told)
    one = dataclasses.replace(one, cell=dataclasses.replace(one.cell, recipe=recipe), provenance=provenance)
    row = to_frame([one]).iloc[0]
    assert (row.device_kind, row.precision) == expected


# --- what must not be mixed


def test_different_data_under_one_data_seed_are_refused():
    records = [*records_of({"vanilla": VANILLA}), *records_of({"pgd": PGD}, fingerprint="other")]
    for function in (compare, lambda table: summary(table, "cmnist5k", "acc_unbiased")):
        with pytest.raises(BenchmarkError, match=r"cmnist5k.*different data.*data seed 0"):
            function(to_frame(records))


def test_other_data_under_another_data_seed_are_fine():
    records = [*records_of({"vanilla": VANILLA}), *records_of({"vanilla": VANILLA, "pgd": PGD}, data_seed=1)]
    assert compare(to_frame(records)).n_pairs.item() == 5


@pytest.mark.parametrize(
    "change", [{"protocol": 2}, {"version": 1}, {"dataset_version": 1}], ids=["protocol", "method", "dataset"]
)
def test_runs_of_one_method_in_two_versions_are_refused(change):
    records = [*records_of({"pgd": PGD[:3]}), record("pgd", 3, PGD[3], **change)]
    with pytest.raises(BenchmarkError, match="cmnist5k come from different versions"):
        compare(to_frame([*records, *records_of({"vanilla": VANILLA})]))


@pytest.mark.parametrize("change", [{"protocol": 2}, {"dataset_version": 1}], ids=["protocol", "dataset"])
def test_two_methods_in_two_versions_of_the_suite_or_dataset_are_refused(change):
    records = [*records_of({"vanilla": VANILLA}), *records_of({"pgd": PGD}, **change)]
    with pytest.raises(BenchmarkError, match="cmnist5k come from different versions"):
        compare(to_frame(records))


def test_methods_may_have_different_versions_from_each_other():
    records = [*records_of({"vanilla": VANILLA}), *records_of({"pgd": PGD}, version=3)]
    assert compare(to_frame(records)).n_a.tolist() == [5]


def test_two_runs_of_one_seed_under_one_label_are_refused():
    own = records_of({"disen": DISEN[:3]})
    (cell,) = expand(["disen"], ["cmnist5k:batch_size=64"], seeds=[0]).cells
    cell = dataclasses.replace(cell, dataset_title="cmnist5k")  # a file that somebody edited, say
    other = dataclasses.replace(record("disen", 0, 0.4), cell=cell, hash=cell.hash)
    with pytest.raises(BenchmarkError, match="disen"):
        summary(to_frame([*own, other]), "cmnist5k", "acc_unbiased")


def on_two_machines(folder, **other):
    """Their records laid side by side: each has two methods, and one cell differs as `other` says."""
    mine = records_of({"vanilla": VANILLA[:3], "pgd": PGD[:3]})
    theirs = [dataclasses.replace(one, provenance=dataclasses.replace(one.provenance, device="cpu 2")) for one in mine]
    if other:
        theirs[0] = changed(theirs[0], **other)
    for name, records in (("one", mine), ("two", [*theirs, record("pgd", 3, PGD[3])])):
        store(folder / name, records)
    return [next((folder / name).rglob("cmnist5k/vanilla/s0-*.json")) for name in ("one", "two")]


def test_records_of_two_machines_that_overlap_count_once(tmp_path):
    on_two_machines(tmp_path)
    made = report.make(tmp_path, order=["vanilla", "pgd"], figures=False)
    assert [row[2].value for row in made.table("comparison").rows] == [3, 4]
    assert [[entry.value for entry in row[2:]] for row in report.status(tmp_path).rows] == [[4, 0], [3, 0]]
    assert len(load_results(tmp_path)) == 7 * 2 * len(RULES)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": tuple(epochs_of(0.3))},
        {"logged": {"temperature": 2.0}},
        {"arrays": {"score": "0" * 64}},
        {"groups": {"test": (GroupFacts(n=9),)}},
        {"stages": (StageFacts(call=2, epochs=1, evaluated=True),)},
    ],
    ids=["metrics", "logged", "arrays", "groups", "stages"],  # a report shows neither of the last two
)
def test_unequal_records_of_a_cell_are_refused_in_one_message_with_both_paths(tmp_path, change):
    paths = on_two_machines(tmp_path, **change)
    with pytest.raises(BenchmarkError) as caught:
        report.make(tmp_path, figures=False)
    assert str(caught.value) == (
        "There are several runs of vanilla on cmnist5k with seed 0, of the same cell, with different results: keep "
        f"them in separate folders, or delete all but one. They are {paths[0]} and {paths[1]}."
    )
    assert [[entry.value for entry in row[2:]] for row in report.status(tmp_path).rows] == [[4, 0], [3, 0]]


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("dataset_parameters", {"rho": 0.3}, "dataset.rho"),
        ("dataset_parameters", {"rho": 0.3, "steps": 7}, "dataset.rho, dataset.steps"),
        ("recipe", {}, ""),
    ],
)
def test_runs_with_different_settings_under_one_title_name_them_and_their_paths(tmp_path, part, values, named):
    one = record("vanilla", 0)
    cell = dataclasses.replace(one.cell, **{part: {**getattr(one.cell, part), **values}})
    other = dataclasses.replace(one, cell=cell, hash="0" * 64)
    paths = [stored(tmp_path / name, each) for name, each in (("one", one), ("two", other))]
    why = rf"made with different settings{re.escape(f' ({named})') if named else ''} under one title"
    with pytest.raises(BenchmarkError, match=f"{why}: .* They are {paths[0]} and {paths[1]}"):
        report.make(tmp_path, figures=False)


# --- unknown names


def test_an_unknown_reference_is_answered_with_the_nearest_and_all():
    with pytest.raises(BenchmarkError) as error:
        compare(to_frame(records_of()), reference="vanila")
    assert str(error.value) == (
        "No results of the reference 'vanila'. Did you mean 'vanilla'? There are: vanilla, pgd:score=loss, lff, disen."
    )


def test_an_unknown_metric_is_answered_with_the_nearest_and_all():
    with pytest.raises(BenchmarkError) as error:
        compare(to_frame(records_of()), metric="acc_unbaised")
    message = str(error.value)
    assert message.startswith("No metric 'acc_unbaised'. Did you mean 'acc_unbiased'? Known: ")
    assert {"acc_avg", "acc_worst", "acc_conflict"} <= set(re.findall(r"acc_\w+", message))


def test_another_table_is_refused_with_the_columns_that_it_lacks():
    table = to_frame(records_of()).drop(columns=["fingerprint", "data_seed"])
    with pytest.raises(BenchmarkError, match="lacks the columns data_seed, fingerprint"):
        runs(table, "cmnist5k", "acc_avg")


def test_the_headline_is_the_datasets_and_plain_accuracy_where_it_is_not_known():
    records = records_of({"pgd": PGD})
    assert headline_of(to_frame(records), "cmnist5k") == "acc_unbiased"
    records = [
        dataclasses.replace(one, cell=dataclasses.replace(one.cell, dataset="elsewhere", dataset_title="elsewhere"))
        for one in records
    ]
    assert headline_of(to_frame(records), "elsewhere") == "acc_avg"


# --- the report


def markdown_tables(text):
    """Title -> (columns, rows) as a reader sees them."""
    tables = {}
    for part in text.split("### ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        tables[title] = (cells[0], cells[2:])
    return tables


def shown(numbers):
    """As the paper prints accuracies."""
    return f"{100 * np.mean(numbers):.2f} ± {100 * np.std(numbers, ddof=1):.2f}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, report) of four methods and five seeds, one failed cell and one broken file."""
    folder = store(tmp_path_factory.mktemp("results"), [*records_of(), failure("jtt", 0)])
    broken = folder / "records" / "cmnist5k" / "pgd" / "s3-broken.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{", encoding="utf-8")
    return folder, report.make(folder, reference="vanilla", order=list(VALUES), figures=False)


def test_a_report_writes_tables_as_markdown_latex_and_csv(made):
    folder, found = made
    names = ["comparison.csv", "comparison.md", "comparison.tex", "document.tex", "results.csv", "tests.csv"]
    assert sorted(path.name for path in (folder / "tables").iterdir()) == names
    written = {path for kind in ("tables", "tests") for path in found.paths[kind]}
    assert written == {folder / "tables" / name for name in names}


def test_the_comparison_shows_mean_spread_n_best_and_ties(made):
    folder, found = made
    columns, rows = markdown_tables((folder / "tables" / "comparison.md").read_text(encoding="utf-8"))["Comparison"]
    assert columns == ["method", "cmnist5k acc_unbiased (%)", "n"]
    assert rows == [
        ["vanilla", shown(VANILLA), "5"],
        ["pgd:score=loss", f"**{shown(PGD)}**", "5"],
        ["lff", f"{shown(LFF)} ~", "5"],
        ["disen", shown(DISEN), "5"],
    ]
    texts = [[entry.shown for entry in row] for row in found.table("comparison").rows]
    assert texts == [[cell.strip("*") for cell in row] for row in rows]


def test_the_selection_table_shows_every_rule_and_marks_those_that_use_bias_labels(made):
    folder, _ = made
    columns, rows = markdown_tables((folder / "tables" / "comparison.md").read_text(encoding="utf-8"))[
        "Selection rules on cmnist5k"
    ]
    assert columns == [
        "method", "last", "val_loss", "val_acc", "group_val§", "test_oracle§", "acc_aligned, last",
        "acc_conflict, last",
    ]  # fmt: skip
    array = np.array
    assert rows == [
        [
            method, shown(values), shown(array(values) - 0.05), shown(array(values) - 0.1),
            shown(array(values) - 0.05), shown(values), "98.00 ± 0.00", shown(array(values) - 0.02),
        ]
        for method, values in VALUES.items()
    ]  # fmt: skip


def test_the_tests_in_the_report_are_those_of_scipy(made):
    folder, _ = made
    columns, rows = markdown_tables((folder / "tables" / "comparison.md").read_text(encoding="utf-8"))[
        "Tests against the reference"
    ]
    others = ["pgd:score=loss", "lff", "disen"]
    p = holm([welch(VALUES[method], VANILLA) for method in others])
    assert [row[columns.index("method")] for row in rows] == others
    for row, method, corrected in zip(rows, others, p, strict=True):
        found = dict(zip(columns, row, strict=False))
        assert found["gap"] == f"{100 * (np.mean(VALUES[method]) - np.mean(VANILLA)):+.2f}"
        assert found["n"] == "5 / 5"
        assert found["p Wilcoxon"] == "-"
        expected = "< .0001" if corrected < 0.0001 else f"{corrected:.4f}".lstrip("0")
        assert row[columns.index("Holm")] == expected
    table = pd.read_csv(folder / "tables" / "tests.csv")
    assert table["method"].tolist() == others
    assert table["welch_holm"].tolist() == pytest.approx(p, rel=1e-9)
    assert table["gap"].tolist() == pytest.approx([np.mean(VALUES[m]) - np.mean(VANILLA) for m in others], rel=1e-9)


def test_the_correlation_of_the_pairs_is_printed(made):
    _, found = made
    printed = {entry.shown for row in found.table("tests").rows for entry in row}
    for method in ("pgd:score=loss", "lff", "disen"):
        correlation = np.corrcoef(VALUES[method], VANILLA)[0, 1]
        assert printed & {f"{correlation:.{digits}f}" for digits in (1, 2, 3)}


def test_the_csv_has_the_raw_numbers(made):
    folder, _ = made
    table = pd.read_csv(folder / "tables" / "results.csv")
    chosen = table[(table["split"] == "test") & (table["select"] == "last")]
    for method, values in VALUES.items():
        found = chosen[chosen["method"] == method].sort_values("seed")
        assert found["seed"].tolist() == list(range(5))
        assert found["acc_unbiased"].tolist() == values


def test_the_latex_table_holds_the_same_numbers(made):
    folder, _ = made
    text = (folder / "tables" / "comparison.tex").read_text(encoding="utf-8")
    assert rf"PGD, score=loss & \textbf{{{shown(PGD).replace('±', '$' + chr(92) + 'pm$')}}} \\" in text
    assert rf"LfF & {shown(LFF).replace('±', '$' + chr(92) + 'pm$')} $\sim$ \\" in text
    assert r"method & Colored MNIST (5,000), 2 \% acc\_unbiased (\%) \\" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 4
    for part in text.split(r"\begin{tabular}")[1:]:
        n_columns = len(re.match(r"\{(l?r*)\}", part)[1])
        body = part.partition(r"\end{tabular}")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") + 1 for line in rows} == {n_columns}


def test_failed_records_and_broken_files_are_told_and_do_not_stop_the_report(made):
    _, found = made
    assert [one.cell.method for one in found.failed] == ["jtt"]
    assert len(found.complaints) == 1
    assert "s3-broken.json" in found.complaints[0]


def test_the_notes_say_what_the_table_shows(made):
    _, found = made
    notes = " ".join(found.table("comparison").notes)
    for words in (
        "Test split, last epoch", "sample standard deviation (n - 1)", "Holm", "chosen after the fact",
        "lff on cmnist5k has recipe values of its own: optimizer adam, learning_rate 0.01, weight_decay 0.0.",
        "lff on cmnist5k: tuned with bias knowledge", "data seed 0",
    ):  # fmt: skip
        assert words in notes
    assert "pgd:score=loss on cmnist5k trains" not in notes
    assert "†" not in notes


def test_only_failed_records_make_a_report_without_tables(tmp_path):
    store(tmp_path, [failure("jtt", 0)])
    found = report.make(tmp_path, figures=False)
    assert (found.tables, found.paths, len(found.failed)) == ([], {"report": [tmp_path / "report.html"]}, 1)
    assert "it did not work" in found.paths["report"][0].read_text(encoding="utf-8")


def test_a_report_on_nothing_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="There is no results folder"):
        report.make(tmp_path / "none")
    with pytest.raises(BenchmarkError, match="There are no records in"):
        report.make(tmp_path)


def test_a_report_against_an_unknown_reference_is_refused(tmp_path):
    store(tmp_path, records_of())
    with pytest.raises(BenchmarkError, match=r"'vanila'.*'vanilla'"):
        report.make(tmp_path, reference="vanila", figures=False)


def test_data_that_are_not_the_published_ones_are_marked_with_their_counts(tmp_path):
    store(tmp_path, records_of({"vanilla": VANILLA, "pgd": PGD}, official=False, note="A subset."))
    report.make(tmp_path, figures=False)
    text = (tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8")
    assert "cmnist5k† acc_unbiased (%)" in text
    assert "† cmnist5k: not the published data (train 4,000, valid 500, test 1,234). A subset." in text
    in_latex = (tmp_path / "tables" / "comparison.tex").read_text(encoding="utf-8")
    assert r"Colored MNIST (5,000), 2 \%$\dagger$ acc\_unbiased" in in_latex
    assert r"$\dagger$: not the published data." in next(line for line in in_latex.splitlines() if "caption" in line)
    assert r"$\dagger$ Colored MNIST (5,000), 2 \%: not the published data (train 4,000" in in_latex


def test_what_the_data_say_of_themselves_is_in_the_report_without_a_mark(tmp_path):
    """Such as images that were converted, or files left out: nothing that was published says otherwise."""
    store(tmp_path, records_of({"vanilla": VANILLA}, note="Images converted: 3."))
    report.make(tmp_path, figures=False)
    lines = (tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert "cmnist5k: Images converted: 3." in lines


@pytest.mark.parametrize("n", [1, 2])
def test_with_a_single_run_there_are_dashes_and_a_sentence_in_place_of_p(tmp_path, n):
    store(tmp_path, records_of({"vanilla": VANILLA[:n], "pgd": PGD[:1]}))
    found = report.make(tmp_path, reference="vanilla", figures=False)
    comparison, tests = found.table("comparison"), found.table("tests")
    values = {row[0].value: row[1].shown for row in comparison.rows}
    assert values["pgd"] == f"{100 * PGD[0]:.2f}"
    assert "Some methods have a single run" in " ".join(comparison.notes)
    (row,) = tests.rows
    cells = [entry.shown for entry in row]
    assert cells[2] == f"1 / {n}"
    assert cells[3] == f"{100 * (PGD[0] - np.mean(VANILLA[:n])):+.2f}"
    assert cells[4:] == ["-"] * 10
    assert values["vanilla"][-1] != "~"
    assert (
        "The best was not tested against vanilla: a test needs two runs of each method, and some spread."
        in comparison.notes
    )
    assert "A dash for p: a test needs at least two runs of both methods." in tests.notes
    assert "nan" not in (tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8")


def test_a_single_method_has_no_tests(tmp_path):
    store(tmp_path, records_of({"pgd": PGD}))
    found = report.make(tmp_path, figures=False)
    assert [table.key for table in found.tables] == ["comparison", "selection-cmnist5k"]


def test_a_rule_that_cannot_choose_in_some_runs_shows_mean_and_spread_of_the_others(tmp_path):
    records = records_of({"vanilla": VANILLA[:3], "pgd": PGD[:3]})
    for index in (0, 1, 3):  # two of vanilla, one of pgd
        epochs = epochs_of({0: VANILLA[0], 1: VANILLA[1], 3: PGD[0]}[index])
        for row in epochs:
            row.valid["n_conflict"] = 9.0
        method = records[index].cell.method_title
        records[index] = record(method, records[index].cell.seed, epochs=epochs)
    report.make(store(tmp_path, records), order=["vanilla", "pgd"], figures=False)
    text = (tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8")
    columns, rows = markdown_tables(text)["Selection rules on cmnist5k"]
    found = [row[columns.index("group_val§")] for row in rows]
    assert found == [f"{100 * (VANILLA[2] - 0.05):.2f}", shown(np.array(PGD[1:3]) - 0.05)]


def test_methods_that_lack_a_dataset_have_a_dash_there(tmp_path):
    records = [
        *records_of({"vanilla": VANILLA, "pgd": PGD}),
        *records_of({"pgd": LFF}, dataset="cmnist5k:rho=0.05"),
    ]
    report.make(store(tmp_path, records), order=["vanilla", "pgd"], figures=False)
    _, rows = markdown_tables((tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8"))["Comparison"]
    assert rows == [
        ["vanilla", shown(VANILLA), "5", "-", "0"],
        ["pgd", f"**{shown(PGD)}**", "5", f"**{shown(LFF)}**", "5"],
    ]


def test_only_the_records_asked_for_take_part(tmp_path):
    store(tmp_path, records_of())
    found = report.make(tmp_path, keep=lambda one: one.cell.seed < 3, figures=False)
    assert [row[2].value for row in found.table("comparison").rows] == [3] * 4


def test_identification_is_the_mean_over_runs(tmp_path):
    numbers = [{"auroc": 0.9, "conflict_mass": 0.5}, {"auroc": 0.8, "conflict_mass": 0.25}]
    records = [record("pgd", seed, 0.8, identification={"score": one}) for seed, one in enumerate(numbers)]
    found = report.make(store(tmp_path, records), figures=False)
    table = found.table("identification")
    assert [column.heading for column in table.columns] == ["dataset", "method", "values", "auroc", "conflict_mass"]
    assert [[entry.shown for entry in row] for row in table.rows] == [["cmnist5k", "pgd", "score", "0.850", "0.375"]]


def test_figures_are_drawn_of_scores_and_accuracies(tmp_path):
    records = records_of({"vanilla": VANILLA[:2], "pgd": PGD[:2]})
    for one in records:
        score = torch.linspace(0, 1, 50, dtype=torch.float64)
        arrays = {"score": score, "train_conflict": (score > 0.8)[:, None]} if one.cell.method == "pgd" else {}
        stored(tmp_path, one, arrays)
    found = report.make(tmp_path)
    names = {f"{stem}-cmnist5k{ending}" for stem in ("scores", "accuracies") for ending in (".pdf", ".png")}
    assert {path.name for path in found.paths["figures"]} == names
    for path in found.paths["figures"]:
        assert path.read_bytes()[:4] == (b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")


# --- special characters


def rendered(text):
    """The cells of the first Markdown table as a reader sees them."""
    markdown_it = pytest.importorskip("markdown_it")
    from html import unescape

    html = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def table_of(headings, rows, notes=(), best=()):
    """A table of words; `best`: (row, column) of what is."""
    columns = [tables.Column(f"column {index}", heading) for index, heading in enumerate(headings)]
    entries = [
        [tables.Entry(text, text, best=(y, x) in best) for x, text in enumerate(row)] for y, row in enumerate(rows)
    ]
    return tables.Table("key", "Title", columns, entries, list(notes))


@pytest.mark.parametrize(
    "text",
    [
        "lambda_up=3,score_bias=false",
        "_a_ b_c",
        "95 % ~ ~",
        "~~x~~",
        "< .0001",
        "a|b",
        "*a* b",
        "`a`",
        "a\\b",
        "<b>",
    ],
)
def test_markdown_shows_every_character_as_it_is(text):
    table = table_of(["method", text], [[text, "1"]])
    assert rendered(tables.markdown(table)) == [["method", text], [text, "1"]]


def test_markdown_sets_the_best_in_bold():
    table = table_of(["method"], [["81.00 ± 1.00"], ["80.00 ± 1.00 ~"]], ["A note."], best=[(0, 0)])
    cells = rendered(tables.markdown(table))
    assert cells == [["method"], ["<strong>81.00 ± 1.00</strong>"], ["80.00 ± 1.00 ~"]]
    assert tables.markdown(table).startswith("### Title\n")
    assert tables.markdown(table).endswith("A note.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("score_bias", [r"score\_bias"]), ("5 %", [r"5 \%"]), ("a & b", [r"a \& b"]), ("#1", [r"\#1"]),
        ("80 ~", [r"80 $\sim$", r"80 \textasciitilde{}"]), ("1 ± 2", [r"1 $\pm$ 2"]),
        ("a†§", [r"a$\dagger$\S{}"]), ("< .1", ["$<$ .1"]), ("a|b", ["a$|$b"]),
        ("$5", [r"\$5"]), ("{a}", [r"\{a\}"]), ("a^b", [r"a\^{}b", r"a\textasciicircum{}b"]),
        ("a\\b", [r"a\textbackslash{}b", r"a$\backslash$b"]),
    ],
)  # fmt: skip
def test_latex_escapes_every_special_character(text, expected):
    table = table_of([text, "n"], [[text, "1"], [text, "1"]], [text], best=[(1, 0)])
    lines = tables.latex(table).splitlines()
    (row,) = {cell for cell in expected if any(line.strip() == rf"{cell} & 1 \\" for line in lines)} or [None]
    assert row is not None, lines
    assert rf"    \textbf{{{row}}} & 1 \\" in lines
    assert rf"    {row} & n \\" in lines
    assert r"  \caption{Title}" in lines
    assert rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {row}}}" in lines


NASTY = [
    "[/foo]", r"$\frac{1}{$", "a\n\nb | c\r\nd", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "漢字", "größe ±‡",
    "a" * 300, "..", "/etc/passwd", "\x1b[31mred",
]  # fmt: skip


DATASETS = [r"$\frac{1}{$", "漢字", "..", "a" * 300]


@pytest.fixture
def no_other_fonts(monkeypatch):
    """As where nothing is installed beside what matplotlib brings along."""
    from matplotlib import font_manager

    own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    drawing._fonts_for.cache_clear()
    yield
    drawing._fonts_for.cache_clear()


def test_labels_of_others_go_through_a_whole_report(tmp_path, capsys, monkeypatch, no_other_fonts):
    """Methods and datasets of every nasty title, on the command line, with figures, tables and page."""
    values = iter(np.linspace(0.3, 0.9, 50))
    for title in NASTY:
        one = record("vanilla", 0, next(values))
        for dataset in ("cmnist5k", *DATASETS) if title == NASTY[0] else ("cmnist5k",):
            data = dataclasses.replace(one.result.data, fingerprint=dataset)
            cell = dataclasses.replace(one.cell, method_title=title, dataset_title=dataset)
            stored(tmp_path, changed(dataclasses.replace(one, cell=cell, hash=cell.hash), data=data))
    before = set(tmp_path.parent.rglob("*"))
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    complaints = [line for line in told.splitlines() if line.startswith("left out")]
    assert len(complaints) == 1
    assert "The figures show boxes for 字漢: no installed font has them" in complaints[0]
    assert "[/foo]" in told
    assert "\x1b" not in told
    assert all(path.is_relative_to(tmp_path) for path in set(tmp_path.parent.rglob("*")) - before)
    assert len(list((tmp_path / "figures").glob("accuracies-*.png"))) == 1 + len(DATASETS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert html.count("<script>") == 1  # its own
    table = pd.read_csv(tmp_path / "tables" / "results.csv")
    assert len(table) == (len(NASTY) + len(DATASETS)) * 2 * len(RULES)
    assert not any(str(value).startswith(("=", "+", "-", "@")) for value in table.method)


def test_a_page_without_its_charts_is_a_page(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr(page, "learning_curves", fail)
    report.make(store(tmp_path, records_of()), figures=False)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The learning curves on cmnist5k could not be drawn: RuntimeError: no ink" in html
    assert "Comparison" in html


def test_a_report_without_matplotlib_has_its_tables(tmp_path, monkeypatch):
    """As with a damaged matplotlibrc in the current folder, which no variable hides."""

    def fail():
        raise BenchmarkError("matplotlib cannot be imported")

    monkeypatch.setattr(drawing, "library", fail)
    made = report.make(store(tmp_path, records_of()))
    assert made.complaints == ["accuracies-cmnist5k could not be drawn: BenchmarkError: matplotlib cannot be imported"]
    assert (tmp_path / "tables" / "comparison.md").is_file()
    assert "matplotlib cannot be imported" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- status and references


def test_the_status_counts_done_failed_and_begun_cells(tmp_path):
    store(tmp_path, [*records_of({"pgd": PGD[:2]}), failure("pgd", 7), record("vanilla", 0)])
    begun = tmp_path / "logs" / "cmnist5k" / "lff" / "s0-12345678.log"
    begun.parent.mkdir(parents=True)
    begun.write_text("", encoding="utf-8")
    done = next((tmp_path / "records" / "cmnist5k" / "vanilla").glob("*.json"))
    log = (tmp_path / "logs" / done.relative_to(tmp_path / "records")).with_suffix(".log")
    log.parent.mkdir(parents=True)
    log.write_text("", encoding="utf-8")
    table = report.status(tmp_path)
    assert [[entry.value for entry in row] for row in table.rows] == [
        ["cmnist5k", "pgd", 2, 1], ["cmnist5k", "vanilla", 1, 0],
    ]  # fmt: skip
    (note,) = table.notes
    assert "s0-12345678" in note
    assert done.stem not in note
    with pytest.raises(BenchmarkError, match="There is no results folder"):
        report.status(tmp_path / "none")


def test_references_are_given_once_for_what_was_used(tmp_path):
    text = report.bibtex(store(tmp_path, records_of({"pgd": PGD[:2], "lff": LFF[:1], "vanilla": VANILLA[:1]})))
    assert re.findall(r"@\w+\{(\w+),", text) == ["ahn2023pgd", "nam2020lff"]


def test_an_alias_of_another_paper_is_cited_with_its_own(tmp_path):
    records = records_of({"lff:ensemble=5": LFF[:1], "pgd:score=disagreement,tau=2": PGD[:1], "disen": PGD[:1]})
    text = report.bibtex(store(tmp_path, records))
    found = ["ahn2023pgd", "han2024dpr", "nam2020lff", "lee2023biasensemble", "lee2021disen"]
    assert re.findall(r"@\w+\{(\w+),", text) == found


def test_a_csv_of_results_reads_as_the_table_that_was_written(made):
    folder, _ = made
    again = pd.read_csv(io.StringIO((folder / "tables" / "results.csv").read_text(encoding="utf-8")))
    assert compare(again, reference="vanilla")["welch"].tolist() == pytest.approx(
        [welch(VALUES[method], VANILLA) for method in ("pgd:score=loss", "lff", "disen")]
    )


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_csv_of_a_frame_is_that_of_pandas(monkeypatch, at_once):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", at_once)
    frame = pd.DataFrame({
        "float": [0.0, -0.0, math.nan, 1e-5, 1e22], "mixed": [1, True, 1.0, None, "x"], "whole": [1, 2, 3, 4, 5],
        "text": ["plain", "a,b", 'say "x"', "-3", None], "yes": [True, False, True, True, False],
        "a,b": [(1, 2), (1.0, 2), None, [1], "l"], "perhaps": [True, None, False, True, None], "same": ["x"] * 5,
    })  # fmt: skip
    assert "".join(tables.frame_csv(frame)) == frame.to_csv(index=False, lineterminator="\n")
    assert "".join(tables.frame_csv(frame.iloc[:0])) == frame.iloc[:0].to_csv(index=False, lineterminator="\n")


def test_holm_is_over_all_comparisons_of_the_table():
    records = records_of({"vanilla": VANILLA, "pgd": PGD})
    more = []
    for one in records_of({"vanilla": VANILLA, "pgd": PGD}):
        one = changed(one, data=dataclasses.replace(one.result.data, fingerprint="other"))
        more.append(dataclasses.replace(one, cell=dataclasses.replace(one.cell, dataset_title="cmnist5k:rho=0.05")))
    single = compare(to_frame(records), reference="vanilla").welch.iloc[0]
    both = compare(to_frame([*records, *more]), reference="vanilla")
    assert both.welch.tolist() == [single, single]
    assert both.welch_holm.tolist() == [2 * single, 2 * single]


def test_a_report_goes_on_with_the_reference_and_order_of_the_run(tmp_path):
    store(tmp_path, records_of({"pgd": PGD, "vanilla": VANILLA}))
    asked = Experiment("", ["vanilla", "pgd"], ["cmnist5k"], reference="vanilla")
    write_grid(tmp_path, asked, ["vanilla", "pgd:score=loss", "pgd"])
    found = report.make(tmp_path, figures=False)
    assert found.table("comparison").rows[0][0].value == "vanilla"
    assert "better than vanilla" in " ".join(found.table("tests").notes)
