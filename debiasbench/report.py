"""Tables, tests and figures from records alone, also from somebody else's, also while cells still run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.evaluate import SELECTION_RULES, USES_BIAS_LABELS
from debiasbench.parameters import nearest
from debiasbench.records import arrays_path, read_records, write_atomically
from debiasbench.results import compare, dataset_label, headline_of, runs, summaries, to_frame

TIE, MARKED, ORACLE = "~", "†", "§"


@dataclass(frozen=True)
class Table:
    """A table as text: cells are (text, whether best). Notes follow below it."""

    title: str
    columns: list[str]
    rows: list[list[tuple[str, bool]]]
    notes: list[str]


@dataclass(frozen=True)
class Report:
    """What `make` found and wrote."""

    tables: list[Table]
    paths: dict[str, list[Path]]  # kind -> files
    failed: list[dict[str, Any]]
    complaints: list[str]


def make(
    results_dir: Path,
    *,
    reference: str | None = None,
    keep: Callable[[dict[str, Any]], bool] | None = None,
    order: list[str] | None = None,
    figures: bool = True,
) -> Report:
    """Read the records below `results_dir` and write tables and figures beside them.

    Args:
        results_dir: a results folder, or any folder of records.
        reference: the method that the others are tested against; default: the first.
        keep: which records take part (those of one grid, say); default: all.
        order: method labels in the order wanted; others follow.

    Raises:
        BenchmarkError: no records; records that must not be mixed.
    """
    source = results_dir / "records" if (results_dir / "records").is_dir() else results_dir
    if not source.is_dir():
        raise BenchmarkError(f"There is no results folder {results_dir}.")
    records, complaints = read_records(source)
    records = [record for record in records if keep is None or keep(record)]
    if not records:
        raise BenchmarkError("\n".join([f"There are no records in {results_dir}.", *complaints]))
    if keep is None:
        saved = read_grid(results_dir)
        reference, order = reference or saved.get("reference"), order or saved.get("order")
    rank = {label: place for place, label in enumerate(order or [])}
    records.sort(key=lambda record: rank.get(record["cell"]["method_label"], len(rank)))
    done = [record for record in records if record["status"] == "done"]
    failed = [record for record in records if record["status"] != "done"]
    if not done:
        return Report([], {}, failed, complaints)
    table = to_frame(done)
    paths: dict[str, list[Path]] = {"records": [source]}
    tables = [comparison_table(table, done)]
    tables += [selection_table(table, dataset) for dataset in dict.fromkeys(table.dataset)]
    identified = identification_table(done)
    tables += [identified] if identified else []
    methods = list(dict.fromkeys(table.method))
    known = list(dict.fromkeys(record["cell"]["method_label"] for record in records))
    if reference is not None and reference not in known and keep is None and reference == saved.get("reference"):
        reference = None  # the last grid's, whose records are elsewhere
    if reference is not None and reference not in known:
        raise BenchmarkError(
            f"No results of the reference '{reference}'.{nearest(reference, known)} There are: {', '.join(known)}."
        )
    if len(methods) > 1:
        tests = compare(table, reference=reference if reference in methods else None)
        tables.append(tests_table(tests))
        paths["tests"] = [_write(results_dir / "tables" / "tests.csv", tests.to_csv(index=False))]
    body = {"md": "\n\n".join(markdown(one) for one in tables) + "\n", "tex": "\n\n".join(map(latex, tables)) + "\n"}
    paths["tables"] = [_write(results_dir / "tables" / f"comparison.{kind}", text) for kind, text in body.items()]
    paths["tables"].append(_write(results_dir / "tables" / "comparison.csv", csv(tables[0])))
    paths["tables"].append(_write(results_dir / "tables" / "results.csv", table.to_csv(index=False)))
    if figures:
        paths["figures"] = draw(table, done, results_dir / "figures")
    return Report(tables, paths, failed, complaints)


def read_grid(results_dir: Path) -> dict[str, Any]:
    """Reference and order of methods of the last grid that was run into this folder."""
    try:
        return dict(json.loads((results_dir / "grid.json").read_text()))
    except (OSError, ValueError):
        return {}


def write_grid(results_dir: Path, *, reference: str | None, order: list[str]) -> None:
    """Keep what `debiasbench report` needs to show a grid as its run did."""
    write_atomically(results_dir / "grid.json", json.dumps({"reference": reference, "order": order}).encode())


def csv(table: Table) -> str:
    """A table as CSV; notes are left to the other formats."""
    rows = [[text for text, _ in row] for row in table.rows]
    return str(pd.DataFrame(rows, columns=table.columns).to_csv(index=False))


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path


def percent(mean: float, std: float, n: float) -> str:
    """`96.88 ± 0.28` from shares; without a spread for one run; a dash for nothing."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if n > 1 else "")


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< .0001" if value < 0.0001 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def comparison_table(table: pd.DataFrame, records: list[dict[str, Any]]) -> Table:
    """Methods x datasets: the headline metric at the last epoch, and n."""
    datasets = list(dict.fromkeys(table.dataset))
    methods = list(dict.fromkeys(table.method))
    metrics = {dataset: headline_of(table, dataset) for dataset in datasets}
    by_dataset = summaries(table, metrics)
    marks = {dataset: MARKED if not table[table.dataset == dataset].official.all() else "" for dataset in datasets}
    rows = []
    for method in methods:
        row = [(method, False)]
        for dataset in datasets:
            one = by_dataset[dataset]
            if method not in one.index:
                row += [("-", False), ("0", False)]
                continue
            values = one.loc[method]
            text = percent(values["mean"], values["std"], values["count"]) + (f" {TIE}" if values["tied"] else "")
            row += [(text, bool(values["best"])), (f"{values['count']:.0f}", False)]
        rows.append(row)
    columns = ["method"]
    for dataset in datasets:
        columns += [f"{dataset}{marks[dataset]} {metrics[dataset]} (%)", "n"]
    notes = [
        "Test split, last epoch. Mean ± sample standard deviation (n - 1) over n runs; best in bold. "
        f"{TIE}: not separable from the best (one-sided Welch test of the best against it, chosen after the fact, "
        "p of at least .05 after Holm's correction over this table)."
    ]
    notes += _few_runs(by_dataset) + _recipe_notes(records) + _data_notes(records)
    return Table("Comparison", columns, rows, notes)


