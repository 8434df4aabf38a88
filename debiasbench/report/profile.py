"""How hard a benchmark is, by conflict ratio: whether plain training fails on it, and how far apart methods are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from debiasbench.datasets import Dataset
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import direction
from debiasbench.grid import dataset_from_spec
from debiasbench.records import Record
from debiasbench.report.phrases import Phrase
from debiasbench.report.results import bias_knowing, dataset_title, headline_of, runs
from debiasbench.report.statistics import LEVEL, holm, mean_interval, pairwise_welch
from debiasbench.report.tables import NOTHING, Column, Entry, Table, count, number, percent, words

ALIGNED = "acc_aligned"


@dataclass(frozen=True)
class Sweep:
    """One dataset at several conflict ratios: its title without the ratio, and title -> ratio, lowest first."""

    title: str
    ratios: dict[str, float]


@dataclass(frozen=True)
class Curves:
    """The data of a sweep's figure: method -> ratio -> headline accuracies of its runs, fractions.

    `aligned`: ratio -> accuracies of the reference on aligned samples, if they are known.
    """

    metric: str
    methods: dict[str, dict[float, np.ndarray]]
    aligned: dict[float, np.ndarray]


def sweeps(records: Iterable[Record]) -> list[Sweep]:
    """The datasets with records at two or more conflict ratios; their plug-ins give the ratios.

    Raises:
        BenchmarkError: there is none, or several datasets of a sweep have the same ratio.
    """
    return _sweeps({dataset_title(record.cell): record.cell.build_dataset for record in records if record.done})


def sweeps_in(table: pd.DataFrame) -> list[Sweep]:
    """The same for the datasets of a table of results."""
    return _sweeps({title: partial(_dataset_of, title) for title in table.dataset.unique()})


def _dataset_of(title: str) -> Dataset:
    return dataset_from_spec(title)[0]


def _sweeps(datasets: Mapping[str, Callable[[], Dataset]]) -> list[Sweep]:
    found: dict[str, dict[str, float]] = {}
    for of, build in datasets.items():
        told = _ratio_of(of, build)
        if told is not None:
            title, ratio = told
            found.setdefault(title, {})[of] = ratio
    several = [
        Sweep(title, dict(sorted(ratios.items(), key=lambda pair: pair[1])))
        for title, ratios in found.items()
        if len(set(ratios.values())) > 1
    ]
    if not several:
        names = ", ".join(f"{title} ({100 * ratio:g} %)" for one in found.values() for title, ratio in one.items())
        raise BenchmarkError(
            "A profile needs records of one dataset at two conflict ratios or more. Ratios are known of: "
            f"{names or 'none'}. For example: debiasbench run --methods vanilla pgd --datasets "
            "'cmnist5k:rho=0.005|0.02|0.1|0.3'"
        )
    for sweep in several:
        _refuse_equal_ratios(sweep)
    return several


def _refuse_equal_ratios(sweep: Sweep) -> None:
    """Each ratio on the axis must belong to one dataset."""
    of_ratio: dict[float, list[str]] = {}
    for title, ratio in sweep.ratios.items():
        of_ratio.setdefault(ratio, []).append(title)
    for ratio, titles in of_ratio.items():
        if len(titles) > 1:
            raise BenchmarkError(
                f"A profile has one dataset at each conflict ratio. At {100 * ratio:g} % are {', '.join(titles)}: "
                "leave out all but one (--datasets)."
            )


def _ratio_of(title: str, build: Callable[[], Dataset]) -> tuple[str, float] | None:
    """The title without the parameters that set the conflict ratio, and the ratio; None if it is not known here."""
    try:
        dataset = build()
        ratio = dataset.conflict_ratio
    except (BenchmarkError, TypeError):  # the dataset or one of its parameters is not known here
        return None
    if ratio is None:
        return None
    equal = {key for key, value in dataset.key().items() if type(value) is float and value == ratio}
    own = dataset.ratio_parameters or equal
    name, _, options = title.partition(":")
    kept = [part for part in options.split(",") if part and part.partition("=")[0] not in own]
    return name + (":" + ",".join(kept) if kept else ""), ratio


def profile(table: pd.DataFrame, found: Sequence[Sweep], reference: str) -> tuple[Table, dict[str, Curves]]:
    """The table of all sweeps, and the data of each one's figure.

    Args:
        table: from `to_frame`.
        found: from `sweeps`.
        reference: the title of the method that stands for plain training.
    """
    rows, curves = [], {}
    for sweep in found:
        metric = headline_of(table, next(iter(sweep.ratios)))
        methods: dict[str, dict[float, np.ndarray]] = {}
        aligned: dict[float, np.ndarray] = {}
        for title, ratio in sweep.ratios.items():
            values = _of_methods(runs(table, title, metric))
            for method, some in values.items():
                methods.setdefault(method, {})[ratio] = some
            pairs = _with_aligned(table, title, metric, reference)
            if len(pairs):
                aligned[ratio] = pairs[:, 1]
            rows.append([Entry(sweep.title, family(sweep.title)), Entry(ratio, f"{100 * ratio:g}"),
                         *_failing(pairs), *_spread(values, bias_knowing(table), direction(metric))])  # fmt: skip
        curves[sweep.title] = Curves(metric, methods, aligned)
    columns = [
        Column("dataset", "dataset", numeric=False), Column("ratio", "conflicts (%)"), Column("n", "n"),
        Column(reference, Phrase("{method} (%)", method=reference), spread=True),
        Column("aligned", "on aligned (%)", spread=True),
        Column("shortfall", "shortfall"), Column("interval", "95 % interval"), Column("fails", "fails", numeric=False),
        Column("best", "best", numeric=False), Column("range", "range"), Column("told apart", "told apart"),
    ]  # fmt: skip
    asked = (
        "Does {method} fail? Its headline accuracy and that on aligned test samples (with several biases the mean over "
        "them), last epoch, mean ± sample standard deviation over n runs. shortfall: how many points lower the "
        "headline is, paired by run, with its 95 % t interval; fails: whether the interval lies above 0. The larger "
        "the shortfall, the more there is to gain."
    )
    notes = [
        Phrase(asked, method=reference),
        "How far apart are methods? best: of the best mean; range: from the lowest to the highest mean, in points; "
        "told apart: the pairs of methods that differ significantly (one-sided Welch tests, p below .05 after Holm's "
        "correction over both directions of all pairs of the row). Oracle baselines are not counted.",
    ]
    title = "How hard the benchmark is, by conflict ratio"
    return Table("profile", title, columns, rows, notes, in_caption=len(notes)), curves


def family(title: str) -> Phrase:
    """The title of a sweep in text. As a dataset's title, it would mean the dataset with its default ratio."""
    return Phrase("{dataset_name}", dataset_name=title)


