"""Records as one tidy table, and comparisons of its methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.own import is_own_metric
from debiasbench.evaluation.selection import SELECTION_RULES, direction
from debiasbench.files import to_path
from debiasbench.parameters import suggestion
from debiasbench.plain import encodable
from debiasbench.records import Metrics, Record, Result, in_brief, read_records, read_scores, without_copies
from debiasbench.report.statistics import LEVEL, holm, pairwise_welch, ranks_with_ties, welch
from debiasbench.report.statistics import compare as compare_runs

TESTS = ("welch", "paired", "wilcoxon", "sign_flip")

SPLITS = ("valid", "test")
VALIDATED = "acc_avg"  # the metric shown for the biased validation split
PLACE = ("split", "select", "epoch")
Place = tuple[str | None, str | None, int | None]
REQUIRED = (
    "method", "dataset", "seed", "data_seed", "status", "split", "select", "fingerprint", "device_kind", "precision",
    "protocol", "method.name", "method.version", "dataset.name", "dataset.version",
)  # fmt: skip

WANTED = "as debiasbench.run and debiasbench.load_results return it"


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row for each cell x split x selection rule; a failed cell has one row without metrics.

    Columns: method, dataset (titles), seed, data_seed, status, split, select, epoch, every metric (fractions in
    [0, 1], nan without a value), seconds, device_kind ("cpu", "cuda", "" if unknown), precision ("fp32", "tf32",
    "bf16", ""), official, fingerprint, protocol, hash, path, and the parameters as `method.<name>`, `dataset.<name>`
    and `recipe.<name>`. Draws of a tuning have their number in `draw`; runs with tuned values say in `method.tuned`
    how they were chosen.
    """
    return in_parts(records).whole()


