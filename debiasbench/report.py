"""Tables, tests and figures from records alone, also from somebody else's, also while cells still run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from debiasbench.errors import BenchmarkError
from debiasbench.evaluate import SELECTION_RULES, USES_BIAS_LABELS
from debiasbench.experiments import Experiment
from debiasbench.outcomes import outcome
from debiasbench.page import page
from debiasbench.parameters import nearest
from debiasbench.records import read_records, read_scores, write_atomically
from debiasbench.results import (
    Column,
    bias_knowing,
    compare_columns,
    dataset_label,
    headline_of,
    ranks,
    runs,
    summaries,
    to_frame,
)
from debiasbench.statistics import FEWEST_DATASETS, FEWEST_METHODS, rank_test
from debiasbench.tables import (
    LATEX_DOCUMENT,
    LATEX_NEEDS,
    MARKED,
    Table,
    csv,
    latex,
    markdown,
    number,
    p_value,
    percent,
)

TIE, ORACLE, KNOWS = "~", "§", "‡"


@dataclass(frozen=True)
class Report:
    """What `make` found and wrote."""

    tables: list[Table]
    paths: dict[str, list[Path]]  # kind -> files
    failed: list[dict[str, Any]]
    complaints: list[str]


@dataclass(frozen=True)
class Shown:
    """What the comparison shows: its datasets and methods (labels; none: all), metrics (none: headlines), rules."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    select: tuple[str, ...] = ("last",)


def make(  # noqa: PLR0913 - the report's options
    results_dir: Path,
    *,
    reference: str | None = None,
    keep: Callable[[dict[str, Any]], bool] | None = None,
    order: list[str] | None = None,
    figures: bool = True,
    shown: Shown | None = None,
    experiment: Experiment | None = None,
    data_dir: Path | None = None,
) -> Report:
    """Read the records below `results_dir` and write tables, figures and `report.html` beside them.

    Args:
        results_dir: a results folder, or any folder of records.
        reference: the method that the others are tested against; default: the first.
        keep: which records take part (those of one grid, say); default: all.
        order: method labels in the order wanted; others follow.
        shown: methods, datasets, metrics and selection rules of the comparison.
        experiment: whose table and figure are made as well, beside the paper's numbers.
        data_dir: for experiments that look at the data again.

    Raises:
        BenchmarkError: no records; records that must not be mixed; a name that is not there.
    """
    source = results_dir / "records" if (results_dir / "records").is_dir() else results_dir
    if not source.is_dir():
        raise BenchmarkError(f"There is no results folder {results_dir}.")
    shown = shown or Shown()
    records, complaints = read_records(source)
    records = [record for record in records if keep is None or keep(record)]
    if not records:
        raise BenchmarkError("\n".join([f"There are no records in {results_dir}.", *complaints]))
    if keep is None:
        saved = read_grid(results_dir)
        reference, order = reference or saved.get("reference"), order or saved.get("order")
        experiment = experiment or _saved_experiment(saved)
    rank = {label: place for place, label in enumerate(order or [])}
    records.sort(key=lambda record: rank.get(record["cell"]["method_label"], len(rank)))
    known = list(dict.fromkeys(record["cell"]["method_label"] for record in records))
    if reference is not None and reference not in known and keep is None and reference == saved.get("reference"):
        reference = None  # the last grid's, whose records are elsewhere
    if reference is not None and reference not in known:
        raise BenchmarkError(
            f"No results of the reference '{reference}'.{nearest(reference, known)} There are: {', '.join(known)}."
        )
    records = _chosen(records, shown)
    done = [record for record in records if record["status"] == "done"]
    failed = [record for record in records if record["status"] != "done"]
    if not done:
        html = page("debiasbench", [], [], records, notes=complaints)
        return Report([], {"report": [_write(results_dir / "report.html", html)]}, failed, complaints)
    table = to_frame(done)
    columns = _columns(table, shown)
    paths: dict[str, list[Path]] = {"records": [source]}
    tables = [comparison_table(table, done, columns)]
    tables += [selection_table(table, dataset) for dataset in dict.fromkeys(table.dataset)]
    tables += [part for part in (ranks_table(table, columns), identification_table(done)) if part]
    methods = list(dict.fromkeys(table.method))
    if len(methods) > 1:
        tests = compare_columns(table, columns, reference=reference if reference in methods else None)
        tables += [tests_table(tests)] if len(tests) else []
        paths["tests"] = [_write(results_dir / "tables" / "tests.csv", tests.to_csv(index=False))]
    tables = [_marked(one, bias_knowing(table)) for one in tables]
    drawn = draw(table, done, columns, results_dir / "figures") if figures else []
    if experiment is not None:
        found = outcome(experiment, results_dir, data_dir, order=methods)
        complaints += found.complaints
        tables = [*found.tables, *tables]
        drawn = [*found.figures, *drawn]
        if found.lines is not None:
            path = results_dir / "tables" / f"{experiment.name}.csv"
            paths["beside the paper"] = [_write(path, found.lines.to_csv(index=False))]
    body = {
        "comparison.md": "\n\n".join(markdown(one) for one in tables) + "\n",
        "comparison.tex": LATEX_NEEDS + "\n\n".join(map(latex, tables)) + "\n",
        "document.tex": LATEX_DOCUMENT,
        "comparison.csv": csv(next(one for one in tables if one.title == "Comparison")),
        "results.csv": table.to_csv(index=False),
    }
    paths["tables"] = [_write(results_dir / "tables" / name, text) for name, text in body.items()]
    if drawn:
        paths["figures"] = drawn
    html = page("debiasbench", tables, drawn, records, notes=complaints)
    paths["report"] = [_write(results_dir / "report.html", html)]
    return Report(tables, paths, failed, complaints)


