"""The outcome of an experiment: its table, with the paper's numbers if it has any, and its figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import direction
from debiasbench.experiments import Experiment
from debiasbench.files import file_name
from debiasbench.records import Record
from debiasbench.report import published
from debiasbench.report.phrases import Displays, display_titles
from debiasbench.report.pictures import marked_titles_of
from debiasbench.report.results import dataset_title, headlines, scores_of
from debiasbench.report.statistics import score_bins, welch
from debiasbench.report.style import save
from debiasbench.report.tables import Column, Entry, Table, count, number, words


@dataclass(frozen=True)
class Outcome:
    """Tables and figures of an experiment; `lines`: our numbers beside the paper's, one per line, or None.

    `complaints`: what could not be read or drawn, and why.
    """

    tables: list[Table] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    lines: pd.DataFrame | None = None


def outcome(experiment: Experiment, results_dir: Path, data_dir: Path | None, *, order: list[str]) -> Outcome:
    """Make an experiment's table and figure from the records in a results folder.

    Args:
        data_dir: the data folder, for tables and figures that are computed from trained networks and the data.
        order: all methods of the report, for colours.
    """
    found = Outcome()
    try:
        found = _beside_the_paper(experiment, results_dir)
        records = finished(experiment, results_dir, found.complaints)
        draw = {"bins": _bins, "fisher": _fisher, "norms": _norms, "trials": _trials}.get(experiment.show)
        if draw and records:
            order = [*order, *(record.cell.method_title for record in records)]  # the report may show fewer methods
            stem = results_dir / "figures" / file_name(experiment.name)
            more = draw(experiment, records, stem, data_dir, order)
            found.tables.extend(more.tables)
            found.figures.extend(more.figures)
            found.complaints.extend(more.complaints)
    except Exception as error:  # the report must not fail because of an experiment
        found.complaints.append(f"{experiment.name} could not be drawn: {type(error).__name__}: {error}")
    return found


def _beside_the_paper(experiment: Experiment, results_dir: Path) -> Outcome:
    if not experiment.paper:
        return Outcome()
    complaints: list[str] = []
    lines = published.beside(experiment, results_dir, complaints)
    return Outcome([published.table(experiment, lines)], complaints=complaints, lines=lines)


def finished(experiment: Experiment, results_dir: Path, complaints: list[str]) -> list[Record]:
    """The finished records of an experiment's grid, method by method as asked for."""
    cells = published.cells(experiment, experiment.methods, experiment.datasets)
    methods = list(dict.fromkeys(cell.method_title for cell in cells))
    cells.sort(key=lambda cell: methods.index(cell.method_title))
    return published.finished(cells, results_dir, complaints)


def _values(records: list[Record]) -> dict[str, dict[str, np.ndarray]]:
    """Dataset -> method -> headline accuracies of the runs, fractions."""
    lists: dict[str, dict[str, list[float]]] = {}
    for record in records:
        of_dataset = lists.setdefault(dataset_title(record.cell), {})
        of_dataset.setdefault(record.cell.method_title, []).append(published.accuracy(record))
    return {name: {method: np.array(runs) for method, runs in one.items()} for name, one in lists.items()}


def _marked(records: list[Record]) -> Displays:
    """Display titles of the methods and datasets of finished records, with the marks of tables."""
    cells = [record.cell for record in records]
    return marked_titles_of(display_titles(cells), cells, records)


def _values_displayed(values: dict[str, dict[str, np.ndarray]], displays: Displays) -> dict[str, dict[str, np.ndarray]]:
    """The same values by display titles."""
    return {
        displays["dataset"][dataset]: {displays["method"][method]: runs for method, runs in one.items()}
        for dataset, one in values.items()
    }


def _displayed(order: list[str], displays: Displays) -> list[str]:
    return [displays["method"].get(method, method) for method in order]