@dataclass(frozen=True)
class InParts:
    """The table of `to_frame`, with the settings of each record stored once and not in each of its rows.

    Attributes:
        cells: one row per record, with what all its rows share. rows: place and metrics of each row.
        of_rows: the index in `cells` for each row.
        columns: the columns of the whole table, in order.
    """

    cells: pd.DataFrame
    rows: pd.DataFrame
    of_rows: np.ndarray
    columns: list[str]

    def whole(self, which: Any = slice(None), columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The table as one frame; `which`: a NumPy index or mask of rows; `columns`: those to keep."""
        wanted = self.columns if columns is None else columns
        cells = self.cells[[name for name in wanted if name in self.cells]].iloc[self.of_rows[which]]
        rows = self.rows[[name for name in wanted if name in self.rows]].iloc[which]
        return pd.concat([part.reset_index(drop=True) for part in (cells, rows)], axis=1)[list(wanted)]

    def without_settings(self) -> pd.DataFrame:
        """All rows without parameters and recipes, like the function `without_settings`."""
        return self.whole(columns=_but_settings(self.columns))

    def of_rules(self, rules: Iterable[str]) -> pd.DataFrame:
        """The rows of the epochs that these rules select."""
        return self.whole(self.rows["select"].isin(list(rules)).to_numpy())

    def by_method(self, rank: dict[str, int]) -> InParts:
        """The same table with its rows in the order of their methods' ranks."""
        order = self.cells["method"].map(rank).to_numpy()[self.of_rows].argsort(kind="stable")
        return replace(self, rows=self.rows.iloc[order].reset_index(drop=True), of_rows=self.of_rows[order])


def in_parts(records: Iterable[Record]) -> InParts:
    """The table of `to_frame` in parts."""
    cells: list[dict[str, Any]] = []
    of_rows: list[int] = []
    places: list[Place] = []
    metrics: list[Metrics] = []
    layouts: dict[tuple[str, ...], None] = {}
    headline_metrics: set[str] = set()
    for record in records:
        head, tail = _of_cell(record)
        for place, found in _rows(record):
            of_rows.append(len(cells))
            places.append(place)
            metrics.append(found)
            layouts[(*head, *PLACE, *found, *tail)] = None
        cells.append(head | tail)
        headline_metrics.update(headlines(record.cell.dataset))
    names = list(dict.fromkeys(name for layout in layouts for name in layout))
    columns = [
        *names,
        *sorted(headline_metrics - set(names)),
    ]  # also those without a value in any run
    of_cells = pd.DataFrame(cells)
    of_metrics = {
        name: np.array([one.get(name, math.nan) for one in metrics], dtype=float)
        for name in columns if name not in of_cells and name not in PLACE
    }  # fmt: skip
    rows = pd.concat([pd.DataFrame(places, columns=list(PLACE)), pd.DataFrame(of_metrics)], axis=1)
    return InParts(of_cells, rows, np.array(of_rows, dtype=int), columns)


def headlines(dataset: str) -> tuple[str, ...]:
    """The headline metrics of the dataset with this name, in order; acc_avg if it is not known here."""
    from debiasbench.datasets import registry

    cls = registry.classes().get(dataset)
    return cls.headline if cls else ("acc_avg",)


def shortened(record: Record) -> Record:
    """The part of a record that a report keeps; curves have the headline metric, on validation plain accuracy."""
    return in_brief(record, valid=VALIDATED, test=headlines(record.cell.dataset)[0])


def dataset_title(cell: Cell) -> str:
    """The dataset's title without its data seed, so that tables show all draws of a dataset together."""
    return cell.data_title


def data_seed(cell: Cell) -> int:
    """The seed of the draw of the data; 0 if the dataset has none."""
    seed = cell.dataset_parameters.get("data_seed", 0)
    return seed if type(seed) is int else 0


def distinct(records: Iterable[Record]) -> list[Record]:
    """The finished records in the given order, without repetitions: records of another data seed but equal data.

    If a dataset draws nothing, runs of a method and seed are equal for all data seeds. They count as one run, the one
    with the lowest data seed.
    """
    done = [record for record in records if record.result is not None]
    first: dict[tuple[str, ...], Record] = {}
    for record in sorted(done, key=lambda one: data_seed(one.cell)):
        first.setdefault(_run_of(record), record)
    return [record for record in done if data_seed(record.cell) == data_seed(first[_run_of(record)].cell)]


def _run_of(record: Record) -> tuple[str, ...]:
    """What identifies a run of a method; equal for records that repeat a run."""
    assert record.result is not None
    cell = record.cell
    return cell.method_title, dataset_title(cell), str(cell.seed), record.result.data.fingerprint


def scores_of(record: Record, complaints: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """`read_scores` of a record; None and a complaint if its arrays are damaged."""
    assert record.path is not None, "only records that were read have arrays"
    try:
        return read_scores(record.path)
    except BenchmarkError as error:
        complaints.append(str(error))
        return None


def _of_cell(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns that all rows of a record have in common: those before and those after the metrics."""
    cell, result = record.cell, record.result
    head = {
        "method": cell.method_title,
        "dataset": dataset_title(cell),
        "seed": cell.seed,
        "data_seed": data_seed(cell),
        "status": record.status,
    }
    tail: dict[str, Any] = {
        "seconds": record.provenance.seconds.total,
        "device_kind": record.device_kind,
        "precision": record.precision,
        "official": result.data.official if result else None,
        "fingerprint": result.data.fingerprint if result else "",
        "protocol": record.provenance.protocol,
        "hash": record.hash,
        "path": str(record.path or ""),
    }
    tail |= {"draw": cell.draw.number} if cell.draw else {}
    tail |= {"method.name": cell.method, "method.version": cell.method_version}
    tail |= {"method.tuned": cell.tuned.words} if cell.tuned else {}
    tail |= {f"method.{key}": value for key, value in cell.method_parameters.items()}
    tail |= {"dataset.name": cell.dataset, "dataset.version": cell.dataset_version}
    tail |= {f"dataset.{key}": value for key, value in cell.dataset_parameters.items()}
    tail |= {f"recipe.{key}": tuple(v) if isinstance(v, list) else v for key, v in cell.recipe.items()}
    # if Arrow is installed, pandas uses it for text; it has no lone surrogates, as in a path that is not UTF-8
    return head, {name: encodable(value) if isinstance(value, str) else value for name, value in tail.items()}


def _rows(record: Record) -> Iterator[tuple[Place, Metrics]]:
    """Place and metrics of each row of a record."""
    if record.result is None:
        yield (None, None, None), {}
        return
    by_rule = {rule: record.result.selected(rule) for rule in rules_of(record.result)}
    for split in SPLITS:
        for rule, selected in by_rule.items():
            if selected is None:
                yield (split, rule, None), {}
            else:
                yield (split, rule, selected.epoch), selected.test if split == "test" else selected.valid


def rules_of(result: Result) -> list[str]:
    """The selection rules of a record: those of the suite, and others that it was run with."""
    return list(dict.fromkeys([*SELECTION_RULES, *result.selection]))


def text_of(rule: str) -> str:
    """What a rule selects, in words."""
    return SELECTION_RULES.get(rule, f"by {rule}, a function outside the suite")


def metrics_in(table: pd.DataFrame) -> list[str]:
    """The metrics of a table that can compare methods: accuracies, and those outside the suite."""
    return [name for name in table.columns if name.startswith("acc_") or is_own_metric(name)]


def results_in(table: pd.DataFrame, to: str) -> pd.DataFrame:
    """The rows of finished runs, without the draws of a tuning, which are not results.

    Raises:
        BenchmarkError: there is none. The message names the purpose `to`, "draw" or "compare".
    """
    results = table[table.draw.isna()] if "draw" in table else table
    done = results[results.status == "done"]
    if not len(done):
        told = "failed runs alone" if len(results) else "only draws of a tuning" if len(table) else "no rows"
        raise BenchmarkError(f"There is nothing to {to}: the table has {told}.")
    return done


def check_metric(table: pd.DataFrame, metric: str) -> None:
    """Refuse a name that is not a metric of the table; the BenchmarkError lists the metrics."""
    known = metrics_in(table)
    if metric not in known:
        raise BenchmarkError(f"No metric '{metric}'.{suggestion(metric, known)} Known: {', '.join(known)}.")


def check_rule(table: pd.DataFrame, rule: str) -> None:
    """Refuse a name that is not a selection rule of the suite or the table; the BenchmarkError lists the rules."""
    known = list(dict.fromkeys([*SELECTION_RULES, *table["select"].dropna()]))
    if rule not in known:
        raise BenchmarkError(f"No selection rule '{rule}'.{suggestion(rule, known)} Known: {', '.join(known)}.")


def check_reference(reference: str, methods: Sequence[str], where: str = "") -> None:
    """Refuse a reference that is not among the methods; the BenchmarkError lists them, and says `where` it looked."""
    if reference not in methods:
        raise BenchmarkError(
            f"No results of the reference '{reference}'{where}.{suggestion(reference, methods)} "
            f"There are: {', '.join(methods)}."
        )


def load_results(path: str | Path) -> pd.DataFrame:
    """The records below a folder as one tidy table; see `to_frame` and `records_in`."""
    return to_frame(records_in(path))


def records_in(path: str | Path) -> list[Record]:
    """All records below a folder in brief, without copies (see `records.without_copies`).

    Raises:
        BenchmarkError: there is no such folder, or it holds no record that can be read.
    """
    records, complaints = read_records(existing(to_path(path)), shorten=shortened)
    if not records:
        raise BenchmarkError("\n".join([f"There are no records in {path}.", *complaints]))
    return without_copies(records)


def existing(results: Path) -> Path:
    """A folder of results, or an archive of records.

    Raises:
        BenchmarkError: it does not exist.
    """
    if not (results.is_dir() or (results.suffix == ".zip" and results.is_file())):
        raise BenchmarkError(f"There is no results folder {results}.")
    return results


def check_table(table: object) -> None:
    """Refuse anything that is not a table of results from `to_frame`, or a part of its rows.

    Raises:
        BenchmarkError: it is not.
    """
    if not isinstance(table, pd.DataFrame):
        raise BenchmarkError(f"A table of results is needed, {WANTED}. Got: {type(table).__name__}.")
    _refuse_lacking(table)
    twice = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    if twice:
        raise BenchmarkError(f"This is not a table of results, {WANTED}: it has several columns {', '.join(twice)}.")
    for name in ("method", "dataset", "method.name", "dataset.name"):
        strange = [value for value in table[name].unique().tolist() if not isinstance(value, str)]
        if strange:
            raise BenchmarkError(
                f"This is not a table of results, {WANTED}: its column {name} has {strange[0]!r} in place of a name."
            )


def runs(table: pd.DataFrame, dataset: str, metric: str, *, split: str = "test", select: str = "last") -> pd.DataFrame:
    """The finished runs of one dataset with the chosen metric as `value`.

    Runs of one method and seed on equal data count as one, the one with the lowest data seed (see `distinct`).

    Raises:
        BenchmarkError: the table lacks the metric, or mixes versions or data that must not be mixed.
    """
    _refuse_lacking(table)
    if metric not in table:
        check_metric(table, metric)
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
    _refuse_twice(chosen, dataset)
    run = ["method", "seed", "fingerprint"]
    chosen = chosen[chosen.data_seed == chosen.groupby(run).data_seed.transform("min")]
    columns = [*run, "data_seed", "device_kind", "precision", "value", *({"n_worst"} & set(chosen.columns))]
    try:
        values = chosen[metric].astype(float)
    except (TypeError, ValueError):
        known = ", ".join(metrics_in(table))
        raise BenchmarkError(f"The column '{metric}' has no numbers. Metrics: {known}.") from None
    return chosen.assign(value=values).dropna(subset=["value"])[columns]


def _refuse_lacking(table: pd.DataFrame) -> None:
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise BenchmarkError(f"This is not a table of results, {WANTED}: it lacks the columns {', '.join(missing)}.")


def without_settings(table: pd.DataFrame) -> pd.DataFrame:
    """The table without parameters and recipes; `runs` has checked that each title stands for one set of values."""
    return table[_but_settings(table)]


def _but_settings(columns: Iterable[str]) -> list[str]:
    named = ("method.name", "method.version", "dataset.name", "dataset.version")
    settings = ("method.", "dataset.", "recipe.")
    return [name for name in columns if name in named or not name.startswith(settings)]


def _refuse_twice(chosen: pd.DataFrame, dataset: str) -> None:
    """Refuse several runs with the same method, seed and draw of the data."""
    run = ["method", "seed", "data_seed", "fingerprint"]
    twice = chosen[chosen.duplicated(run, keep=False)]
    if not len(twice):
        return
    groups = [rows for _, rows in twice.groupby(run, sort=False)]
    several, more = groups[0], f" The same holds for {len(groups) - 1:,} more." if len(groups) > 1 else ""
    paths = [path for path in several.get("path", ()) if path]
    raise BenchmarkError(
        f"There are several runs of {several.method.iloc[0]} on {dataset} with seed {several.seed.iloc[0]}, "
        f"{_difference(several)}: keep them in separate folders, or delete all but one."
        + (f" They are {' and '.join(paths)}." if paths else "")
        + more
    )


def _difference(several: pd.DataFrame) -> str:
    """How records with the same title and seed differ."""
    machines = machines_of(several)
    if len(machines) > 1:
        return f"one {' and one '.join(machines)}"
    if several.get("hash", several.index.to_series()).nunique() == 1:
        return "of the same cell, with different results"
    settings = [name for name in several if name.startswith(("method.", "dataset.", "recipe."))]
    differing = [name for name in settings if several[name].map(repr).nunique() > 1]
    named = f" ({', '.join(differing)})" if differing else ""
    return f"made with different settings{named} under one title"


def machines_of(table: pd.DataFrame) -> list[str]:
    """The kinds of device on which the rows of a table were run, each once: `on cpu`.

    If there are several precisions, they are named as well: `on cuda in bf16`.
    """
    kinds = table[["device_kind", "precision"]].fillna("").drop_duplicates()
    several = kinds.precision.nunique() > 1
    pairs = sorted(kinds.itertuples(index=False, name=None))
    unknown = "an unknown kind of device", "an unknown precision"
    return [f"on {kind or unknown[0]}" + (f" in {one or unknown[1]}" if several else "") for kind, one in pairs]


def _refuse_two_meanings(chosen: pd.DataFrame, dataset: str) -> None:
    """Refuse a title that stands for several sets of values; values that older records lack are ignored."""
    settings = [name for name in chosen if name.startswith(("method.", "recipe."))]
    for title, rows in chosen.groupby("method", sort=False):
        for name in settings:
            column = rows[name]
            known = column if column.dtype == object else column.unique().tolist()  # in a mixture, 1 equals True
            values = sorted({repr(value) for value in known if not _unknown(value)})
            if len(values) > 1:
                raise BenchmarkError(
                    f"The title '{title}' on {dataset} stands for runs with different settings "
                    f"({name} {' and '.join(values)}; a default changed between versions, or own and shared recipes): "
                    "keep them in separate folders."
                )


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def headline_of(table: pd.DataFrame, dataset: str) -> str:
    """The dataset's headline metric, from its class; acc_avg if the dataset is not known here."""
    return headlines(_name_of(table, dataset))[0]


def headlines_of(table: pd.DataFrame, dataset: str) -> list[str]:
    """The metrics of a dataset in a comparison: its first headline metric, and the others that its runs have on test.

    If the first is plain accuracy and the bias of the test split is known, `acc_worst` is shown too, because plain
    accuracy says little on a test split that is itself biased.
    """
    first, *others = headlines(_name_of(table, dataset))
    others += ["acc_worst"] if first == "acc_avg" else []
    rows = table[(table.dataset == dataset) & (table["split"] == "test")]
    return [first, *(name for name in dict.fromkeys(others) if name in rows and rows[name].notna().any())]


def _name_of(table: pd.DataFrame, dataset: str) -> str:
    """The name of the dataset with this title; "" if the table does not have it."""
    names = table.loc[table.dataset == dataset, "dataset.name"].unique()
    return str(names[0]) if len(names) else ""


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
        table: from `debiasbench.run` or `load_results`. Draws of a tuning are ignored.
        reference: a method's title; default: the first method of the table that has finished runs.
        metric: an accuracy, one outside the suite, or "loss"; default: each dataset's headline metric.
        split, select: the split, and the rule that selects the epoch.

    Returns:
        One row for each dataset and method: n, n_pairs, gap, one-sided p values (`welch` as the headline; `paired`,
        `wilcoxon` and `sign_flip` on pairs), the same after Holm's correction over all comparisons of the table
        (`welch_holm`, ...), Hedges' g, the 95 % interval of the gap, and the gap that this many runs could detect.
        If lower is better (`selection.direction`), a better method has a gap below 0.
        Two runs are a pair if seed, data, kind of device and precision are equal. p is nan if no test is possible:
        with fewer than two runs or pairs, without any spread, and for `wilcoxon` and `sign_flip` if this many pairs
        could not reach the corrected level.

    Raises:
        BenchmarkError: it is not a table of results, or has no finished run; there is no such reference; one name
            stands for different data or versions.
    """
    check_table(table)
    table = results_in(table, "compare")
    methods = table.method.unique().tolist()
    reference = reference or methods[0]
    check_reference(reference, methods)
    if split not in SPLITS:
        raise BenchmarkError(f"split must be {' or '.join(SPLITS)}. Got {split!r}.")
    if metric not in (None, "loss"):  # for other columns it is not known whether higher is better
        check_metric(table, metric)
    datasets = table.dataset.unique()
    measures = [Measure(dataset, metric or headline_of(table, dataset), select) for dataset in datasets]
    return compare_by(table, measures, reference=reference, split=split)


def compare_by(
    table: pd.DataFrame, measures: Sequence[Measure], *, reference: str | None = None, split: str = "test"
) -> pd.DataFrame:
    """Like `compare`, for the measures of a comparison; Holm's correction is over all of them."""
    reference = reference or table.method.iloc[0]
    parts = []
    for measure in measures:
        chosen = runs(table, measure.dataset, measure.metric, split=split, select=measure.select)
        others = [method for method in chosen.method.unique() if method != reference]
        common = {"dataset": measure.dataset, "metric": measure.metric, "split": split, "select": measure.select}
        parts.append(_Family(chosen, reference, others, common))
    return pd.DataFrame(_test(parts))


@dataclass(frozen=True)
class _Family:
    """Comparisons of `others` with `reference` on one dataset."""

    runs: pd.DataFrame
    reference: str
    others: list[str]
    common: dict[str, Any]


def _test(families: list[_Family]) -> list[dict[str, Any]]:
    """One row per comparison, with Holm's correction over all of them."""
    rows: list[dict[str, Any]] = []
    n_comparisons = max(sum(len(family.others) for family in families), 1)
    for family in families:
        base = family.runs[family.runs.method == family.reference]
        for method in family.others:
            other = family.runs[family.runs.method == method]
            pairs = other.merge(base, on=["seed", "fingerprint", "device_kind", "precision"])
            sign = direction(family.common["metric"])
            pair_values = list(zip(sign * pairs.value_x, sign * pairs.value_y, strict=True))
            runs_of = (sign * other.value).tolist(), (sign * base.value).tolist()
            result = compare_runs(*runs_of, pair_values, n_comparisons=n_comparisons)
            if sign < 0:  # tested with the sign changed, and reported with the original sign
                result = replace(
                    result, gap=-result.gap, effect_size=-result.effect_size, low=-result.high, high=-result.low
                )
            names = {"method": method, "reference": family.reference, "n_pairs": len(pairs)}
            rows.append({**family.common, **names, **vars(result)})
    for test in TESTS:
        for row, corrected in zip(rows, holm([row[test] for row in rows]), strict=True):
            row[f"{test}_holm"] = corrected
    return rows


class Measure(NamedTuple):
    """What methods are compared by: a metric on a dataset, at the epoch that a rule selects."""

    dataset: str
    metric: str
    select: str = "last"

    @property
    def direction(self) -> int:
        """1, or -1 if lower is better: methods are compared by the metric times this factor."""
        return direction(self.metric)


def summaries(table: pd.DataFrame, measures: Sequence[Measure], *, split: str = "test") -> dict[Measure, pd.DataFrame]:
    """Mean, sample standard deviation and n of each method in each measure.

    Also `best`, and `tied`: tested, but not separable from the best. The best is chosen after the fact: a one-sided
    Welch test of the best method against each other one separates them if p is below .05 after Holm's correction over
    all these comparisons. `untested`: there was no test against the best, which needs two runs per side and some
    spread. Methods that use bias labels are left out of this, unless all do.
    """
    results: dict[Measure, pd.DataFrame] = {}
    best_of: dict[Measure, str] = {}
    p_values: dict[tuple[Measure, str], float] = {}
    knowing = bias_knowing(table)
    for measure in measures:
        chosen = runs(table, measure.dataset, measure.metric, split=split, select=measure.select)
        one = chosen.groupby("method", sort=False).value.agg(["mean", "std", "count"])
        results[measure] = one.assign(best=False, tied=False, untested=False)
        if len(chosen):
            there = list(results[measure].index)
            competing = [method for method in there if method not in knowing] or there
            best = (measure.direction * results[measure]["mean"][competing]).idxmax()
            best_of[measure] = best
            values = {method: measure.direction * rows.value.to_numpy() for method, rows in chosen.groupby("method")}
            others = [method for method in competing if method != best]
            p_values |= {(measure, method): welch(values[best], values[method]) for method in others}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for measure, best in best_of.items():
        p = {method: one for (of, method), one in corrected.items() if of == measure}
        one = results[measure]
        results[measure] = one.assign(
            best=one.index == best,
            tied=[p.get(name, math.nan) >= LEVEL for name in one.index],
            untested=[math.isnan(p.get(name, 0.0)) for name in one.index],
        )
    return results


def bias_knowing(table: pd.DataFrame) -> set[str]:
    """Titles of the methods known here that train with bias labels: oracle baselines, not competitors."""
    pairs = table[["method", "method.name"]].drop_duplicates().itertuples(index=False)
    return {title for title, name in pairs if knows_bias(name)}


def knows_bias(method: str) -> bool:
    """Whether the method with this name trains with bias labels; False if it is not known here."""
    from debiasbench.methods import registry

    cls = registry.classes().get(method)
    return cls is not None and cls.needs_bias_labels


def unofficial(table: pd.DataFrame) -> set[str]:
    """Titles of the datasets with some runs that are not on the published data."""
    return set(table.dataset[table.official.eq(False)])  # for a failed run it is unknown


def ranks(table: pd.DataFrame, measures: Sequence[Measure], *, split: str = "test") -> pd.DataFrame:
    """Methods x measures: the rank by mean (1 is best), shared by methods that no test separates.

    A method's rank is 1 + the number of methods that are separably better: one-sided Welch tests with p below .05 after
    Holm's correction over both directions of all pairs of all measures. nan if a method has no run.
    """
    methods = table.method.unique().tolist()
    values, tests = {}, []
    for measure in measures:
        chosen = runs(table, measure.dataset, measure.metric, split=split, select=measure.select)
        values[measure] = [measure.direction * chosen[chosen.method == method].value.to_numpy() for method in methods]
        tests.append(pairwise_welch(values[measure]))
    corrected = np.asarray(holm(np.concatenate([p.ravel() for p in tests]).tolist())) if tests else np.empty(0)
    separable = (corrected < LEVEL).reshape(len(measures), len(methods), len(methods))
    means = [[float(one.mean()) if len(one) else float("nan") for one in values[measure]] for measure in measures]
    found = [ranks_with_ties(*pair) for pair in zip(means, separable, strict=True)]
    return pd.DataFrame(dict(zip(measures, found, strict=True)), index=methods)


def summary(
    table: pd.DataFrame, dataset: str, metric: str, *, split: str = "test", select: str = "last"
) -> pd.DataFrame:
    """`summaries` for one dataset and metric."""
    measure = Measure(dataset, metric, select)
    return summaries(table, [measure], split=split)[measure]
