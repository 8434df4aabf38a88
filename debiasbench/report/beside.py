"""Published numbers beside ours in the comparison, never presented as if they were measured here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.grid import dataset_from_spec
from debiasbench.records import Record
from debiasbench.report.published import NUMBERS, UNRELEASED, generator_of, read_numbers
from debiasbench.report.results import Measure, dataset_title, headlines
from debiasbench.report.tables import NOTHING, Entry, Table, count, words

COLUMNS = (*NUMBERS, "source")
UNIQUE = ("method", "dataset", "generator", "metric", "source")


def read(path: Path, metrics: Iterable[str]) -> pd.DataFrame:
    """Read published numbers from a CSV with these columns; datasets get the titles that our tables use.

    Args:
        path: one number per line; accuracies are in per cent.
        metrics: those of the records; the headline metrics of every dataset are allowed too.

    Raises:
        BenchmarkError: the file cannot be used; the message says what is wrong, and in which lines.
    """
    known = sorted({*metrics, *(metric for name in datasets.classes() for metric in headlines(name))})
    lines = read_numbers(path, COLUMNS, unique=UNIQUE, metrics=known)
    titles, problems = [], []
    for number, dataset in zip(lines.line, lines.dataset, strict=True):
        try:
            titles.append(_title(dataset))
        except BenchmarkError as error:
            problems.append(f"{path}, line {number}: {error}")
    if problems:
        raise BenchmarkError("\n".join(problems))
    return lines.assign(dataset=titles)


def _title(dataset: str) -> str:
    """The title of a dataset known here, however it is written; for any other dataset the text as it is."""
    if dataset.partition(":")[0] not in {**datasets.classes(), **datasets.aliases()}:
        return dataset
    return dataset_from_spec(dataset)[1]


def with_published(
    comparison: Table, lines: pd.DataFrame, measures: Sequence[Measure], records: Iterable[Record], path: Path
) -> tuple[Table, list[str]]:
    """Add a row for each method and source below our rows -> the comparison, and complaints.

    Args:
        comparison: from `sections.comparison_table`; each measure has two columns, its values and n.
        lines: from `read`.
        measures: those of the comparison.
        records: the records behind the comparison; they name the generators of our data.
        path: the file, for the notes.
    """
    shown = list(dict.fromkeys((one.dataset, one.metric) for one in measures))
    here = lines[[pair in shown for pair in zip(lines.dataset, lines.metric, strict=True)]]
    if not len(here):
        columns = ", ".join(f"{dataset} {metric}" for dataset, metric in shown)
        return comparison, [f"{path}: none of its numbers is for a dataset and metric shown here: {columns}."]
    ours: dict[str, set[str]] = {}
    for record in records:
        ours.setdefault(dataset_title(record.cell), set()).add(generator_of(record))
    same = [
        ours.get(dataset) == {generator} and generator != UNRELEASED
        for dataset, generator in zip(here.dataset, here.generator, strict=True)
    ]
    here = here.assign(same=same)
    sources = list(dict.fromkeys(here.source))
    rows = []
    for method, source in dict.fromkeys(zip(here.method, here.source, strict=True)):
        some = here[(here.method == method) & (here.source == source)].sort_values("same", ascending=False)
        row = words(f"{method}, published [{sources.index(source) + 1}]")
        told = set()  # by dataset and metric: of the columns of several selection rules, the first has the number
        for measure in measures:
            pair = (measure.dataset, measure.metric)
            place = some[(some.dataset == pair[0]) & (some.metric == pair[1])]
            row += [NOTHING, NOTHING] if pair in told or place.empty else _entries(place)
            told.add(pair)
        rows.append(row)
    listed = "; ".join(f"[{index}] {source}" for index, source in enumerate(sources, 1))
    notes = [
        f"published: not measured here, but copied from {path.name}; never bold, and in no rank or test: {listed}."
    ]
    if not all(same):
        notes.append(
            "A word before a published number names the generator of its data, if ours is another one or unknown: "
            "these are different data under one name, and must not be compared."
        )
    if len(here) < len(lines):
        notes.append(f"{len(lines) - len(here)} of {len(lines)} published numbers are for other columns than these.")
    return replace(comparison, rows=[*comparison.rows, *rows], notes=[*comparison.notes, *notes]), []


def _entries(place: pd.DataFrame) -> list[Entry]:
    """The numbers for one place of the table, and n; only a number for data of our generator becomes a value."""
    parts = []
    for line in place.itertuples():
        spread = "" if math.isnan(line.std) else f" ± {line.std:.2f}"
        parts.append(f"{'' if line.same else f'{line.generator}: '}{line.mean:.2f}{spread}")
    text, first = "; ".join(parts), place.iloc[0]
    if not first["same"]:
        return [Entry(None, text), NOTHING]
    std = None if math.isnan(first["std"]) else first["std"] / 100
    n = NOTHING if math.isnan(first["n"]) else count(int(first["n"]))
    return [Entry(first["mean"] / 100, text, std=std), n]
