"""The figures of a report, made from a table of results in notebooks and scripts.

Each function takes a table from `debiasbench.run` or `debiasbench.load_results`, or some of its rows, and returns a
`matplotlib.figure.Figure` with the titles that papers use. It does not show or save the figure or change settings, and
it ignores the backend, style and settings file of the environment. A notebook shows the figure on the last line of a
cell; `figure.savefig("figure.pdf")` saves it.

    import debiasbench

    table = debiasbench.load_results("results")
    debiasbench.figures.accuracies(table[table.dataset == "cmnist5k"])

Raises:
    BenchmarkError: (all functions) it is not a table of results, it has no finished run, a name is not in it, or it
        mixes versions, data or settings that must not be mixed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from debiasbench.archives import is_there
from debiasbench.arguments import checked
from debiasbench.errors import BenchmarkError
from debiasbench.files import default_data_dir, to_path
from debiasbench.parameters import suggestion
from debiasbench.records import read_record, read_scores
from debiasbench.report import figures, pictures
from debiasbench.report.fisher import of_record
from debiasbench.report.phrases import Displays, display_titles_in
from debiasbench.report.profile import profile as profile_of
from debiasbench.report.profile import sweeps_in
from debiasbench.report.results import (
    Measure,
    check_metric,
    check_reference,
    check_rule,
    check_table,
    distinct,
    headline_of,
    knows_bias,
    results_in,
    runs,
)
from debiasbench.report.sections import metric_of
from debiasbench.report.statistics import FEWEST_DATASETS, FEWEST_METHODS, welch
from debiasbench.report.tables import with_marks
from debiasbench.weights import has_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracies", "curves", "fisher", "profile", "ranks", "scores", "trials", "tuning", "variants"]


@checked()
def accuracies(
    table: pd.DataFrame, *, dataset: str | None = None, metric: str | None = None, select: str = "last"
) -> Figure:
    """The accuracies of all runs on a dataset, on the test split: one dot per run, or histograms if there are many.

    Args:
        table: the results.
        dataset: its title; default: the only one of the table.
        metric: an accuracy, or a metric of your own; default: the dataset's headline metric.
        select: the rule that selected the epoch: "last", "val_acc", ...
    """
    table = _finished(table)
    (measure,) = _measures(table, [_dataset(table, dataset)], metric, select)
    figure = pictures.accuracy_picture(table, measure, _displays(table))
    if figure is None:
        raise BenchmarkError(_no_value([measure]))
    return _shown(figure)


@checked()
def curves(table: pd.DataFrame, *, dataset: str | None = None, metric: str | None = None) -> Figure:
    """Learning curves on a dataset, on the test split: for each method the mean over its runs, and each run.

    They are read from the records, which must still be at the paths in the table's column `path`.

    Args:
        table: the results.
        dataset: its title; default: the only one of the table.
        metric: an accuracy, or a metric of your own; default: the dataset's headline metric.
    """
    table = _finished(table)
    (measure,) = _measures(table, [_dataset(table, dataset)], metric, "last")
    runs(table, measure.dataset, measure.metric)  # refuses runs that must not be mixed
    found: dict[str, list[dict[int, float]]] = {}
    for record in distinct([read_record(path) for path in _paths(table, measure.dataset)]):
        epochs = record.result.epochs if record.result is not None else ()
        curve = {one.epoch: one.test[measure.metric] for one in epochs if measure.metric in one.test}
        if curve:
            found.setdefault(record.cell.method_title, []).append(curve)
    if not found:
        raise BenchmarkError(_no_value([measure]))
    return _shown(pictures.curve_picture(found, table, measure, _displays(table)))


@checked()
def scores(table: pd.DataFrame, *, dataset: str | None = None) -> Figure:
    """Per-sample scores of aligned and conflicting samples: one histogram per method, for its first run with scores.

    They are read from the arrays beside the records, which must still be at the paths in the table's column `path`.
    Methods that do not score samples are left out.

    Args:
        table: the results.
        dataset: its title; default: the only one of the table.
    """
    table = _finished(table)
    dataset = _dataset(table, dataset)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for method, rows in table.groupby("method", sort=False):
        some = (read_scores(path) for path in _paths(rows, dataset))
        first = next((one for one in some if one is not None), None)
        if first is not None:
            found[str(method)] = first
    if not found:
        raise BenchmarkError(
            f"No method of this table keeps per-sample scores on {dataset}: {', '.join(table.method.unique())}. "
            "The accuracies of the runs: debiasbench.figures.accuracies(table)."
        )
    return _shown(pictures.score_picture(found, dataset, _displays(table)))


@checked()
def ranks(table: pd.DataFrame, *, metric: str | None = None, select: str = "last") -> Figure:
    """Average ranks of the methods over all datasets of the table, and which ones do not differ significantly.

    It needs at least three methods with runs on each of six datasets.

    Args:
        table: the results.
        metric: an accuracy, or a metric of your own; default: each dataset's headline metric.
        select: the rule that selected the epoch: "last", "val_acc", ...
    """
    table = _finished(table)
    datasets = table.dataset.unique().tolist()
    figure = pictures.rank_picture(table, _measures(table, datasets, metric, select), _displays(table))
    if figure is None:
        raise BenchmarkError(
            f"Ranks need at least {FEWEST_METHODS} methods with runs on each of at least {FEWEST_DATASETS} datasets. "
            f"Here there are {table.method.nunique()} methods and {len(datasets)} datasets."
        )
    return _shown(figure)


@checked()
def profile(table: pd.DataFrame, *, reference: str | None = None) -> Figure:
    """Accuracies by the fraction of conflicting training samples: one panel per dataset, one line per method.

    Args:
        table: the results, with a dataset at two conflict ratios or more.
        reference: title of the method whose accuracy on aligned samples is shown in grey; default: the first.
    """
    table = _finished(table)
    reference = _method(table, reference)
    _, of_sweeps = profile_of(table, sweeps_in(table), reference)
    return _shown(pictures.profile_picture(table, of_sweeps, reference, _displays(table)))


@checked()
def variants(table: pd.DataFrame, *, metric: str | None = None, select: str = "last") -> Figure:
    """Variants of a method over datasets, one panel per dataset: mean, standard deviation and every run.

    Args:
        table: the results of a few methods.
        metric: an accuracy, or a metric of your own; default: each dataset's headline metric.
        select: the rule that selected the epoch: "last", "val_acc", ...
    """
    values, options = _by_dataset(_finished(table), metric, select)
    return _shown(figures.parameter_figure(values, **options))


@checked()
def trials(
    table: pd.DataFrame, *, reference: str | None = None, metric: str | None = None, select: str = "last"
) -> Figure:
    """Overlaid histograms of many runs of a few methods, one panel per dataset.

    With two methods, p is from Welch's one-sided test of the other method against the reference.

    Args:
        table: the results.
        reference: a method's title; default: the first.
        metric: an accuracy, or a metric of your own; default: each dataset's headline metric.
        select: the rule that selected the epoch: "last", "val_acc", ...
    """
    table = _finished(table)
    values, options = _by_dataset(table, metric, select)
    displays = _displays(table)
    base = displays["method"][_method(table, reference)]
    measures = _measures(table, table.dataset.unique().tolist(), metric, select)
    signs = {displays["dataset"][measure.dataset]: measure.direction for measure in measures}
    p_values = {}
    for on, of_methods in values.items():
        others = [some for method, some in of_methods.items() if method != base]
        if base in of_methods and len(others) == 1:
            p_values[on] = welch(signs[on] * others[0], signs[on] * of_methods[base])
    title = "p: Welch, one-sided" if p_values else ""
    return _shown(figures.trials_histogram(values, p_values=p_values, title=title, **options))


@checked()
def fisher(table: pd.DataFrame, *, data_dir: str | Path | None = None, in_rank: bool = False) -> Figure:
    """The trace of the inverse Fisher information of the final layer of trained networks; less is better.

    It is computed from the networks and the data, which takes seconds per run, or minutes if the layer is large. Runs
    without saved weights (`save_weights=True`) are left out.

    Args:
        table: the results.
        data_dir: the data folder; default: $DEBIASBENCH_DATA, or `data`.
        in_rank: without the directions in which no sample has a gradient, such as those of dead units.
    """
    table = _finished(table)
    paths = [path for name in table.dataset.unique() for path in _paths(table, name)]
    saved = [path for path in paths if has_weights(read_record(path))]
    if not saved:
        raise BenchmarkError(
            "This figure is computed from trained networks, and none of these runs has any: run them again with "
            'save_weights=True and rerun="all".'
        )
    displays = _displays(table)
    numbers = [of_record(path, to_path(data_dir) if data_dir else default_data_dir()) for path in saved]
    named = [
        one | {kind: displays[kind].get(one[kind], one[kind]) for kind in ("dataset", "method")} for one in numbers
    ]
    return _shown(figures.fisher_figure(named, in_rank=in_rank, order=pictures.names_of(table, displays)))


@checked()
def tuning(table: pd.DataFrame, *, dataset: str | None = None) -> Figure:
    """The spread of the draws of a tuning, with each method's defaults and the chosen draw.

    Args:
        table: from `debiasbench.tune`.
        dataset: its title; default: the only one of the table.
    """
    columns = ("dataset", "method", "draw", "run_as", "rule", "value", "chosen")
    lacking = [name for name in columns if not (isinstance(table, pd.DataFrame) and name in table)]
    if lacking:
        got = (
            f"lacks the columns {', '.join(lacking)}"
            if isinstance(table, pd.DataFrame)
            else f"is a {type(table).__name__}"
        )
        raise BenchmarkError(f"A table of draws is needed, as debiasbench.tune returns it. This {got}.")
    dataset = _dataset(table, dataset)
    displays = display_titles_in(table)
    knowing = {title for title in table.method if knows_bias(title.partition(":")[0])}
    displays = with_marks(displays, knowing=knowing, unofficial=())
    table = table[(table.dataset == dataset) & table.value.notna()]
    draws = {}
    for method, rows in table.groupby("method", sort=False):
        chosen, default = (np.flatnonzero(where) for where in (rows.chosen, rows.draw == 0))
        if len(chosen):
            first = int(default[0]) if len(default) else None
            values = rows.value.to_numpy(dtype=float)
            draws[displays["method"][method]] = figures.Draws(values, first, int(chosen[0]), np.empty(0))
    if not draws:
        raise BenchmarkError(f"No draw on {dataset} has a value: nothing was chosen there.")
    rule, title = str(table.rule.iloc[0]), f"Draws on {displays['dataset'][dataset]}"
    return _shown(figures.tuning_figure(draws, rule=rule, percent=rule != "val_loss", title=title))


# ---- what is asked of a table ----------------------------------------------------------------------------------------


def _shown(figure: Figure) -> Figure:
    """The figure in the same size, whether a notebook's backend shows it or the figure itself."""
    from debiasbench.report.canvas import PIXELS

    figure.set_dpi(PIXELS)
    return figure


