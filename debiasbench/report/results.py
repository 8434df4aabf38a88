"""Records as one tidy table, and the comparison of methods in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.metrics import SELECTION_RULES
from debiasbench.parameters import nearest
from debiasbench.records import read_records
from debiasbench.report.statistics import compare as compare_runs
from debiasbench.report.statistics import holm, pairwise_welch, ranks_with_ties

SPLITS = ("valid", "test")
REQUIRED = ("method", "dataset", "seed", "data_seed", "status", "split", "select", "fingerprint")


def to_frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row for each cell x split x selection rule; a failed cell has one row without metrics.

    Columns: method, dataset (labels), seed, data_seed, status, split, select, epoch, every metric (shares in [0, 1]),
    seconds, official, fingerprint, protocol, hash, path, and the parameters as `method.<name>`, `dataset.<name>`
    and `recipe.<name>`.
    """
    return pd.DataFrame([row for record in records for row in _rows(record)])


def dataset_title(cell: dict[str, Any]) -> str:
    """The dataset's label without its data seed: drawings of one dataset stand together in tables."""
    name, _, options = cell["dataset_title"].partition(":")
    kept = [part for part in options.split(",") if part and not part.startswith("data_seed=")]
    return name + (":" + ",".join(kept) if kept else "")


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    cell, result = record["cell"], record.get("result", {})
    common = {
        "method": cell["method_title"],
        "dataset": dataset_title(cell),
        "seed": cell["seed"],
        "data_seed": cell["dataset_parameters"].get("data_seed", 0),
        "status": record["status"],
    }
    data = result.get("data", {})
    tail = {
        "seconds": record["provenance"]["seconds"].get("total"),
        "official": data.get("official"),
        "fingerprint": data.get("fingerprint", ""),
        "protocol": record["provenance"]["versions"].get("protocol"),
        "hash": record["hash"],
        "path": str(record.get("path", "")),
    }
    for part in ("method", "dataset"):
        tail[f"{part}.name"] = cell[part]
        tail[f"{part}.version"] = cell[f"{part}_version"]
        tail |= {f"{part}.{key}": value for key, value in cell[f"{part}_parameters"].items()}
    tail |= {f"recipe.{key}": tuple(v) if isinstance(v, list) else v for key, v in cell["recipe"].items()}
    if record["status"] != "done":
        return [{**common, "split": None, "select": None, "epoch": None, **tail}]
    rows = []
    for split in SPLITS:
        for rule in SELECTION_RULES:
            place = result["selection"].get(rule)
            metrics = result["epochs"][place][split] if place is not None else {}
            epoch = result["epochs"][place]["epoch"] if place is not None else None
            rows.append({**common, "split": split, "select": rule, "epoch": epoch, **metrics, **tail})
    return rows


def load_results(path: str | Path) -> pd.DataFrame:
    """All records below a folder as one tidy table (see `to_frame`).

    Raises:
        BenchmarkError: there is no such folder, or it holds no record that can be read.
    """
    records, complaints = read_records(_existing(Path(path)))
    if not records:
        raise BenchmarkError("\n".join([f"There are no records in {path}.", *complaints]))
    return to_frame(records)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise BenchmarkError(f"There is no results folder {folder}.")
    return folder


def runs(table: pd.DataFrame, dataset: str, metric: str, *, split: str = "test", select: str = "last") -> pd.DataFrame:
    """The finished runs of one dataset with the chosen metric as `value`.

    Raises:
        BenchmarkError: the table lacks the metric, or mixes versions or data that must not be mixed.
    """
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise BenchmarkError(f"This is no table of results: it lacks the columns {', '.join(missing)}.")
    metrics = [name for name in table.columns if name.startswith("acc_")]
    if metric not in table:
        raise BenchmarkError(f"No metric '{metric}'.{nearest(metric, metrics)} Known: {', '.join(metrics)}.")
    chosen = table[
        (table["dataset"] == dataset)
        & (table["status"] == "done")
        & (table["split"] == split)
        & (table["select"] == select)
    ]
    n_versions = [chosen[name].nunique() for name in ("protocol", "dataset.version")]
    n_versions += chosen.groupby("method")["method.version"].nunique().tolist()
    if max(n_versions) > 1:
        raise BenchmarkError(
            f"The results on {dataset} come from different versions of the suite, a method or the dataset: "
            "compare one version at a time."
        )
    _refuse_two_meanings(chosen, dataset)
    mixed = chosen.groupby("data_seed").fingerprint.nunique()
    if (mixed > 1).any():
        raise BenchmarkError(
            f"The results on {dataset} were trained on different data under one name (fingerprints differ for "
            f"data seed {', '.join(map(str, mixed[mixed > 1].index))}): they cannot be compared."
        )
    twice = chosen[chosen.duplicated(["method", "seed", "data_seed", "fingerprint"])]
    if len(twice):
        raise BenchmarkError(
            f"There are several runs of {twice.method.iloc[0]} on {dataset} with seed {twice.seed.iloc[0]}, made with "
            f"different settings under one label (own and shared recipes, say): keep them in separate folders."
        )
    columns = ["method", "seed", "data_seed", "fingerprint", "value", *({"n_worst"} & set(chosen.columns))]
    return chosen.assign(value=chosen[metric].astype(float)).dropna(subset=["value"])[columns]


