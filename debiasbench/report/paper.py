"""The paper's tables in the paper's own shape, ours beside the paper's numbers.

`experiments/paper/*.csv` holds every number that the paper reports, with the method and the dataset that give it here,
its row and column there, and what is doubtful about it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from debiasbench import experiments
from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment
from debiasbench.grid import expand
from debiasbench.records import Record, find_record, read_record
from debiasbench.report.results import distinct, headlines, scores_of
from debiasbench.report.statistics import score_bins, welch
from debiasbench.report.tables import MARKED, Column, Entry, Table, p_value

INSIDE, OUTSIDE = "=", "≠"


def numbers(stem: str) -> pd.DataFrame:
    """The paper's numbers of one table or figure.

    Columns: table, row, column (as printed), method, dataset (ours), metric (accuracies in per cent), mean, std, n
    (nan where the paper does not say), note.
    """
    path = Path(experiments.__path__[0]) / "paper" / f"{stem}.csv"
    if not path.is_file():
        raise BenchmarkError(f"There are no numbers of the paper called '{stem}' ({path}).")
    return pd.read_csv(path, keep_default_na=True).fillna({"note": ""})


def beside(experiment: Experiment, results_dir: Path, complaints: list[str] | None = None) -> pd.DataFrame:
    """The paper's numbers and ours, a line each: what ran (`ran`), `values`, mean, sample standard deviation, n.

    Ours are of the last epoch, on the test split, in the paper's unit. `paper_mean`, `paper_std`, `paper_n` and
    `difference` are nan where a stand-in ran; `within`: whether the means are no farther apart than the sum of both
    standard deviations, None where one of them is not known. `official`: whether all of ours are on the published data.
    `complaints` grows by files that cannot be read.
    """
    complaints = [] if complaints is None else complaints
    lines = []
    grid = {cell.hash for cell in cells(experiment, experiment.methods, experiment.datasets)}

    @functools.cache
    def records_of(method: str, dataset: str) -> list[Record]:
        ran = experiment.ran(dataset)
        asked = cells(experiment, [method], [ran]) if ran is not None else []
        return finished([cell for cell in asked if cell.hash in grid], results_dir, complaints)

    for line in numbers(experiment.paper).to_dict("records"):
        ran = experiment.ran(line["dataset"])
        values, n = _values(experiment, line, records_of, complaints) if ran else ([], 0)
        official = all(
            one.result is not None and one.result.data.official for one in records_of(line["method"], line["dataset"])
        )
        ours = {"mean": _mean(values), "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan}
        paper = {f"paper_{name}": line.pop(name) if not experiment.smoke else math.nan for name in ("mean", "std", "n")}
        difference = ours["mean"] - paper["paper_mean"]
        spread = ours["std"] + paper["paper_std"]
        within = None if math.isnan(difference + spread) else bool(abs(difference) <= spread)
        lines.append(
            {**line, "ran": ran or "", "values": values, **ours, "n": n, **paper,
             "difference": difference, "within": within, "official": official}
        )  # fmt: skip
    return pd.DataFrame(lines)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _values(
    experiment: Experiment,
    line: dict[str, Any],
    records_of: Callable[[str, str], list[Record]],
    complaints: list[str],
) -> tuple[list[float], int]:
    """One number a run, of one line of the paper, and how many runs; of a test its p, and the runs of each side."""
    metric = line["metric"]
    records = records_of(line["method"], line["dataset"])
    if metric == "p_welch":
        others = records_of(experiment.reference or experiment.methods[0], line["dataset"])
        if others == records:
            return [], 0  # the method itself is the reference
        sides = [_known(accuracy(record) for record in side) for side in (records, others)]
        p = welch(*sides)
        return ([], 0) if math.isnan(p) else ([p], min(map(len, sides)))
    if metric == "seconds":
        found = [seconds(record, line["column"]) for record in records]
    elif metric in ("n_aligned", "n_conflicting"):
        conflicting = metric == "n_conflicting"
        found = [counted(record, line["column"], complaints, conflicting=conflicting) for record in records]
    else:
        found = [100 * accuracy(record, metric) for record in records]
    values = _known(found)
    return values, len(values)


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def cells(experiment: Experiment, methods: list[str], datasets: list[str]) -> list[Cell]:
    """The cells of methods on datasets as an experiment runs them."""
    return expand(
        methods, datasets, seeds=experiment.seeds, data_seeds=experiment.data_seeds, epochs=experiment.epochs,
        shared_recipes=experiment.shared_recipes,
    ).cells  # fmt: skip


def finished(cells: list[Cell], results_dir: Path, complaints: list[str]) -> list[Record]:
    """The records of cells that are done, in their order, each run once; `complaints` grows by damaged ones."""
    records = []
    for path in filter(None, (find_record(results_dir, cell) for cell in cells)):
        try:
            record = read_record(path)
        except BenchmarkError as error:
            complaints.append(str(error))
            continue
        records += [record] if record.done else []
    return distinct(records)


def accuracy(record: Record, metric: str = "") -> float:
    """A metric of the last epoch on test (default: the headline), nan where it has no value.

    `first.<metric>`: at the end of the first stage.
    """
    result = record.result
    assert result is not None
    if metric.startswith("first."):
        end = next(iter(result.stages[0].end.values()), {}) if result.stages else {}
        return end.get("test", {}).get(metric.removeprefix("first."), math.nan)
    last = result.selected("last")
    return math.nan if last is None else last.test.get(metric or headlines(record.cell.dataset)[0], math.nan)


def steps(record: Record) -> list[float]:
    """Seconds of each step in its order: training stages, and passes over the data in between (without evaluation).

    Empty where the record does not tell the seconds of each stage.
    """
    spent, result = record.provenance.seconds, record.result
    assert result is not None
    if len(spent.stages) != len(result.stages):
        return []
    by_call = dict(zip((stage.call for stage in result.stages), spent.stages, strict=True))
    for name, value in spent.calls.items():
        number = name.partition(" ")[2]
        if number.isdecimal():
            by_call[int(number)] = value
    return [by_call[call] for call in sorted(by_call)]


def seconds(record: Record, column: str) -> float:
    """Of "Step 2" the seconds of that step; else of the whole training. nan where they are not told."""
    spent = steps(record)
    if not column.startswith("Step "):
        return sum(spent) if spent else math.nan
    index = int(column.removeprefix("Step ")) - 1
    return spent[index] if index < len(spent) else math.nan


def counted(record: Record, column: str, complaints: list[str], *, conflicting: bool) -> float:
    """How many training samples' score, over the largest, is in the bin that `column` names: `[0.1,0.2)`."""
    scores = scores_of(record, complaints)
    if scores is None:
        return math.nan
    edges, n_aligned, n_conflicting = score_bins(*scores)
    low = float(column.strip("[]()").split(",")[0])
    index = int(np.abs(edges[:-1] - low).argmin())
    return float((n_conflicting if conflicting else n_aligned)[index])


