"""The tables of the report, a function each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from debiasbench.evaluation.metrics import SELECTION_RULES, USES_BIAS_LABELS
from debiasbench.report.results import (
    Column,
    dataset_title,
    headline_of,
    ranks,
    runs,
    summaries,
)
from debiasbench.report.statistics import FEWEST_DATASETS, FEWEST_METHODS, rank_test
from debiasbench.report.tables import (
    MARKED,
    Table,
    number,
    p_value,
    percent,
)

TIE, ORACLE, KNOWS = "~", "§", "‡"


def marked(table: Table, knowing: set[str]) -> Table:
    """The table with a mark behind the methods that know the bias."""
    rows = [
        [
            (text + KNOWS, best) if place < 2 and text in knowing else (text, best)
            for place, (text, best) in enumerate(row)
        ]
        for row in table.rows
    ]
    return replace(table, rows=rows)


def comparison_table(table: pd.DataFrame, records: list[dict[str, Any]], columns: list[Column]) -> Table:
    """Methods x columns: mean and spread on test, and n."""
    methods = list(dict.fromkeys(table.method))
    found = summaries(table, columns)
    rows = []
    for method in methods:
        row = [(method, False)]
        for column in columns:
            one = found[column]
            if method not in one.index:
                row += [("-", False), ("0", False)]
                continue
            values = one.loc[method]
            text = percent(values["mean"], values["std"], values["count"]) + (f" {TIE}" if values["tied"] else "")
            row += [(text, bool(values["best"])), (f"{values['count']:.0f}", False)]
        rows.append(row)
    heads = ["method"]
    for column in columns:
        heads += [f"{_head(table, column)} (%)", "n"]
    rules = "; ".join(
        dict.fromkeys("last epoch" if one.select == "last" else SELECTION_RULES[one.select] for one in columns)
    )
    notes = [
        f"Test split, {rules}. Mean ± sample standard deviation (n - 1) over n runs; best in bold. "
        f"{TIE}: not separable from the best (one-sided Welch test of the best against it, chosen after the fact, "
        "p of at least .05 after Holm's correction over this table)."
    ]
    if any(column.select in USES_BIAS_LABELS for column in columns):
        notes.append(f"{ORACLE} selects with bias labels or on the test split: never a headline.")
    notes += _few_runs(found) + _recipe_notes(records) + _data_notes(records)
    return Table("Comparison", heads, rows, notes)


def _head(table: pd.DataFrame, column: Column) -> str:
    """`cmnist5k acc_unbiased`, marked where the data are not the published ones; with the rule where it is no last."""
    mark = "" if table[table.dataset == column.dataset].official.all() else MARKED
    rule = (
        "" if column.select == "last" else f", {column.select}" + (ORACLE if column.select in USES_BIAS_LABELS else "")
    )
    return f"{column.dataset}{mark} {column.metric}{rule}"


def ranks_table(table: pd.DataFrame, columns: list[Column]) -> Table | None:
    """Ranks of the methods, shared by what no test separates, and their averages over datasets; None for one method."""
    methods = list(dict.fromkeys(table.method))
    if len(methods) < 2:
        return None
    shared, means = ranks(table, columns), means_of(table, columns)
    datasets = one_a_dataset(columns)
    by_mean = [stats.rankdata(-row, method="min", nan_policy="omit") for row in means]
    test = rank_test(means_of(table, datasets))
    several = len(datasets) > 1
    rows = []
    for place in pd.DataFrame(by_mean).mean().sort_values(kind="stable").index:  # a method without runs comes last
        pairs = [(row[place], shared.iloc[place, column]) for column, row in enumerate(by_mean)]
        texts = [methods[place], *(f"{rank:.0f} ({tied:.0f})" if tied == tied else "-" for rank, tied in pairs)]
        rows.append([(text, False) for text in [*texts, *([number(test.ranks[place], 2)] if several else [])]])
    notes = [
        "Rank by mean, and in brackets 1 + how many methods are separably better (one-sided Welch tests, Holm over "
        "both directions of all pairs of this table): methods that no test tells apart share it. A method whose runs "
        "spread widely is separable from few."
    ]
    if several:
        notes.append(
            f"average: of ranks by mean, over the {test.n_datasets} datasets on which all methods have runs, in the "
            "first column of each. "
            + (
                f"Friedman's test in Iman and Davenport's form: p {p_value(test.p)}; averages that differ by at least "
                f"{test.difference:.2f} are separable (Nemenyi, level .05)."
                if test.tested
                else f"No test of them: it takes at least {FEWEST_METHODS} methods and {FEWEST_DATASETS} datasets."
            )
        )
    heads = ["method", *(_head(table, column) for column in columns), *(["average"] if several else [])]
    return Table("Ranks", heads, rows, notes)


def one_a_dataset(columns: list[Column]) -> list[Column]:
    """The first column of each dataset: several of one dataset are no independent evidence."""
    return list({column.dataset: column for column in reversed(columns)}.values())[::-1]


def means_of(table: pd.DataFrame, columns: list[Column]) -> np.ndarray:
    """Mean of each method in each column, (columns, methods); nan where it has no run."""
    methods = list(dict.fromkeys(table.method))
    found = [runs(table, column.dataset, column.metric, select=column.select) for column in columns]
    return np.array([[one[one.method == method].value.mean() for method in methods] for one in found])


def _few_runs(found: dict[Column, pd.DataFrame]) -> list[str]:
    smallest = min((int(one["count"].min()) for one in found.values() if len(one)), default=0)
    if smallest < 2:
        return ["Some methods have a single run: no spread and no test; run more seeds."]
    if smallest < 5:
        return [f"With n = {smallest} only gaps of several standard deviations can be told from chance."]
    return []


def _recipe_notes(records: list[dict[str, Any]]) -> list[str]:
    """Where a method trains otherwise than its dataset, or was tuned with bias knowledge."""
    from debiasbench.methods import registry

    notes = []
    for record in records:
        cell = record["cell"]
        if cell["recipe_changes"]:
            changes = ", ".join(f"{key} {value}" for key, value in cell["recipe_changes"].items())
            notes.append(f"{cell['method_title']} on {cell['dataset']} trains with its own {changes}.")
        cls = registry.classes().get(cell["method"])
        values = {**cell["recipe"], **cell["method_parameters"]}
        tuned = cls.tuned.get(cell["dataset"], {}) if cls else {}
        used = ", ".join(f"{key} {value}" for key, value in tuned.items() if values.get(key) == value)
        if used:
            notes.append(f"{cell['method_title']} on {cell['dataset']}: tuned with bias knowledge ({used}).")
        if cls and cls.needs_bias_labels:
            where = ", and on the validation samples" if cls.trains_on_validation else ""
            notes.append(
                f"{KNOWS} {cell['method_title']} trains with bias labels{where}: a reference, not a competitor."
            )
    return list(dict.fromkeys(notes))


def _data_notes(records: list[dict[str, Any]]) -> list[str]:
    notes = []
    for record in records:
        data, name = record["result"]["data"], dataset_title(record["cell"])
        if not data["official"]:
            counts = ", ".join(f"{split} {part['n']:,}" for split, part in data["splits"].items())
            notes.append(f"{MARKED} {name}: not the published data ({counts}). {data['note']}".strip())
    seeds = {record["cell"]["dataset_parameters"].get("data_seed", 0) for record in records}
    if len(seeds) == 1:
        notes.append(f"All runs share one drawing of the data (data seed {seeds.pop()}): inference is about that one.")
    return list(dict.fromkeys(notes))


def _headlines_of(table: pd.DataFrame, dataset: str) -> list[str]:
    """All headline metrics of a dataset that the table has."""
    from debiasbench.datasets import registry

    cls = registry.classes().get(table.loc[table["dataset"] == dataset, "dataset.name"].iloc[0])
    return [name for name in (cls.headline if cls else ("acc_avg",)) if name in table]


def selection_table(table: pd.DataFrame, dataset: str) -> Table:
    """One dataset: every selection rule, and the accuracies on aligned and conflicting samples at the last epoch."""
    metric = headline_of(table, dataset)
    rules = [
        rule
        for rule in SELECTION_RULES
        if table[(table.dataset == dataset) & (table["select"] == rule)][metric].notna().any()
    ]
    others = _headlines_of(table, dataset)[1:]
    parts = [name for name in table.columns if name.startswith(("acc_aligned", "acc_conflict")) or name in others]
    parts = [name for name in parts if table[table.dataset == dataset][name].notna().any()]
    rows = []
    for method in dict.fromkeys(table[table.dataset == dataset].method):
        row = [(method, False)]
        for rule, name in [*((rule, metric) for rule in rules), *(("last", name) for name in parts)]:
            chosen = runs(table, dataset, name, select=rule).query("method == @method")
            values = chosen.value
            text = percent(values.mean(), values.std(), len(values))
            if name == "acc_worst" and len(values):
                text += f" (n {chosen.n_worst.min():.0f})"
            row.append((text, False))
        rows.append(row)
    marks = {rule: ORACLE if rule in USES_BIAS_LABELS else "" for rule in rules}
    columns = ["method", *(f"{rule}{marks[rule]}" for rule in rules), *(f"{name}, last" for name in parts)]
    notes = [
        f"Test {metric} (%) of the epoch that each rule selects. "
        + "; ".join(f"{rule}: {SELECTION_RULES[rule]}" for rule in rules)
        + "."
    ]
    if any(marks.values()):
        notes.append(f"{ORACLE} selects with bias labels or on the test split: never a headline.")
    return Table(f"Selection rules on {dataset}", columns, rows, notes)


def identification_table(records: list[dict[str, Any]]) -> Table | None:
    """How well each method's per-sample values find the conflicting samples; None if no method has any."""
    rows = []
    for record in records:
        for name, numbers in record["result"]["identification"].items():
            key = {"dataset": dataset_title(record["cell"]), "method": record["cell"]["method_title"], "values": name}
            rows.append({**key, **numbers})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    numbers = [name for name in frame.columns if name not in ("dataset", "method", "values", "n_selected")]
    mean = frame.groupby(["dataset", "method", "values"], sort=False)[numbers].mean()
    text = [
        [*((str(part), False) for part in index), *((f"{v:.3f}" if v == v else "-", False) for v in row)]
        for index, row in zip(mean.index, mean.to_numpy(), strict=True)
    ]
    notes = [
        "Per-sample values against the true conflicts of the training set, mean over runs. conflict_mass: share of "
        "the total score on conflicting samples. precision_at_n: among the n highest, n the number of conflicts."
    ]
    return Table("Bias identification", ["dataset", "method", "values", *numbers], text, notes)