def _refuse_two_meanings(chosen: pd.DataFrame, dataset: str) -> None:
    """A label must stand for one set of values; what an older record does not know says nothing."""
    settings = [name for name in chosen if name.startswith(("method.", "recipe."))]
    for label, rows in chosen.groupby("method", sort=False):
        for name in settings:
            values = sorted({repr(value) for value in rows[name] if not _unknown(value)})
            if len(values) > 1:
                raise BenchmarkError(
                    f"The label '{label}' on {dataset} stands for runs with different settings "
                    f"({name} {' and '.join(values)}; a default changed between versions, or own and shared recipes): "
                    "keep them in separate folders."
                )


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def headline_of(table: pd.DataFrame, dataset: str) -> str:
    """The dataset's headline metric, from its class; acc_avg where the dataset is not known here."""
    from debiasbench.datasets import registry

    names = table.loc[table.dataset == dataset, "dataset.name"].unique()
    cls = registry.classes().get(names[0]) if len(names) else None
    return cls.headline[0] if cls else "acc_avg"


def compare(
    table: pd.DataFrame,
    *,
    reference: str | None = None,
    metric: str | None = None,
    split: str = "test",
    select: str = "last",
) -> pd.DataFrame:
    """Test on each dataset whether each method is better than a reference method.

    Args:
        table: from `debiasbench.run` or `load_results`.
        reference: a method's label; default: the first method of the table.
        metric: default: each dataset's headline metric. split, select: which numbers.

    Returns:
        One row for each dataset and method: n, gap, p values (Welch one-sided as the headline, paired by seed,
        Wilcoxon), the same after Holm's correction over all comparisons of the table, Hedges' g, the 95 % interval of
        the gap, and the gap that this many runs could detect.

    Raises:
        BenchmarkError: no such reference; different data or versions under one name.
    """
    methods = list(dict.fromkeys(table.method))
    reference = reference or methods[0]
    if reference not in methods:
        raise BenchmarkError(
            f"No results of the reference '{reference}'.{nearest(reference, methods)} There are: {', '.join(methods)}."
        )
    datasets = dict.fromkeys(table.dataset)
    columns = [Column(dataset, metric or headline_of(table, dataset), select) for dataset in datasets]
    return compare_columns(table, columns, reference=reference, split=split)


def compare_columns(
    table: pd.DataFrame, columns: Sequence[Column], *, reference: str | None = None, split: str = "test"
) -> pd.DataFrame:
    """As `compare`, in the columns of a comparison; Holm's correction is over all of them."""
    reference = reference or table.method.iloc[0]
    parts = []
    for column in columns:
        chosen = runs(table, column.dataset, column.metric, split=split, select=column.select)
        others = [method for method in dict.fromkeys(chosen.method) if method != reference]
        common = {"dataset": column.dataset, "metric": column.metric, "split": split, "select": column.select}
        parts.append(_Family(chosen, reference, others, common))
    return pd.DataFrame(_test(parts))


@dataclass(frozen=True)
class _Family:
    """Comparisons on one dataset: of `others` against `reference`; `turned`: of the reference against them."""

    runs: pd.DataFrame
    reference: str
    others: list[str]
    common: dict[str, Any]
    turned: bool = False


