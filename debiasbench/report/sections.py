"""The tables of the report, one function each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from debiasbench.evaluation.own import is_own_metric
from debiasbench.evaluation.selection import SELECTION_RULES, direction, uses_bias_labels
from debiasbench.parameters import write_value
from debiasbench.records import Record
from debiasbench.report.budgets import declared
from debiasbench.report.phrases import Phrase, joined
from debiasbench.report.results import (
    Measure,
    data_seed,
    dataset_title,
    distinct,
    headline_of,
    headlines,
    machines_of,
    ranks,
    runs,
    summaries,
    text_of,
    unofficial,
)
from debiasbench.report.statistics import FEWEST_DATASETS, FEWEST_METHODS, LEVEL, rank_test, smallest_p
from debiasbench.report.tables import (
    DATASET,
    KNOWS,
    MARKED,
    METHOD,
    NOTHING,
    ORACLE,
    TIE,
    Column,
    Entry,
    Table,
    count,
    number,
    p_value,
    percent,
    words,
)


def marked(table: Table, knowing: set[str]) -> Table:
    """The table with a mark after the methods that train with bias labels."""
    keys = [column.key for column in table.columns]
    rows = [
        [
            replace(entry, mark=KNOWS) if key == "method" and entry.value in knowing else entry
            for key, entry in zip(keys, row, strict=True)
        ]
        for row in table.rows
    ]
    return replace(table, rows=rows)


def comparison_table(
    table: pd.DataFrame, records: list[Record], measures: list[Measure], *, by: str = "dataset"
) -> Table:
    """Methods x measures: mean and spread on test, and n. `by`: columns are grouped by "dataset" or "metric"."""
    methods = table.method.unique().tolist()
    found = summaries(table, measures)
    rows = []
    for method in methods:
        row = words(method)
        for measure in measures:
            one = found[measure]
            if method not in one.index:
                row += [NOTHING, count(0)]
                continue
            values = one.loc[method]
            entry = percent(values["mean"], values["std"], values["count"])
            row += [replace(entry, best=bool(values["best"]), tied=bool(values["tied"])), count(int(values["count"]))]
        rows.append(row)
    heads = [METHOD]
    for measure in measures:
        of_data, of_metric = parts_of_head(table, measure)
        heading = Phrase("{} {} (%)", of_data, of_metric)
        of_metric = f"{of_metric} (%)"
        group, part = (of_data, of_metric) if by == "dataset" else (of_metric, of_data)
        heads.append(Column(_key(measure), heading, spread=True, group=group, part=part))
        heads.append(Column(f"{_key(measure)} n", "n", counts_runs=True, group=group, part="n"))
    rules = "; ".join(dict.fromkeys("last epoch" if one.select == "last" else text_of(one.select) for one in measures))
    counts = {int(n) for one in found.values() for n in one["count"]}
    notes = [
        f"Test split, {rules}. Mean ± sample standard deviation (n - 1) over {n_runs(counts)}; best in bold. "
        f"{TIE}: statistically indistinguishable from the best (one-sided Welch tests of the best, chosen after the "
        "fact, against each method; p at least .05 after Holm's correction over this table)."
        + _lower(measure.metric for measure in measures)
    ]
    if any(uses_bias_labels(measure.select) for measure in measures):
        notes.append(f"{ORACLE} selects the epoch with bias labels or on the test split: never a headline.")
    notes += _untested(found) + _few_runs(found) + _machine_notes(table) + _recipe_notes(records) + _data_notes(records)
    return Table("comparison", "Comparison", heads, rows, notes, in_caption=1)


def n_runs(counts: set[int]) -> str:
    """`n = 5 runs`; without the number if it differs between entries."""
    return "n runs" if len(counts) != 1 else f"n = {min(counts)} run{'' if counts == {1} else 's'}"


def _key(measure: Measure) -> str:
    return f"{measure.dataset} {measure.metric}" + ("" if measure.select == "last" else f" {measure.select}")


def _head(table: pd.DataFrame, measure: Measure) -> str:
    """`cmnist5k acc_unbiased`, marked if the data are not the published ones, with the rule if it is not `last`."""
    return Phrase("{} {}", *parts_of_head(table, measure))


def parts_of_head(table: pd.DataFrame, measure: Measure) -> tuple[str, str]:
    """The two parts of a heading: the dataset, marked if it is not the published data; the metric and the rule."""
    mark = MARKED if measure.dataset in unofficial(table) else ""
    return Phrase("{dataset}{}", mark, dataset=measure.dataset), metric_of(measure)


def metric_of(measure: Measure) -> str:
    """The metric, and the rule where it is not the last epoch; marked if that uses bias labels or the test split."""
    rule = "" if measure.select == "last" else f", {measure.select}"
    return measure.metric + rule + (ORACLE if uses_bias_labels(measure.select) else "")


def ranks_table(table: pd.DataFrame, measures: list[Measure]) -> Table | None:
    """Ranks of the methods, shared if no test separates them, and their means over datasets; None for one method."""
    methods = table.method.unique().tolist()
    if len(methods) < 2:
        return None
    shared, means = ranks(table, measures), means_of(table, measures)
    datasets = one_a_dataset(measures)
    by_mean = [stats.rankdata(-row, method="min", nan_policy="omit") for row in means]
    test = rank_test(means_of(table, datasets))
    several = len(datasets) > 1
    rows = []
    for index in pd.DataFrame(by_mean).mean().sort_values(kind="stable").index:  # a method without runs comes last
        row = words(methods[index])
        for rank, tied in ((one[index], shared.iloc[index, column]) for column, one in enumerate(by_mean)):
            row.append(Entry(float(rank), f"{rank:.0f} ({tied:.0f})") if tied == tied else NOTHING)
        rows.append([*row, *([number(test.ranks[index], "{:.2f}".format)] if several else [])])
    notes = [
        "Rank by mean, and in brackets 1 + the number of methods that are significantly better (one-sided Welch tests, "
        "Holm over both directions of all pairs of this table). Methods that do not differ significantly share this "
        "rank, even if no test was possible. A method with a large spread differs significantly from few others."
        + _lower(measure.metric for measure in measures)
    ]
    if several:
        notes.append(
            f"average: mean of the ranks by mean over the {test.n_datasets} datasets on which all methods have runs, "
            "by the first column of each. "
            + (
                f"Friedman's test in Iman and Davenport's form: p {p_value(test.p)}; averages that differ by at least "
                f"{test.difference:.2f} differ significantly (Nemenyi, level .05)."
                if test.tested
                else f"Not tested: a test needs at least {FEWEST_METHODS} methods and {FEWEST_DATASETS} datasets."
            )
        )
    heads = [METHOD, *(Column(_key(measure), _head(table, measure)) for measure in measures)]
    heads += [Column("average", "average")] if several else []
    return Table("ranks", "Ranks", heads, rows, notes, in_caption=len(notes))


def one_a_dataset(measures: list[Measure]) -> list[Measure]:
    """The first measure of each dataset, because several measures of one dataset are not independent evidence."""
    return list({measure.dataset: measure for measure in reversed(measures)}.values())[::-1]


def means_of(table: pd.DataFrame, measures: list[Measure]) -> np.ndarray:
    """Mean of each method in each measure, (measures, methods), to rank by: negative if lower is better.

    nan if a method has no run.
    """
    methods = table.method.unique().tolist()
    found = [runs(table, measure.dataset, measure.metric, select=measure.select) for measure in measures]
    signs = np.array([[measure.direction] for measure in measures])
    return signs * np.array([[one[one.method == method].value.mean() for method in methods] for one in found])


def _lower(metrics: Iterable[str]) -> str:
    """The sentence of a note on metrics of which lower is better; "" if there are none."""
    names = [metric for metric in dict.fromkeys(metrics) if direction(metric) < 0]
    return f" Lower is better: {', '.join(names)}." if names else ""


def _untested(found: dict[Measure, pd.DataFrame]) -> list[str]:
    """A note on methods that the best was not tested against, for which a missing ~ means nothing."""
    parts = []
    for measure, one in found.items():
        names = joined(", ", (Phrase("{method}", method=method) for method in one.index[one.untested]))
        where = Phrase(" ({dataset}{})", _key(measure).removeprefix(measure.dataset), dataset=measure.dataset)
        parts += [Phrase("{}{}", names, where if len(found) > 1 else "")] if names else []
    told = "The best was not tested against {}: a test needs two runs of each method, and some spread."
    return [Phrase(told, joined("; ", parts))] if parts else []


def _machine_notes(table: pd.DataFrame) -> list[str]:
    """Notes on datasets whose runs have several kinds of device or precisions."""
    notes: list[str] = []
    for dataset, rows in table.groupby("dataset", sort=False):
        machines = machines_of(rows)
        if len(machines) > 1:
            listed = ", ".join(machines[:-1])
            told = "{dataset}: this table has runs {} and {}; they are not paired."
            notes.append(Phrase(told, listed, machines[-1], dataset=dataset))
    return notes


def _few_runs(found: dict[Measure, pd.DataFrame]) -> list[str]:
    smallest = min((int(one["count"].min()) for one in found.values() if len(one)), default=0)
    if smallest < 2:
        return ["Some methods have a single run, so there is no spread and no test: run more seeds."]
    if smallest < 5:
        return [f"With n = {smallest}, only gaps of several standard deviations can become significant."]
    return []


def _recipe_notes(records: list[Record]) -> list[str]:
    """Notes on methods with recipe values of their own, tuned values, or bias labels."""
    from debiasbench.methods import registry

    notes: list[str] = []
    for cell in (record.cell for record in records):
        method, on_data = cell.method_title, {"method": cell.method_title, "dataset_name": cell.dataset}
        if cell.recipe_changes:
            changes = ", ".join(f"{key} {value}" for key, value in cell.recipe_changes.items())
            notes.append(Phrase("{method} on {dataset_name} has recipe values of its own: {}.", changes, **on_data))
        cls = registry.classes().get(cell.method)
        values = {**cell.recipe, **cell.method_parameters}
        if cell.tuned:
            searched = (
                [f"{key} {write_value(values[key])}" for key in cls.search_space() if key in values] if cls else []
            )
            where = {"method": method, "dataset": cell.dataset_title}
            notes.append(Phrase("{method} on {dataset}: {} ({}).", ", ".join(searched), cell.tuned.words, **where))
        used = ", ".join(f"{key} {value}" for key, value in declared(cell).items())
        if used:
            notes.append(Phrase("{method} on {dataset_name}: tuned with bias knowledge ({}).", used, **on_data))
        if cls and cls.needs_bias_labels:
            more = " and on validation samples" if cls.trains_on_validation else ""
            told = f"{KNOWS} {{method}} trains with bias labels{more}: an oracle baseline, not a competitor."
            notes.append(Phrase(told, method=method))
    return list(dict.fromkeys(notes))


def _data_notes(records: list[Record]) -> list[str]:
    counted, notes = distinct(records), list[str]()
    for name in dict.fromkeys(dataset_title(record.cell) for record in records):
        n_all, n_counted = (sum(dataset_title(one.cell) == name for one in some) for some in (records, counted))
        if n_counted < n_all:
            told = "{dataset}: some data seeds give equal data. Runs of one method and seed on equal data count once: "
            notes.append(Phrase(told + f"{n_counted:,} of {n_all:,}.", dataset=name))
    for record in counted:
        assert record.result is not None
        data, name = record.result.data, dataset_title(record.cell)
        if not data.official:
            counts = ", ".join(f"{split} {part.n:,}" for split, part in data.splits.items())
            note = f" {data.note}" if data.note.strip() else ""
            notes.append(
                Phrase(f"{MARKED} {{dataset}}: not the published data ({{}}).{{}}", counts, note, dataset=name)
            )
        elif data.note:
            notes.append(Phrase("{dataset}: {}", data.note, dataset=name))
    seeds = {data_seed(record.cell) for record in counted}
    if len(seeds) == 1:
        notes.append(
            f"All runs share one draw of the data (data seed {seeds.pop()}): the tests say nothing about other draws."
        )
    return list(dict.fromkeys(notes))


def selection_table(table: pd.DataFrame, dataset: str) -> Table:
    """One dataset: all selection rules, and the accuracies on aligned and conflicting samples at the last epoch."""
    table = table[table.dataset == dataset]
    metric = headline_of(table, dataset)
    there = table["select"].dropna().unique()
    rules = [
        rule
        for rule in dict.fromkeys([*SELECTION_RULES, *there])
        if table[table["select"] == rule][metric].notna().any()
    ]
    others = headlines(table["dataset.name"].iloc[0])[1:]
    parts = [
        name
        for name in table.columns
        if name.startswith(("acc_aligned", "acc_conflict")) or name in others or is_own_metric(name)
    ]
    parts = [name for name in parts if table[name].notna().any()]
    shown = [*((rule, metric) for rule in rules), *(("last", name) for name in parts)]
    found = [dict(list(runs(table, dataset, name, select=rule).groupby("method"))) for rule, name in shown]
    rows = []
    for method in table.method.unique():
        row = words(method)
        for (_, name), of_method in zip(shown, found, strict=True):
            chosen = of_method.get(method)
            if chosen is None:
                row.append(NOTHING)
                continue
            values = chosen.value
            entry = percent(values.mean(), values.std(), len(values))
            if name == "acc_worst" and "n_worst" in chosen:
                entry = replace(entry, text=f"{entry.text} (n {chosen.n_worst.min():.0f})")
            row.append(entry)
        rows.append(row)
    marks = {rule: ORACLE if uses_bias_labels(rule) else "" for rule in rules}
    columns = [METHOD, *(Column(rule, f"{rule}{marks[rule]}", spread=True) for rule in rules)]
    columns += [Column(f"{name} last", f"{name}, last", spread=True) for name in parts]
    counts = {len(runs_of) for of_method in found for runs_of in of_method.values()}
    notes = [
        f"Test {metric} (%) at the epoch that each rule selects, mean ± sample standard deviation (n - 1) over "
        f"{n_runs(counts)}. " + " ".join(f"{rule}: {text_of(rule)}." for rule in rules)
    ]
    if any(marks.values()):
        notes.append(f"{ORACLE} selects the epoch with bias labels or on the test split: never a headline.")
    title = Phrase("Selection rules on {dataset}", dataset=dataset)
    return Table(f"selection-{dataset}", title, columns, rows, notes, in_caption=1)


def identification_table(records: list[Record]) -> Table | None:
    """How well the per-sample values of each method find the conflicting samples; None if no method logged any."""
    found = []
    for record in distinct(records):
        assert record.result is not None
        for name, numbers in record.result.identification.items():
            found.append({**numbers, "dataset": dataset_title(record.cell), "method": record.cell.method_title,
                          "values": name})  # fmt: skip
    if not found:
        return None
    frame = pd.DataFrame(found)
    names = [name for name in frame.columns if name not in ("dataset", "method", "values", "n_selected")]
    mean = frame.groupby(["dataset", "method", "values"], sort=False)[names].mean()
    rows = [
        [*words(*index), *(number(value, "{:.3f}".format) for value in row)]
        for index, row in zip(mean.index, mean.to_numpy(), strict=True)
    ]
    columns = [DATASET, METHOD, Column("values", "values", numeric=False), *(Column(name, name) for name in names)]
    notes = [
        "How well per-sample values find the conflicting training samples, mean over runs. conflict_mass: fraction of "
        "the total score on conflicting samples. precision_at_n: precision among the n highest scores, where n is the "
        "number of conflicting samples."
    ]
    return Table("identification", "Bias identification", columns, rows, notes, in_caption=1)


def tests_table(tests: pd.DataFrame) -> Table:
    """The tests of every method against the reference, with their metrics if a dataset has several."""
    several = bool((tests.groupby("dataset")[["metric", "select"]].nunique() > 1).to_numpy().any())
    rows = []
    for test in tests.to_dict("records"):
        low, high = test["low"], test["high"]
        measured = [test["metric"] + ("" if test["select"] == "last" else f", {test['select']}")] if several else []
        row = words(test["dataset"], *measured, test["method"])
        row.append(Entry(test["n_a"], f"{test['n_a']} / {test['n_b']}"))
        row.append(number(test["gap"], lambda gap: f"{100 * gap:+.2f}"))
        row.append(NOTHING if low != low else Entry(low, f"{100 * low:+.1f} .. {100 * high:+.1f}"))
        shown = ("welch", "welch_holm", "paired", "paired_holm", "wilcoxon", "sign_flip")
        row += [number(test[key], p_value) for key in shown]
        row.append(number(test["effect_size"], "{:.1f}".format))
        row.append(number(test["detectable"], lambda gap: f"{100 * gap:.1f}"))
        row.append(number(test["correlation"], "{:.2f}".format))
        rows.append(row)
    headings = {
        "n": "n", "gap": "gap", "low": "95 % interval", "welch": "p Welch", "welch_holm": "Holm",
        "paired": "p paired", "paired_holm": "Holm", "wilcoxon": "p Wilcoxon",
        "sign_flip": "p sign flip", "effect_size": "g", "detectable": "detectable", "correlation": "r",
    }  # fmt: skip
    columns = [DATASET, *([Column("metric", "metric", numeric=False)] if several else []), METHOD]
    columns += [Column(key, heading) for key, heading in headings.items()]
    metrics = ", ".join(tests.metric.unique())
    lower = _lower(tests.metric)
    asked = "Is the method better than {method}? Gaps in percentage points of {}. One-sided tests: Welch is "
    notes = [
        Phrase(
            asked
            + "the headline, the others are paired by seed on equal data. Holm over the comparisons of this table.{}",
            metrics,
            lower,
            method=tests.reference.iloc[0],
        ),
        "g: Hedges' g, an effect size. detectable: the smallest gap, in percentage points, that this many runs can "
        "find with 80 % power after correction. r: correlation of the pairs.",
    ]
    return Table("tests", "Tests against the reference", columns, rows, notes + _dashes(tests), in_caption=2)


def _dashes(tests: pd.DataFrame) -> list[str]:
    """Notes that explain the dashes for p."""
    notes = []
    several = tests[["n_a", "n_b"]].min(axis=1) >= 2
    if not several.all():
        notes.append("A dash for p: a test needs at least two runs of both methods.")
    tested = tests[several]
    if tested.welch.isna().any():
        notes.append(
            "A dash for p Welch: within each method all runs are equal. Without spread there is no test, interval, "
            "effect size or detectable gap."
        )
    if (tested.n_pairs < 2).any():
        notes.append(
            "A dash for the paired tests: they need at least two pairs of runs with equal seed, data, kind of device "
            "and precision."
        )
    paired = tested[tested.n_pairs >= 2]
    if paired.paired.isna().any():
        notes.append("A dash for p paired: all differences are equal, so there is no spread and no test.")
    level = LEVEL / len(tests)
    for n in sorted(paired.n_pairs.unique()):
        if smallest_p(n) > level:
            notes.append(
                f"With {n} pairs, p of Wilcoxon and sign flip cannot go below {_short(smallest_p(n))}, but the level "
                f"after correction is {_short(level)}: they always show a dash."
            )
    if paired[paired.n_pairs.map(smallest_p) <= level].sign_flip.isna().any():
        notes.append("A dash for Wilcoxon and sign flip: no pair of runs differs.")
    return notes


def _short(p: float) -> str:
    return f"{p:.3g}".lstrip("0")
