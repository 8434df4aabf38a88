"""The figures that a report draws from a table of results, with display titles of methods and datasets.

`displays` are the display titles, with the marks of tables if the caller has added them (`marked_titles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from debiasbench.cell import Cell
from debiasbench.records import Record
from debiasbench.report import figures
from debiasbench.report.phrases import Displays, displayed
from debiasbench.report.profile import Curves, family
from debiasbench.report.results import Measure, bias_knowing, dataset_title, knows_bias, runs, unofficial
from debiasbench.report.sections import means_of, metric_of, one_a_dataset
from debiasbench.report.statistics import rank_test
from debiasbench.report.tables import p_value, with_marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def marked_titles(displays: Displays, table: pd.DataFrame) -> Displays:
    """Display titles of the methods and datasets in a table of results, with the marks that report tables have."""
    return with_marks(displays, knowing=bias_knowing(table), unofficial=unofficial(table))


def marked_titles_of(displays: Displays, cells: Iterable[Cell], records: Iterable[Record]) -> Displays:
    """The same for the methods of these cells, and with the marks of datasets taken from these records."""
    knowing = {cell.method_title for cell in cells if knows_bias(cell.method)}
    stand_ins = [record.cell for record in records if record.result is not None and not record.result.data.official]
    titles = {title for cell in stand_ins for title in (cell.dataset_title, dataset_title(cell))}
    return with_marks(displays, knowing=knowing, unofficial=titles)


def names_of(table: pd.DataFrame, displays: Displays) -> list[str]:
    """Display titles of the methods of a table, in its order."""
    return [displays["method"][method] for method in table.method.unique()]


def score_picture(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], dataset: str, displays: Displays) -> Figure:
    """Per-sample scores on a dataset; `scores`: method -> (scores (N,), whether conflicting (N,))."""
    named = {displays["method"][method]: one for method, one in scores.items()}
    return figures.score_histogram(named, title=f"Per-sample scores on {displays['dataset'][dataset]}")


def accuracy_picture(table: pd.DataFrame, measure: Measure, displays: Displays) -> Figure | None:
    """The accuracies of all runs on a dataset; None if there are none."""
    title = displays["dataset"][measure.dataset]
    values = values_by_dataset(table, [measure], displays).get(title)
    if not values:
        return None
    return figures.accuracy_figure(values, metric=metric_of(measure), title=title, order=names_of(table, displays))


def rank_picture(table: pd.DataFrame, measures: Sequence[Measure], displays: Displays) -> Figure | None:
    """Average ranks over datasets; None if they cannot be tested."""
    datasets = one_a_dataset(list(measures))
    test = rank_test(means_of(table, datasets)) if len(datasets) > 1 else None
    if test is None or not test.tested:
        return None
    methods = names_of(table, displays)
    cliques = [[methods[index] for index in clique] for clique in test.cliques]
    averages = dict(zip(methods, map(float, test.ranks), strict=True))
    title = f"Average ranks over {test.n_datasets} datasets (p {p_value(test.p)})"
    return figures.critical_difference(averages, test.difference, cliques, order=methods, title=title)


def profile_picture(table: pd.DataFrame, curves: Mapping[str, Curves], reference: str, displays: Displays) -> Figure:
    """Accuracies by conflict ratio, from the curves and reference of `profile.profile`."""
    named = displays["method"]
    shown = {displayed(family(title), displays): one for title, one in curves.items()}
    return figures.profile_figure(
        {title: {named[method]: values for method, values in one.methods.items()} for title, one in shown.items()},
        {title: one.aligned for title, one in shown.items()},
        metrics={title: one.metric for title, one in shown.items()},
        aligned_label=f"{named.get(reference, reference)}, aligned samples", order=names_of(table, displays),
    )  # fmt: skip


def curve_picture(
    curves: Mapping[str, Sequence[Mapping[int, float]]], table: pd.DataFrame, measure: Measure, displays: Displays
) -> Figure:
    """Learning curves on a dataset; `curves`: method -> its runs, each a mapping of epoch to fraction."""
    named = {displays["method"][method]: some for method, some in curves.items()}
    title = f"Test accuracy by epoch on {displays['dataset'][measure.dataset]}"
    return figures.curve_figure(named, metric=measure.metric, title=title, order=names_of(table, displays))


def values_by_dataset(
    table: pd.DataFrame, measures: Sequence[Measure], displays: Displays
) -> dict[str, dict[str, np.ndarray]]:
    """Dataset -> method -> fractions (n,) of its runs; keys are display titles."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for measure in measures:
        chosen = runs(table, measure.dataset, measure.metric, select=measure.select)
        of_methods = dict(list(chosen.groupby("method", sort=False).value))
        named = {displays["method"][method]: values.to_numpy() for method, values in of_methods.items()}
        if named:
            found[displays["dataset"][measure.dataset]] = named
    return found