def _bins(
    experiment: Experiment, records: list[Record], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Counts of scores, divided by the largest, in ten bins (every report has histograms of them)."""
    del stem, data_dir, order
    if experiment.paper:  # the paper's table has these counts
        return Outcome()
    rows, edges, complaints = [], np.empty(0), list[str]()
    for record in records:
        scores = scores_of(record, complaints)
        if scores is None:
            continue
        edges, *counts = score_bins(*scores)
        cell = record.cell
        for side, numbers in zip(("aligned", "conflicting"), counts, strict=True):
            names = words(f"{cell.method_title} on {dataset_title(cell)}, seed {cell.seed}", side)
            rows.append([*names, *(count(int(n)) for n in numbers)])
    columns = [Column("run", "run", numeric=False), Column("samples", "samples", numeric=False)]
    columns += [Column(f"from {edge:.1f}", f"from {edge:.1f}") for edge in edges[:-1]]
    notes = ["Training samples by their score over the largest score, in ten bins; the last holds its upper edge too."]
    table = Table(experiment.name, f"{experiment.name}: {experiment.title}", columns, rows, notes)
    return Outcome([table], complaints=complaints)


def _fisher(
    experiment: Experiment, records: list[Record], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Traces of the inverse Fisher information of the final layer, and the example of Theorem 2."""
    from debiasbench.report.figures import fisher_figure, theorem_figure
    from debiasbench.report.fisher import of_record
    from debiasbench.weights import has_weights

    if data_dir is None:
        raise BenchmarkError(f"{experiment.name} is computed from the data: give their folder (--data-dir).")
    with_weights = [record for record in records if has_weights(record)]
    if not with_weights:
        raise BenchmarkError(
            f"{experiment.name} is computed from trained networks, and none of its records has any: run the experiment."
        )
    found, complaints = [], []
    for record in with_weights:
        assert record.path is not None
        try:
            found.append(of_record(record.path, data_dir))
        except Exception as error:  # one damaged file must not affect the others
            complaints.append(f"{record.path}: no trace ({type(error).__name__}: {error})")
    if not found:
        return Outcome(complaints=complaints)
    names = ("objective", "uniform", "objective_in_rank", "uniform_in_rank")
    rows = []
    for one in found:
        row = [*words(one["dataset"], one["method"]), Entry(one["seed"], str(one["seed"]))]
        row += [number(one[name], "{:.3g}".format) for name in names]
        rows.append([*row, Entry(one["rank"], f"{one['rank']} of {one['dimension']}"), *words(one["net"])])
    headings = ("own h", "uniform h", "own h, in rank", "uniform h, in rank")
    columns = [Column(name, name, numeric=False) for name in ("dataset", "method")]
    columns += [Column("seed", "seed"), *(Column(*pair) for pair in zip(names, headings, strict=True))]
    columns += [Column("rank", "rank"), Column("net", "network", numeric=False)]
    notes = [
        "Trace of the inverse empirical Fisher information of the final layer (weight and bias) over the "
        f"(C - 1)(D + 1) dimensions that it can have, damped by {found[0]['damping']:g} of its mean eigenvalue. own h: "
        "what the method samples by, at its network; uniform h: at the same network. in rank: without dimensions in "
        "which no sample has a gradient (dead units), each of which counts 1 / damping otherwise. Less is better; how "
        "much less depends on the damping."
    ]
    left_out = len(records) - len(with_weights)
    if left_out:
        notes.append(f"{left_out} runs have no weights and are left out.")
    displays = _marked(records)
    order = _displayed(order, displays)
    shown = [one | {kind: displays[kind].get(one[kind], one[kind]) for kind in ("dataset", "method")} for one in found]
    figures = save(fisher_figure(shown, order=order), stem)
    in_rank = fisher_figure(shown, in_rank=True, order=order)
    figures += save(in_rank, stem.with_name(f"{stem.name}-in-rank"))
    figures += save(theorem_figure(), stem.with_name("theorem2"))
    table = Table(experiment.name, f"{experiment.name}: {experiment.title}", columns, rows, notes)
    return Outcome([table], figures, complaints)


def _norms(
    experiment: Experiment, records: list[Record], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Variants of a method over datasets."""
    from debiasbench.report.figures import parameter_figure

    del data_dir
    title = f"{experiment.title}{' (smoke run)' if experiment.smoke else ''}"
    metric = headlines(records[0].cell.dataset)[0]
    displays = _marked(records)
    values, order = _values_displayed(_values(records), displays), _displayed(order, displays)
    return Outcome(figures=save(parameter_figure(values, metric=metric, title=title, order=order), stem))


def _trials(
    experiment: Experiment, records: list[Record], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Distributions over seeds; with two methods also the one-sided Welch test of the other against the reference."""
    from debiasbench.report.figures import trials_histogram

    del data_dir
    values, metric = _values(records), headlines(records[0].cell.dataset)[0]
    p_values = {}
    for dataset, of_method in values.items():
        reference = of_method.get(experiment.reference or next(iter(of_method)))
        others = [runs for runs in of_method.values() if runs is not reference]
        if reference is not None and len(others) == 1:  # two methods: one p
            p_values[dataset] = welch(direction(metric) * others[0], direction(metric) * reference)
    title = f"{experiment.title}{' (smoke run)' if experiment.smoke else ''}; p: Welch, one-sided"
    displays = _marked(records)
    values, order = _values_displayed(values, displays), _displayed(order, displays)
    p_values = {displays["dataset"][dataset]: p for dataset, p in p_values.items()}
    figure = trials_histogram(values, metric=metric, p_values=p_values, title=title, order=order)
    return Outcome(figures=save(figure, stem))