def _few_runs(by_dataset: dict[str, pd.DataFrame]) -> list[str]:
    smallest = min(int(one["count"].min()) for one in by_dataset.values() if len(one))
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
            notes.append(f"{cell['method_label']} trains with bias labels{where}.")
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
        texts = [
            test["dataset"], test["method"], f"{test['n_a']} / {test['n_b']}", f"{100 * test['gap']:+.2f}", interval,
            *(_p(test[name]) for name in ("welch", "welch_holm", "paired", "paired_holm", "wilcoxon")),
            _number(test["effect_size"]), _number(100 * test["detectable"]), _number(test["correlation"], 2),
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


def _escaped(text: str) -> str:
    """Text without what Markdown would take for a column, emphasis or code (single ~ and inner _ are harmless)."""
    return re.sub(r"([\\|*`]|~(?=~)|(?<=~)~|\b_|_\b)", r"\\\1", text)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(map(_escaped, table.columns)) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    for row in table.rows:
        texts = [(_escaped(text), best) for text, best in row]
        lines.append("| " + " | ".join(f"**{text}**" if best else text for text, best in texts) + " |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)]).rstrip()


_LATEX = {character: "\\" + character for character in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"$\sim$", "±": r"$\pm$", "†": r"$\dagger$", "§": r"\S{}",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A table as LaTeX; needs the package booktabs."""
    rows = [" & ".join(rf"\textbf{{{_tex(text)}}}" if best else _tex(text) for text, best in row) for row in table.rows]
    return "\n".join([
        r"\begin{table}", r"  \centering", rf"  \caption{{{_tex(table.title)}. {_tex(' '.join(table.notes))}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"    \toprule",
        "    " + " & ".join(map(_tex, table.columns)) + r" \\", r"    \midrule",
        *(f"    {row} \\\\" for row in rows), r"    \bottomrule", r"  \end{tabular}", r"\end{table}",
    ])  # fmt: skip


def draw(table: pd.DataFrame, records: list[dict[str, Any]], folder: Path) -> list[Path]:
    """The histograms: scores of aligned and conflicting samples (first seed), accuracies of all runs."""
    from debiasbench.figures import accuracy_histogram, score_histogram

    paths = []
    methods = list(dict.fromkeys(table.method))
    for dataset in dict.fromkeys(table.dataset):
        name = dataset.replace(":", "+").replace("/", "-")
        scores = {}
        for record in records:
            cell = record["cell"]
            if dataset_label(cell) == dataset and cell["method_label"] not in scores:
                found = _scores(Path(record["path"]))
                if found:
                    scores[cell["method_label"]] = found
        if scores:
            paths += score_histogram(scores, folder / f"scores-{name}", title=f"Per-sample scores on {dataset}")
        metric = headline_of(table, dataset)
        chosen = runs(table, dataset, metric)
        values = {method: chosen[chosen.method == method].value.to_numpy() for method in dict.fromkeys(chosen.method)}
        paths += accuracy_histogram(values, folder / f"accuracies-{name}", metric=metric, title=dataset, order=methods)
    return paths


def _scores(record: Path) -> Any:
    """(scores (N,), conflicting (N,)) of a record, or None if its method kept no scores."""
    path = arrays_path(record)
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    arrays = load_file(path)
    if "score" not in arrays or "train_conflict" not in arrays:
        return None
    return arrays["score"].astype(float), arrays["train_conflict"].any(axis=1)


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