def table(experiment: Experiment, lines: pd.DataFrame) -> Table:
    """The paper's own shape: its rows and columns, in each place ours and then the paper's."""
    names = lines.assign(column=_columns(lines))
    columns = list(dict.fromkeys(names.column))
    rows = []
    best = _best(names)
    for row in dict.fromkeys(names.row):
        entries = [Entry(row, row)]
        for column in columns:
            here = names[(names.row == row) & (names.column == column)]
            entries.append(_entry(here.iloc[0], best=here.index[0] in best) if len(here) else Entry(None, ""))
        rows.append(entries)
    heads = [Column("row", "", numeric=False), *(Column(name, name, spread=True) for name in columns)]
    return Table(experiment.name, f"{experiment.name}: {experiment.title}", heads, rows, _notes(experiment, lines))


def _columns(lines: pd.DataFrame) -> pd.Series:
    """Column headings; with the metric where several numbers are in one place."""
    several = lines.duplicated(["row", "column"], keep=False)
    return lines.column.where(~several, lines.column + ", " + lines.metric)


def _best(lines: pd.DataFrame) -> set[int]:
    """Ours that are the highest accuracy of their dataset and metric, where there are several methods."""
    chosen = lines[lines.metric.str.startswith("acc_") & lines["mean"].notna()]
    return {group["mean"].idxmax() for _, group in chosen.groupby(["dataset", "metric"]) if group.method.nunique() > 1}


def _entry(line: pd.Series, *, best: bool) -> Entry:
    """Ours as value, and as text both: `97.20 ± 0.06 (96.88, +0.32 ≠)`."""
    mean, std = (None if math.isnan(line[name]) else float(line[name]) for name in ("mean", "std"))
    return Entry(mean, _text(line), std=std, best=best)


def _text(line: pd.Series) -> str:
    """`97.20 ± 0.06 (96.88, +0.32 ≠)`."""
    metric = line["metric"]
    written = {"seconds": _clock, "p_welch": p_value, "n_aligned": _count, "n_conflicting": _count}
    write = written.get(metric, lambda value: f"{value:.2f}")
    if math.isnan(line["mean"]):
        ours = "-"
    else:
        ours = write(line["mean"]) + (
            f" ± {line['std']:.2f}" if len(line["values"]) > 1 and metric not in written else ""
        )
        ours += "" if line["official"] else MARKED
    if math.isnan(line["paper_mean"]):
        return ours
    theirs = write(line["paper_mean"])
    if metric in written or math.isnan(line["difference"]):
        return f"{ours} ({theirs})"
    mark = {None: "", True: f" {INSIDE}", False: f" {OUTSIDE}"}[line["within"]]
    return f"{ours} ({theirs}, {line['difference']:+.2f}{mark})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _clock(value: float) -> str:
    """`14m 59s`."""
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    text = f"{rest // 60}m {rest % 60:02d}s"
    return f"{hours}h {text}" if hours else text


def _notes(experiment: Experiment, lines: pd.DataFrame) -> list[str]:
    notes = []
    if experiment.smoke:
        pairs = [f"{dataset}: {stand_in}" for dataset, stand_in in experiment.instead.items()]
        notes.append(
            "A smoke run, on stand-ins and shortened: it shows that the experiment runs, and its numbers are not to be "
            f"compared with the paper's, which are left out. What ran instead of what: {'; '.join(pairs)}."
        )
    else:
        notes.append(
            "Ours (last epoch, test split, mean ± sample standard deviation), and in brackets the paper's mean and the "
            f"difference. {INSIDE}: within the sum of both standard deviations; {OUTSIDE}: outside; neither: a spread "
            "is not known."
        )
        if experiment.epochs is not None:
            notes.append(f"Ours with {experiment.epochs} epochs a stage, which is not the paper's setting.")
    if not lines.official.all():
        notes.append(f"{MARKED}: not on the published data; the notes below the comparison have the counts.")
    counts = sorted({int(n) for n in lines.n if n})
    if counts:
        notes.append(f"Runs of ours a place: {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))}.")
    missing = int((lines.n == 0).sum())
    if missing:
        notes.append(f"{missing} of {len(lines)} places have no run of ours (-).")
    if (lines.metric == "seconds").any():
        notes.append("Seconds of training, without evaluation; they compare only within one machine.")
    said = [f"{line.row}, {line.column}: {line.note}" for line in lines.itertuples() if line.note]
    if said and not experiment.smoke:
        notes.append("On the paper's numbers: " + "; ".join(said) + ".")
    return notes
