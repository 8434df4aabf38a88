"""The table of accuracies by group: which group is worst, and where a method loses accuracy in return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from debiasbench.escaping import one_line
from debiasbench.records import MOST_GROUPS, DataFacts, GroupFacts, Record, Result
from debiasbench.report.phrases import Phrase
from debiasbench.report.results import dataset_title, distinct
from debiasbench.report.sections import n_runs
from debiasbench.report.tables import METHOD, Column, Table, percent, words

_Key = tuple[int | None, int | None, str | None]  # label, value of the bias, name


def groups_tables(records: Sequence[Record]) -> list[Table]:
    """A table for each dataset whose records have groups, at most `MOST_GROUPS` of them, with one column per group."""
    by_dataset: dict[str, list[Record]] = {}
    for record in distinct(records):
        by_dataset.setdefault(dataset_title(record.cell), []).append(record)
    return [table for dataset, some in by_dataset.items() if (table := _table(dataset, some))]


def _table(dataset: str, records: list[Record]) -> Table | None:
    """Methods x groups of one dataset; None if no group has samples."""
    results = [record.result for record in records if record.result]
    sizes: dict[_Key, set[int]] = {}  # an empty group keeps its place: it may have samples in another record
    runs: dict[str, dict[_Key, list[float]]] = {}
    for record, result in zip(records, results, strict=True):
        of_method = runs.setdefault(record.cell.method_title, {})
        for group in _groups(result):
            key = group.y, group.bias, group.group
            counts = sizes.setdefault(key, set())
            if group.acc is not None:
                counts.add(group.n)
                of_method.setdefault(key, []).append(group.acc)
    names = _names(sizes, [result.data for result in results])
    sizes = {key: counts for key, counts in sizes.items() if counts}
    if not sizes:
        return None
    rows = []
    for method, found in runs.items():
        accuracies = [np.array(found.get(key, [np.nan])) for key in sizes]
        spreads = [one.std(ddof=1) if len(one) > 1 else np.nan for one in accuracies]
        row = [percent(one.mean(), spread, len(one)) for one, spread in zip(accuracies, spreads, strict=True)]
        rows.append([*words(method), *row])
    columns = [METHOD]
    for key, counts in sizes.items():
        n = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
        columns.append(Column(names[key], f"{names[key]} (n {n})", spread=True))
    of = "group of label / bias" if all(group is None for _, _, group in sizes) else "group"
    n_of_runs = {len(accuracies) for found in runs.values() for accuracies in found.values()}
    note = (
        f"Test accuracy (%) in each {of} at the last epoch, mean ± sample standard deviation (n - 1) over "
        f"{n_runs(n_of_runs)}; in brackets the number of test samples. Nothing is tested here: the lowest of several "
        "accuracies is low by chance as well."
    )
    title = Phrase("Accuracy by group on {dataset}", dataset=dataset)
    return Table(f"groups-{dataset}", title, columns, rows, [note], in_caption=1)


def _groups(result: Result) -> tuple[GroupFacts, ...]:
    """The groups of the test split; none if there are more than `MOST_GROUPS`, which short records leave out."""
    groups = result.groups.get("test", ())
    return groups if len(groups) <= MOST_GROUPS else ()


def _names(keys: Collection[_Key], data: Sequence[DataFacts]) -> dict[_Key, str]:
    """`blond / male`; with numbers if no record has names for labels and values; with both if two names are equal.

    Older records have no names: the names of one record hold for all.
    """
    labels = next((one.class_names for one in data if one.class_names), ())
    values = next((one.bias_values[0] for one in data if one.bias_values), ())
    names, numbers = {}, {}
    for place, key in enumerate(keys):
        y, bias, group = key
        name = f"{_called(labels, y)} / {_called(values, bias)}" if group is None else group
        names[key] = one_line(name)
        numbers[key] = f"{y} / {bias}" if group is None else str(place)
    often = Counter(names.values())
    return {key: name if often[name] == 1 else f"{name} [{numbers[key]}]" for key, name in names.items()}


def _called(names: Sequence[str], index: int | None) -> str:
    return names[index] if index is not None and 0 <= index < len(names) else str(index)
