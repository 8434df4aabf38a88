"""What an experiment is for: its table, beside the paper's numbers where it has any, and its figure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.records import find_record, read_record, read_scores
from debiasbench.report import paper
from debiasbench.report.results import dataset_title
from debiasbench.report.statistics import score_bins, welch
from debiasbench.report.tables import Table


@dataclass(frozen=True)
class Outcome:
    """Tables and figures of an experiment; `lines`: ours beside the paper's, a line a number, or None.

    `complaints`: what could not be drawn, and why.
    """

    tables: list[Table] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    lines: pd.DataFrame | None = None


def outcome(experiment: Experiment, results_dir: Path, data_dir: Path | None, *, order: list[str]) -> Outcome:
    """Make an experiment's table and figure from the records in a results folder.

    Args:
        data_dir: for what is computed from trained networks and the data.
        order: all methods of the report, for colours.
    """
    found = Outcome(lines=paper.beside(experiment, results_dir) if experiment.paper else None)
    if found.lines is not None:
        found.tables.append(paper.table(experiment, found.lines))
    records = finished(experiment, results_dir)
    order = [*order, *(record["cell"]["method_title"] for record in records)]  # where the report shows fewer
    stem = results_dir / "figures" / experiment.name
    draw = {"bins": _bins, "fisher": _fisher, "norms": _norms, "trials": _trials}.get(experiment.show)
    if draw and records:
        try:
            more = draw(experiment, records, stem, data_dir, order)
        except Exception as error:  # a figure never costs the report of what was trained
            found.complaints.append(f"{experiment.name} could not be drawn: {type(error).__name__}: {error}")
        else:
            found.tables.extend(more.tables)
            found.figures.extend(more.figures)
    return found


def finished(experiment: Experiment, results_dir: Path) -> list[dict[str, Any]]:
    """The finished records of an experiment's grid, method by method as asked for, each with its `path`."""
    cells = paper.cells(experiment, experiment.methods, experiment.datasets)
    methods = list(dict.fromkeys(cell.method_title for cell in cells))
    cells.sort(key=lambda cell: methods.index(cell.method_title))
    records = [{**read_record(path), "path": path} for cell in cells if (path := find_record(results_dir, cell))]
    return [record for record in records if record["status"] == "done"]


def _values(records: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Dataset -> method -> headline accuracies of the runs, shares."""
    lists: dict[str, dict[str, list[float]]] = {}
    for record in records:
        of_dataset = lists.setdefault(dataset_title(record["cell"]), {})
        of_dataset.setdefault(record["cell"]["method_title"], []).append(paper.accuracy(record))
    return {name: {method: np.array(runs) for method, runs in one.items()} for name, one in lists.items()}


def _bins(
    experiment: Experiment, records: list[dict[str, Any]], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Counts of the scores, over the largest, in ten bins (their histograms are in every report)."""
    del stem, data_dir, order
    if experiment.paper:  # counted there
        return Outcome()
    rows = []
    for record in records:
        scores = read_scores(Path(record["path"]))
        if scores is None:
            continue
        edges, *counts = score_bins(*scores)
        cell = record["cell"]
        for side, numbers in zip(("aligned", "conflicting"), counts, strict=True):
            texts = [f"{cell['method_title']} on {dataset_title(cell)}, seed {cell['seed']}", side]
            rows.append([(text, False) for text in [*texts, *(f"{number:,}" for number in numbers)]])
    heads = ["run", "samples", *(f"from {edge:.1f}" for edge in edges[:-1])] if rows else ["run"]
    notes = ["Training samples by their score over the largest score, in ten bins; the last holds its upper edge too."]
    return Outcome([Table(f"{experiment.name}: {experiment.title}", heads, rows, notes)])


def _fisher(
    experiment: Experiment, records: list[dict[str, Any]], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Traces of the inverse Fisher information of the final layer, and the example of Theorem 2."""
    from debiasbench.report.figures import fisher_figure, theorem_figure
    from debiasbench.report.fisher import of_record
    from debiasbench.weights import has_weights

    if data_dir is None:
        raise BenchmarkError(f"{experiment.name} is computed from the data: give their folder (--data-dir).")
    with_weights = [record for record in records if has_weights(Path(record["path"]), record)]
    if not with_weights:
        raise BenchmarkError(
            f"{experiment.name} is computed from trained networks, and none of its records has any: run the experiment."
        )
    found = [of_record(Path(record["path"]), data_dir) | {"seed": record["cell"]["seed"]} for record in with_weights]
    names = ("objective", "uniform", "objective_in_rank", "uniform_in_rank")
    rows = []
    for one in found:
        texts = [one["dataset"], one["method"], str(one["seed"]), *(f"{one[name]:.3g}" for name in names)]
        rows.append([(text, False) for text in [*texts, f"{one['rank']} of {one['dimension']}", one["net"]]])
    heads = ["dataset", "method", "seed", "own h", "uniform h"]
    heads += ["own h, in rank", "uniform h, in rank", "rank", "network"]
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
    figures = fisher_figure(found, stem, order=order)
    figures += fisher_figure(found, stem.with_name(f"{stem.name}-in-rank"), in_rank=True, order=order)
    figures += theorem_figure(stem.with_name("theorem2"))
    return Outcome([Table(f"{experiment.name}: {experiment.title}", heads, rows, notes)], figures)


def _norms(
    experiment: Experiment, records: list[dict[str, Any]], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Variants of a method over datasets."""
    from debiasbench.report.figures import parameter_figure

    del data_dir
    title = f"{experiment.title}{' (smoke run)' if experiment.smoke else ''}"
    return Outcome(
        figures=parameter_figure(_values(records), stem, metric=paper.headline(records[0]), title=title, order=order)
    )


def _trials(
    experiment: Experiment, records: list[dict[str, Any]], stem: Path, data_dir: Path | None, order: list[str]
) -> Outcome:
    """Distributions over seeds; of two methods with the one-sided Welch test of the other against the reference."""
    from debiasbench.report.figures import trials_histogram

    del data_dir
    values = _values(records)
    p_values = {}
    for dataset, of_method in values.items():
        reference = of_method.get(experiment.reference or next(iter(of_method)))
        others = [runs for runs in of_method.values() if runs is not reference]
        if reference is not None and len(others) == 1:  # of two methods: one p
            p_values[dataset] = welch(others[0], reference)
    title = f"{experiment.title}{' (smoke run)' if experiment.smoke else ''}; p: Welch, one-sided"
    metric = paper.headline(records[0])
    return Outcome(figures=trials_histogram(values, stem, metric=metric, p_values=p_values, title=title, order=order))
