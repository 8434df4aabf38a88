"""The table of accuracies by group: which group is worst, and where a method loses accuracy in return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from debiasbench.records import MOST_GROUPS, DataFacts, GroupFacts, Record
from debiasbench.report.phrases import Phrase
from debiasbench.report.results import dataset_title, distinct
from debiasbench.report.tables import METHOD, Column, Table, percent, words


def groups_tables(records: Sequence[Record]) -> list[Table]:
    """A table for each dataset whose records have groups, at most `MOST_GROUPS` of them, with one column per group."""
    by_dataset: dict[str, list[Record]] = {}
    for record in distinct(records):
        if record.result and 0 < len(record.result.groups.get("test", ())) <= MOST_GROUPS:
            by_dataset.setdefault(dataset_title(record.cell), []).append(record)
    return [table for dataset, some in by_dataset.items() if (table := _table(dataset, some))]


def _table(dataset: str, records: list[Record]) -> Table | None:
    """Methods x groups of one dataset; None if no group has samples."""
    results = [record.result for record in records if record.result]
    sizes: dict[tuple[object, ...], set[int]] = {}
    runs: dict[str, dict[tuple[object, ...], list[float]]] = {}
    for record, result in zip(records, results, strict=True):
        of_method = runs.setdefault(record.cell.method_title, {})
        for group in result.groups["test"]:
            if group.acc is not None:
                sizes.setdefault(_key(group), set()).add(group.n)
                of_method.setdefault(_key(group), []).append(group.acc)
    if not sizes:
        return None
    named = {_key(group): _name(group, result.data) for result in results for group in result.groups["test"]}
    rows = []
    for method, found in runs.items():
        accuracies = [np.array(found.get(key, [np.nan])) for key in sizes]
        spreads = [one.std(ddof=1) if len(one) > 1 else np.nan for one in accuracies]
        row = [percent(one.mean(), spread, len(one)) for one, spread in zip(accuracies, spreads, strict=True)]
        rows.append([*words(method), *row])
    columns = [METHOD]
    for key, counts in sizes.items():
        n = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
        columns.append(Column(named[key], f"{named[key]} (n {n})", spread=True))
    of = "group" if any(group.group for group in results[0].groups["test"]) else "group of label / bias"
    note = (
        f"Test accuracy (%) in each {of} at the last epoch, mean ± sample standard deviation (n - 1) over runs; "
        "in brackets the number of test samples. Nothing is tested here: the lowest of several accuracies is low by "
        "chance as well."
    )
    title = Phrase("Accuracy by group on {dataset}", dataset=dataset)
    return Table(f"groups-{dataset}", title, columns, rows, [note], in_caption=1)


def _key(group: GroupFacts) -> tuple[object, ...]:
    return group.y, group.bias, group.group


def _name(group: GroupFacts, data: DataFacts) -> str:
    """`blond / male`; with numbers if the record has no names for labels and values."""
    if group.group is not None:
        return group.group
    label = _called(data.class_names, group.y)
    value = _called(data.bias_values[0] if data.bias_values else None, group.bias)
    return f"{label} / {value}"


def _called(names: Sequence[str] | None, index: int | None) -> str:
    return names[index] if names and index is not None and 0 <= index < len(names) else str(index)