def _marked(table: Table, knowing: set[str]) -> Table:
    """The table with a mark behind the methods that know the bias."""
    rows = [
        [
            (text + KNOWS, best) if place < 2 and text in knowing else (text, best)
            for place, (text, best) in enumerate(row)
        ]
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _chosen(records: list[dict[str, Any]], shown: Shown) -> list[dict[str, Any]]:
    """The records of the methods and datasets that are shown: by label, or by name for all of its labels."""
    for kind, wanted in (("method", shown.methods), ("dataset", shown.datasets)):
        there = {record["cell"][f"{kind}_label"] for record in records} | {record["cell"][kind] for record in records}
        there |= {dataset_label(record["cell"]) for record in records} if kind == "dataset" else set()
        lacking = [name for name in wanted if name not in there]
        if lacking:
            raise BenchmarkError(
                f"No results of the {kind} '{lacking[0]}'.{nearest(lacking[0], there)} There are: "
                f"{', '.join(sorted(there))}."
            )
        if wanted:
            labels = (f"{kind}_label", kind)
            records = [
                record
                for record in records
                if {record["cell"][name] for name in labels} & set(wanted)
                or (kind == "dataset" and dataset_label(record["cell"]) in wanted)
            ]
    return records


def _columns(table: pd.DataFrame, shown: Shown) -> list[Column]:
    """The columns of the comparison; a metric that a dataset does not have is left out there."""
    known = [name for name in table.columns if name.startswith("acc_")]
    for name in shown.metrics:
        if name not in known:
            raise BenchmarkError(f"No metric '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    for rule in shown.select:
        if rule not in SELECTION_RULES:
            raise BenchmarkError(
                f"No selection rule '{rule}'.{nearest(rule, SELECTION_RULES)} Known: {', '.join(SELECTION_RULES)}."
            )
    columns = []
    for dataset in dict.fromkeys(table.dataset):
        has = [name for name in shown.metrics if table.loc[table.dataset == dataset, name].notna().any()]
        metrics = has if shown.metrics else [headline_of(table, dataset)]
        columns += [Column(dataset, metric, rule) for metric in metrics for rule in shown.select]
    columns = list(dict.fromkeys(columns))
    if not columns:
        raise BenchmarkError(f"No dataset here has {', '.join(shown.metrics)}. Known: {', '.join(known)}.")
    return columns


def read_grid(results_dir: Path) -> dict[str, Any]:
    """Reference, order of methods and experiment of the last grid that was run into this folder."""
    try:
        return dict(json.loads((results_dir / "grid.json").read_text()))
    except (OSError, ValueError):
        return {}


def _saved_experiment(saved: dict[str, Any]) -> Experiment | None:
    """The experiment that was run last into a folder."""
    try:
        return Experiment(**saved["experiment"])
    except (KeyError, TypeError):  # none, or one of another version
        return None


def write_grid(
    results_dir: Path, *, reference: str | None, order: list[str], experiment: Experiment | None = None
) -> None:
    """Keep what `debiasbench report` needs to show a grid as its run did."""
    content = {"reference": reference, "order": order, "experiment": asdict(experiment) if experiment else None}
    write_atomically(results_dir / "grid.json", json.dumps(content).encode())


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path


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
    shared, means = ranks(table, columns), _means(table, columns)
    datasets = _one_a_dataset(columns)
    by_mean = [stats.rankdata(-row, method="min", nan_policy="omit") for row in means]
    test = rank_test(_means(table, datasets))
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


def _one_a_dataset(columns: list[Column]) -> list[Column]:
    """The first column of each dataset: several of one dataset are no independent evidence."""
    return list({column.dataset: column for column in reversed(columns)}.values())[::-1]


def _means(table: pd.DataFrame, columns: list[Column]) -> np.ndarray:
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
            notes.append(f"{cell['method_label']} on {cell['dataset']} trains with its own {changes}.")
        cls = registry.classes().get(cell["method"])
        values = {**cell["recipe"], **cell["method_parameters"]}
        tuned = cls.tuned.get(cell["dataset"], {}) if cls else {}
        used = ", ".join(f"{key} {value}" for key, value in tuned.items() if values.get(key) == value)
        if used:
            notes.append(f"{cell['method_label']} on {cell['dataset']}: tuned with bias knowledge ({used}).")
        if cls and cls.needs_bias_labels:
            where = ", and on the validation samples" if cls.trains_on_validation else ""
            notes.append(
                f"{KNOWS} {cell['method_label']} trains with bias labels{where}: a reference, not a competitor."
            )
    return list(dict.fromkeys(notes))


def _data_notes(records: list[dict[str, Any]]) -> list[str]:
    notes = []
    for record in records:
        data, name = record["result"]["data"], dataset_label(record["cell"])
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
            key = {"dataset": dataset_label(record["cell"]), "method": record["cell"]["method_label"], "values": name}
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


def draw(table: pd.DataFrame, records: list[dict[str, Any]], columns: list[Column], folder: Path) -> list[Path]:
    """Scores of aligned and conflicting samples (first seed), accuracies of all runs, curves, and ranks if tested."""
    from debiasbench import figures

    paths = []
    methods = list(dict.fromkeys(table.method))
    for dataset in dict.fromkeys(table.dataset):
        name = file_name(dataset)
        scores = {}
        for record in records:
            cell = record["cell"]
            if dataset_label(cell) == dataset and cell["method_label"] not in scores:
                found = read_scores(Path(record["path"]))
                if found:
                    scores[cell["method_label"]] = found
        if scores:
            paths += figures.score_histogram(scores, folder / f"scores-{name}", title=f"Per-sample scores on {dataset}")
        metric = headline_of(table, dataset)
        chosen = runs(table, dataset, metric)
        values = {method: chosen[chosen.method == method].value.to_numpy() for method in dict.fromkeys(chosen.method)}
        stem = folder / f"accuracies-{name}"
        paths += figures.accuracy_histogram(values, stem, metric=metric, title=dataset, order=methods)
    datasets = _one_a_dataset(columns)
    if len(datasets) > 1:
        test = rank_test(_means(table, datasets))
        if test.tested:
            cliques = [[methods[place] for place in clique] for clique in test.cliques]
            averages = dict(zip(methods, map(float, test.ranks), strict=True))
            paths += figures.critical_difference(
                averages, test.difference, cliques, folder / "ranks", order=methods,
                title=f"Average ranks over {test.n_datasets} datasets (p {p_value(test.p)})",
            )  # fmt: skip
    return paths


def file_name(dataset: str) -> str:
    """A dataset's label as a part of a file's name."""
    return dataset.replace(":", "+").replace("/", "-")


def bibtex(folder: Path) -> str:
    """BibTeX of the methods and datasets that the records below a folder used."""
    from debiasbench.datasets import registry as datasets
    from debiasbench.methods import registry as methods

    records, _ = read_records(folder)
    used = {(part, record["cell"][part]) for record in records for part in ("method", "dataset")}
    registries = {"method": methods, "dataset": datasets}
    known = [registries[part].classes().get(name) for part, name in sorted(used, reverse=True)]
    return "\n\n".join(dict.fromkeys(cls.citation for cls in known if cls and cls.citation))


def status(results_dir: Path) -> Table:
    """How many cells of a results folder are done, failed, or begun without a record yet."""
    if not results_dir.is_dir():
        raise BenchmarkError(f"There is no results folder {results_dir}.")
    records, complaints = read_records(results_dir)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for record in records:
        key = (dataset_label(record["cell"]), record["cell"]["method_label"])
        counts.setdefault(key, {"done": 0, "failed": 0})[record["status"]] += 1
    logs = results_dir / "logs"
    begun = [
        log.relative_to(logs).with_suffix("")
        for log in sorted(logs.rglob("*.log"))
        if not (results_dir / "records" / log.relative_to(logs)).with_suffix(".json").is_file()
    ]
    rows = [[(text, False) for text in (*key, str(n["done"]), str(n["failed"]))] for key, n in sorted(counts.items())]
    notes = [f"Begun, and running or stopped: {', '.join(map(str, begun))}."] if begun else []
    return Table(f"Records in {results_dir}", ["dataset", "method", "done", "failed"], rows, notes + complaints)
