"""The results of a tuning: the table of its draws, and a figure of their spread and the spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from debiasbench.cell import Cell
from debiasbench.evaluation.selection import SELECTION_RULES, uses_bias_labels
from debiasbench.files import file_names, write_atomically
from debiasbench.plain import encodable
from debiasbench.records import Record, read_records, sources
from debiasbench.report.phrases import Phrase, display_titles
from debiasbench.report.results import headlines, shortened
from debiasbench.report.style import save
from debiasbench.report.tables import (
    DATASET,
    METHOD,
    NOTHING,
    Column,
    Entry,
    Table,
    count,
    csv,
    markdown,
    words,
)
from debiasbench.tuned import TunedValues, tuned_values, write_tuned
from debiasbench.tuning import Trial, Tried, as_chosen, choose, tried, with_values
from debiasbench.wording import duration


@dataclass(frozen=True)
class Conclusion:
    """The outcome of a tuning.

    Attributes:
        found: the draws with their results.
        values: the chosen values.
        table: the table of the draws.
        paths: kind of output -> files that were written.
        lacking: methods on datasets for which no draw has a value.
        complaints: one for each figure that could not be drawn.
    """

    found: list[Tried]
    values: TunedValues
    table: Table
    paths: dict[str, list[Path]]
    lacking: list[str]
    complaints: list[str]


def conclude(
    trials: Sequence[Trial], results_dir: Path, *, rule: str, draws: int, seeds: Sequence[int], output: Path
) -> Conclusion:
    """Choose among draws by their records, and write the chosen values, the table of the draws, and figures.

    Args:
        trials: the draws.
        results_dir: the folder of their records, and of tables and figures.
        rule: the rule that chooses.
        draws: number of draws of each method on each dataset.
        seeds: the seeds of each draw.
        output: the file for the chosen values.
    """
    found = tried(trials, results_dir, rule)
    best = choose(found)
    values = tuned_values(rule, draws, seeds, (as_chosen(one, found) for one in best))
    write_tuned(output, values)
    table = draws_table(found, rule)
    paths = {"tuned values": [output], "tables": []}
    for ending, text in ((".md", markdown(table) + "\n"), (".csv", csv(table))):
        path = results_dir / "tables" / f"tuning-{rule}{ending}"
        write_atomically(path, encodable(text).encode("utf-8"))
        paths["tables"].append(path)
    runs = read_records(*sources(results_dir), shorten=shortened)[0]
    complaints: list[str] = []
    paths["figures"] = draw_tuning(found, runs, rule, results_dir / "figures", complaints)
    chosen = {(one.trial.dataset, one.trial.method) for one in best}
    pairs = dict.fromkeys((trial.dataset, trial.method) for trial in trials)
    lacking = [f"{method} on {dataset}" for dataset, method in pairs if (dataset, method) not in chosen]
    return Conclusion(found, values, table, paths, lacking, complaints)


def draws_table(found: Sequence[Tried], rule: str) -> Table:
    """One row per draw: its title in runs, the value that the rule compares, and the seconds of its runs."""
    best = {id(one) for one in choose(found)}
    rows, notes = [], list[str]()
    for one in found:
        trial, unit = one.trial, 1 if rule == "val_loss" else 100
        value = NOTHING
        if one.value is not None:
            number = abs(one.value)
            value = Entry(number, f"{unit * number:.{2 if unit == 100 else 4}f}", best=id(one) in best)
        seconds = Entry(one.seconds, f"{one.seconds:.0f}")
        row = [*words(trial.dataset, trial.method), count(trial.number), *words(trial.cells[0].method_title)]
        rows.append([*row, value, seconds])
        if one.reason:
            told, where = "Draw {} of {method} on {dataset}: {}.", {"method": trial.method, "dataset": trial.dataset}
            notes.append(Phrase(told, str(trial.number), one.reason, **where))
    n_seeds = max(len(one.trial.cells) for one in found)
    labels = "with" if uses_bias_labels(rule) else "without"
    first = (
        f"{measure(rule)}, of the epoch with the best, {labels} bias labels of validation; mean over {n_seeds} "
        f"seed{'s' * (n_seeds > 1)}. Draw 0 is the method's defaults. Bold: chosen; the earlier draw wins a tie. "
        f"{duration(sum(one.seconds for one in found))} of training in total. The test split was never read."
    )
    columns = [DATASET, METHOD, Column("draw", "draw"), Column("run as", "run as", numeric=False)]
    columns += [Column(rule, rule if rule == "val_loss" else f"{rule} (%)"), Column("seconds", "seconds")]
    return Table(f"tuning-{rule}", f"Draws, chosen by {rule}", columns, rows, [first, *notes], in_caption=1)


def cells_of(found: Iterable[Tried]) -> list[Cell]:
    """One cell per draw, with the titles of method and dataset as in the command."""
    trials = [one.trial for one in found]
    return [replace(one.cells[0], method_title=one.method, dataset_title=one.dataset) for one in trials]


def measure(rule: str) -> str:
    """The value that a rule compares, in words."""
    words = SELECTION_RULES[rule].partition(";")[0]
    return words[0].upper() + words[1:]


def draw_tuning(
    found: Sequence[Tried], records: Sequence[Record], rule: str, folder: Path, complaints: list[str]
) -> list[Path]:
    """Draw one figure per dataset: the draws of each method, and below them the runs with chosen values, if any.

    Args:
        found: the draws.
        records: records that include the runs with tuned values.
        rule: the rule that chose; the figure shows the values that it compares.
        folder: the folder for the figures.
        complaints: figures that cannot be drawn are added here.
    """
    from debiasbench.report import figures, pictures

    runs: dict[tuple[str, str], list[float]] = {}
    for record in records:
        cell = record.cell
        if cell.tuned is None or cell.tuned.rule != rule or record.result is None:
            continue
        value = record.result.criterion(rule, headlines(cell.dataset))
        if value is not None:
            for title in {cell.dataset_title, cell.data_title}:
                runs.setdefault((title, cell.method_title), []).append(abs(value))
    best = {id(one) for one in choose(found)}
    cells = cells_of(found)
    displays = pictures.marked_titles_of(display_titles(cells), cells, records)
    named = displays["method"]
    paths: list[Path] = []
    datasets = dict.fromkeys(one.trial.dataset for one in found)
    for dataset, name in file_names(datasets).items():
        shown: dict[str, figures.Draws] = {}
        for method in dict.fromkeys(one.trial.method for one in found if one.trial.dataset == dataset):
            some = [one for one in found if (one.trial.dataset, one.trial.method) == (dataset, method)]
            there = [one for one in some if one.value is not None]
            if there:
                shown[named[method]] = figures.Draws(
                    np.array([abs(one.value or 0.0) for one in there]),
                    default=next((place for place, one in enumerate(there) if one.trial.number == 0), None),
                    chosen=next(place for place, one in enumerate(there) if id(one) in best),
                    runs=np.array(runs.get((dataset, with_values(method, {"tuned": rule})), [])),
                )
        if not shown:
            continue
        try:
            figure = figures.tuning_figure(
                shown, rule=rule, percent=rule != "val_loss",
                title=f"Draws and seeds on {displays['dataset'][dataset]}",
                order=[named[method] for method in dict.fromkeys(one.trial.method for one in found)],
            )  # fmt: skip
            paths += save(figure, folder / f"tuning-{rule}-{name}")
        except Exception as error:  # a tuning must not fail because of a figure
            complaints.append(f"tuning-{rule}-{name} could not be drawn: {type(error).__name__}: {error}")
    return paths