def _displays(table: pd.DataFrame) -> Displays:
    """Display titles of its methods and datasets, with the marks of the report's tables."""
    return pictures.marked_titles(display_titles_in(table), table)


def _finished(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished runs, without the draws of a tuning, which are not results."""
    check_table(table)
    return results_in(table, "draw")


def _dataset(table: pd.DataFrame, dataset: str | None) -> str:
    there = table.dataset.unique().tolist()
    if dataset is None and len(there) == 1:
        return str(there[0])
    if dataset is None:
        raise BenchmarkError(
            f"The table has results on {len(there)} datasets: name one, as by dataset={there[0]!r}. There are: "
            f"{', '.join(there)}."
        )
    if dataset not in there:
        raise BenchmarkError(
            f"No results on the dataset '{dataset}'.{suggestion(dataset, there)} There are: {', '.join(there)}."
        )
    return dataset


def _method(table: pd.DataFrame, reference: str | None) -> str:
    there = table.method.unique().tolist()
    if reference is not None:
        check_reference(reference, there)
    return reference or str(there[0])


def _measures(table: pd.DataFrame, datasets: list[str], metric: str | None, select: str) -> list[Measure]:
    """The measure to draw for each dataset."""
    if metric is not None:
        check_metric(table, metric)
    check_rule(table, select)
    return [Measure(dataset, metric or headline_of(table, dataset), select) for dataset in datasets]


def _by_dataset(
    table: pd.DataFrame, metric: str | None, select: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Dataset -> method -> fractions of its finished runs; and the name of the axis and the order of methods."""
    measures = _measures(table, table.dataset.unique().tolist(), metric, select)
    displays = _displays(table)
    values = pictures.values_by_dataset(table, measures, displays)
    if not values:
        raise BenchmarkError(_no_value(measures))
    names = ", ".join(dict.fromkeys(map(metric_of, measures)))
    return values, {"metric": names, "order": pictures.names_of(table, displays)}


def _no_value(measures: list[Measure]) -> str:
    told = "; ".join(f"{one.metric} on {one.dataset}" for one in measures)
    return f"No run of the table has a value on the test split, by the rule '{measures[0].select}', of {told}."


def _paths(table: pd.DataFrame, dataset: str) -> list[Path]:
    """The records of the runs on a dataset."""
    rows = table[table.dataset == dataset]
    paths = [Path(path) for path in dict.fromkeys(rows.get("path", ())) if isinstance(path, str) and path]
    lost = [path for path in paths if not is_there(path)]
    if lost or not paths:
        told = f"{lost[0]} is not there" if lost else "the table does not name them, in a column path"
        raise BenchmarkError(
            f"This figure is read from the records, and {told}. Load the table again, where the records are: "
            "debiasbench.load_results(FOLDER)."
        )
    return paths