def tests_table(tests: pd.DataFrame) -> Table:
    """The tests of every method against the reference."""
    rows = []
    for test in tests.to_dict("records"):
        interval = "-" if test["low"] != test["low"] else f"{100 * test['low']:+.1f} .. {100 * test['high']:+.1f}"
        gap = "-" if test["gap"] != test["gap"] else f"{100 * test['gap']:+.2f}"
        texts = [
            test["dataset"], test["method"], f"{test['n_a']} / {test['n_b']}", gap, interval,
            *(p_value(test[name]) for name in ("welch", "welch_holm", "paired", "paired_holm", "wilcoxon")),
            number(test["effect_size"]), number(100 * test["detectable"]), number(test["correlation"], 2),
        ]  # fmt: skip
        rows.append([(text, False) for text in texts])
    columns = ["dataset", "method", "n", "gap", "95 % interval", "p Welch", "Holm", "p paired", "Holm"]
    columns += ["p Wilcoxon", "g", "detectable", "r"]
    metrics = ", ".join(tests.metric.unique())
    notes = [
        f"Is the method better than {tests.reference.iloc[0]}? Gaps in points of {metrics}. One-sided tests; Welch is "
        "the headline, paired is by seed on equal data; Holm over the comparisons of this table.",
        "g: Hedges' effect size. detectable: the smallest gap in points that these runs find with 80 % power after "
        "correction. r: correlation of the pairs.",
    ]
    if (tests[["n_a", "n_b"]].min(axis=1) < 2).any():
        notes.append("A dash for p: a test needs at least two runs of both methods.")
    if tests.wilcoxon.isna().any():
        notes.append("A dash for Wilcoxon: with so few pairs it cannot reach the corrected level, whatever the values.")
    return Table("Tests against the reference", columns, rows, notes)