def _test(families: list[_Family]) -> list[dict[str, Any]]:
    """A row a comparison, Holm-corrected over all of them."""
    rows: list[dict[str, Any]] = []
    n_comparisons = max(sum(len(family.others) for family in families), 1)
    for family in families:
        base = family.runs[family.runs.method == family.reference]
        for method in family.others:
            other = family.runs[family.runs.method == method]
            a, b = (base, other) if family.turned else (other, base)
            pairs = a.merge(b, on=["seed", "data_seed", "fingerprint"])
            pair_values = list(zip(pairs.value_x, pairs.value_y, strict=True))
            result = compare_runs(a.value.tolist(), b.value.tolist(), pair_values, n_comparisons=n_comparisons)
            names = {"method": method, "reference": family.reference, "n_pairs": len(pairs)}
            rows.append({**family.common, **names, **vars(result)})
    for test in ("welch", "paired", "wilcoxon"):
        for row, corrected in zip(rows, holm([row[test] for row in rows]), strict=True):
            row[f"{test}_holm"] = corrected
    return rows


class Column(NamedTuple):
    """What one column of a comparison shows."""

    dataset: str
    metric: str
    select: str = "last"


def summaries(table: pd.DataFrame, columns: Sequence[Column], *, split: str = "test") -> dict[Column, pd.DataFrame]:
    """Mean, sample standard deviation and n of each method in each column.

    Also `best`, and `tied`: not separable from the best. "Separable" is decided after the fact: Welch one-sided of
    the best method against each other, Holm below .05 over all these comparisons. With fewer than two runs a side
    nothing is separable, and `tied` says so. Methods that know the bias take no part in this, unless all do.
    """
    results, families = {}, []
    knowing = bias_knowing(table)
    for column in columns:
        chosen = runs(table, column.dataset, column.metric, split=split, select=column.select)
        results[column] = chosen.groupby("method", sort=False).value.agg(["mean", "std", "count"])
        if len(chosen):
            there = list(results[column].index)
            competing = [method for method in there if method not in knowing] or there
            best = results[column]["mean"][competing].idxmax()
            others = [method for method in competing if method != best]
            families.append(_Family(chosen, best, others, {"column": column}, turned=True))
    tests = _test(families)
    for family in families:
        column = family.common["column"]
        tied = {row["method"] for row in tests if row["column"] == column and not row["welch_holm"] < 0.05}
        one = results[column]
        results[column] = one.assign(best=one.index == family.reference, tied=[name in tied for name in one.index])
    return results


def bias_knowing(table: pd.DataFrame) -> set[str]:
    """Labels of the methods that train with bias labels: references, not competitors. Of methods known here."""
    from debiasbench.methods import registry

    classes = registry.classes()
    pairs = table[["method", "method.name"]].drop_duplicates().itertuples(index=False)
    return {label for label, name in pairs if name in classes and classes[name].needs_bias_labels}


def ranks(table: pd.DataFrame, columns: Sequence[Column], *, split: str = "test") -> pd.DataFrame:
    """Methods x columns: the rank by mean accuracy (1 is best), shared by what no test tells apart.

    A method's rank is 1 + the number of methods that are separably better: Welch one-sided, Holm below .05 over both
    directions of all pairs of all columns. nan where a method has no run.
    """
    methods = list(dict.fromkeys(table.method))
    values, tests = {}, []
    for column in columns:
        chosen = runs(table, column.dataset, column.metric, split=split, select=column.select)
        values[column] = [chosen[chosen.method == method].value.to_numpy() for method in methods]
        tests.append(pairwise_welch(values[column]))
    corrected = np.asarray(holm(np.concatenate([p.ravel() for p in tests]).tolist())) if tests else np.empty(0)
    separable = (corrected < 0.05).reshape(len(columns), len(methods), len(methods))
    means = [[float(one.mean()) if len(one) else float("nan") for one in values[column]] for column in columns]
    found = [ranks_with_ties(*pair) for pair in zip(means, separable, strict=True)]
    return pd.DataFrame(dict(zip(columns, found, strict=True)), index=methods)


def summary(
    table: pd.DataFrame, dataset: str, metric: str, *, split: str = "test", select: str = "last"
) -> pd.DataFrame:
    """`summaries` of one dataset."""
    column = Column(dataset, metric, select)
    return summaries(table, [column], split=split)[column]