def _of_methods(chosen: pd.DataFrame) -> dict[str, np.ndarray]:
    return {method: rows.value.to_numpy() for method, rows in chosen.groupby("method", sort=False)}


def _with_aligned(table: pd.DataFrame, title: str, metric: str, method: str) -> np.ndarray:
    """Headline accuracy and accuracy on aligned samples for each run of a method, float (n, 2)."""
    run = ["seed", "fingerprint"]
    parts = [name for name in table.columns if name == ALIGNED or name.startswith(f"{ALIGNED}.")]
    found = [runs(table[table.method == method], title, name)[[*run, "value"]] for name in (metric, *parts)]
    found = [one.set_index(run).value for one in found if len(one)]
    if len(found) < 2:
        return np.empty((0, 2))
    joined = pd.concat(found, axis=1, join="inner").to_numpy(dtype=float)
    return np.column_stack([joined[:, 0], joined[:, 1:].mean(axis=1)])


def _failing(pairs: np.ndarray) -> list[Entry]:
    """n, both accuracies, the shortfall, its interval, and whether the interval is above 0."""
    if not len(pairs):
        return [count(0), *[NOTHING] * 5]
    n, shortfall = len(pairs), pairs[:, 1] - pairs[:, 0]
    low, high = mean_interval(shortfall)
    both = [percent(one.mean(), one.std(ddof=1) if n > 1 else 0.0, n) for one in pairs.T]
    gap = float(shortfall.mean())
    interval = NOTHING if low != low else Entry(low, f"{100 * low:+.1f} .. {100 * high:+.1f}")
    fails = NOTHING if low != low else words("yes" if low > 0 else "not shown")[0]
    return [count(n), *both, number(gap, lambda value: f"{100 * value:+.2f}"), interval, fails]


def _spread(values: dict[str, np.ndarray], knowing: set[str], sign: int) -> list[Entry]:
    """The best method, the range of means, and how many pairs differ significantly. sign: -1 if lower is better."""
    competing = {method: some for method, some in values.items() if method not in knowing and len(some)}
    if len(competing) < 2:
        return [*(words(*competing) or [NOTHING]), NOTHING, NOTHING]
    means = {method: float(some.mean()) for method, some in competing.items()}
    span = max(means.values()) - min(means.values())
    p = pairwise_welch([sign * some for some in competing.values()])
    separable = (np.asarray(holm(p.ravel().tolist())) < LEVEL).reshape(p.shape)
    n_pairs, n_apart = len(competing) * (len(competing) - 1) // 2, int(separable.sum())
    return [*words(max(means, key=lambda method: sign * means[method])), Entry(span, f"{100 * span:.2f}"),
            Entry(n_apart, f"{n_apart} / {n_pairs}")]  # fmt: skip
