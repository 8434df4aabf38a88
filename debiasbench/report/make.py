"""Tables, tests and figures from records alone, also from somebody else's, also while cells still run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.metrics import SELECTION_RULES
from debiasbench.experiments import Experiment
from debiasbench.files import write_atomically
from debiasbench.parameters import nearest
from debiasbench.records import read_records, read_scores
from debiasbench.report.outcomes import outcome
from debiasbench.report.page import page
from debiasbench.report.results import (
    Column,
    bias_knowing,
    compare_columns,
    dataset_title,
    headline_of,
    runs,
    to_frame,
)
from debiasbench.report.sections import (
    comparison_table,
    identification_table,
    marked,
    means_of,
    one_a_dataset,
    ranks_table,
    selection_table,
    tests_table,
)
from debiasbench.report.statistics import rank_test
from debiasbench.report.tables import (
    LATEX_DOCUMENT,
    LATEX_NEEDS,
    Table,
    csv,
    latex,
    markdown,
    p_value,
)


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
    records.sort(key=lambda record: rank.get(record["cell"]["method_title"], len(rank)))
    known = list(dict.fromkeys(record["cell"]["method_title"] for record in records))
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
    tables = [marked(one, bias_knowing(table)) for one in tables]
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


def _chosen(records: list[dict[str, Any]], shown: Shown) -> list[dict[str, Any]]:
    """The records of the methods and datasets that are shown: by label, or by name for all of its labels."""
    for kind, wanted in (("method", shown.methods), ("dataset", shown.datasets)):
        there = {record["cell"][f"{kind}_label"] for record in records} | {record["cell"][kind] for record in records}
        there |= {dataset_title(record["cell"]) for record in records} if kind == "dataset" else set()
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
                or (kind == "dataset" and dataset_title(record["cell"]) in wanted)
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


def draw(table: pd.DataFrame, records: list[dict[str, Any]], columns: list[Column], folder: Path) -> list[Path]:
    """Scores of aligned and conflicting samples (first seed), accuracies of all runs, curves, and ranks if tested."""
    from debiasbench.report import figures

    paths = []
    methods = list(dict.fromkeys(table.method))
    for dataset in dict.fromkeys(table.dataset):
        name = file_name(dataset)
        scores = {}
        for record in records:
            cell = record["cell"]
            if dataset_title(cell) == dataset and cell["method_title"] not in scores:
                found = read_scores(Path(record["path"]))
                if found:
                    scores[cell["method_title"]] = found
        if scores:
            paths += figures.score_histogram(scores, folder / f"scores-{name}", title=f"Per-sample scores on {dataset}")
        metric = headline_of(table, dataset)
        chosen = runs(table, dataset, metric)
        values = {method: chosen[chosen.method == method].value.to_numpy() for method in dict.fromkeys(chosen.method)}
        stem = folder / f"accuracies-{name}"
        paths += figures.accuracy_histogram(values, stem, metric=metric, title=dataset, order=methods)
    datasets = one_a_dataset(columns)
    if len(datasets) > 1:
        test = rank_test(means_of(table, datasets))
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
        key = (dataset_title(record["cell"]), record["cell"]["method_title"])
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
