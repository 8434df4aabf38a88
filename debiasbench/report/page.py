"""The report as one HTML page: tables that sort, figures, learning curves, and every cell.

The page is whole in itself (styles, script and figures are in it, nothing is loaded), and equal inputs give equal
bytes. Its text, styles and script are in `page.html`, a Jinja template that escapes whatever it is given.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.cell import Cell
from debiasbench.parameters import write_value
from debiasbench.records import Brief, Metrics, Record, Result
from debiasbench.report.figures import MOST_CURVES, learning_curves
from debiasbench.report.phrases import Displays, display_titles
from debiasbench.report.results import VALIDATED, data_seed, dataset_title, distinct, headlines, rules_of
from debiasbench.wording import duration

if TYPE_CHECKING:
    from markupsafe import Markup

    from debiasbench.report.tables import Entry, Table

# What the figures show, by how their file names begin: "scores-<dataset>.png"
_FIGURES = {
    "scores": "Histograms of the per-sample scores of aligned and of conflicting samples, a panel for each method",
    "accuracies": "Histograms of the runs' test accuracies, a panel for each method, with every run as a tick",
    "figure2": "Variants of a method over datasets: mean, standard deviation and every run",
    "figure3": "Traces of the inverse Fisher information of the final layer, a point a run",
    "figure10": "Histograms of the accuracies of many runs, a panel for each dataset",
    "theorem2": "The one-dimensional example of Theorem 2: the objective, and its minimum at h proportional to |g|",
    "profile": "Accuracies by the fraction of conflicting training samples, a line a method; grey: on aligned samples",
    "ranks": "Average ranks of the methods; a bar joins those that cannot be told apart",
}
MOST_CELLS = 500  # that have a block each, and as many methods on a dataset that show their settings
MOST_FAILURES = 100  # that have one
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


def page(
    title: str, tables: list[Table], figures: list[Path], records: list[Record], *, notes: Sequence[str] = ()
) -> str:
    """The whole page as text, to be written as UTF-8.

    Args:
        title: the headline.
        tables: in the order wanted.
        figures: PNG or SVG files, which become part of the page; others (the PDFs beside them) are left out.
        records: as `read_records` gives them, done and failed, in the order wanted; colours are those of the figures.
        notes: what the reader should know first, such as files that could not be read.

    Raises:
        OSError: a figure cannot be read.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"breakable": _breakable, "sha256": _sha256, "value": _value}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    done = [record for record in records if record.done]
    failed = [record for record in records if not record.done]
    metrics = {_dataset(record): headlines(record.cell.dataset)[0] for record in records}
    by_dataset = {name: [record for record in done if _dataset(record) == name] for name in metrics}
    displays = display_titles(record.cell for record in records)
    charts, lost = _charts(by_dataset, metrics, {_method(record) for record in done}, displays)
    return template.render(
        title=title,
        notes=[*notes, *lost],
        summary=_summary(records),
        facts=_facts(records),
        failed=[_block(record, metrics[_dataset(record)]) for record in failed[:MOST_FAILURES]],
        more_failed=[_failure_line(record) for record in failed[MOST_FAILURES:]],
        tables=tables,
        charts=charts,
        figures=[_figure(path) for path in figures if path.suffix in _MEDIA],
        cells=[(_heading(name, displays), *rest) for name, *rest in _cells(by_dataset, metrics, len(done))],
    )


def _method(record: Record) -> str:
    return record.cell.method_title


def _dataset(record: Record) -> str:
    return dataset_title(record.cell)


def _heading(dataset: str, displays: Displays) -> str:
    """What papers call a dataset, and the title by which tables and commands know it."""
    display = displays["dataset"][dataset]
    return display if display == dataset else f"{display} ({dataset})"


def _value(entry: Entry) -> str:
    """An entry's value as the script reads it."""
    return str(entry.value).replace("inf", "Infinity") if isinstance(entry.value, float) else str(entry.value)


def _breakable(text: str) -> Markup:
    """Escaped text in which long labels may be broken after a separator, so that narrow columns stay narrow."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([:,/])(?=[^\W\d])", r"\1<wbr>", str(escape(text))))


def _sha256(text: str) -> str:
    """The digest by which the page's policy knows its own script: no other may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- what is told first ----------------------------------------------------------------------------------------------


def _counted(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _summary(records: list[Record]) -> str:
    """How many cells, methods, datasets and seeds, in a sentence."""
    methods, datasets = ({part(record) for record in records} for part in (_method, _dataset))
    seeds = sorted({record.cell.seed for record in records})
    whole = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    span = f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))
    return (
        f"{_counted(len(records), 'cell')}: {_counted(len(methods), 'method')} on "
        f"{_counted(len(datasets), 'dataset')}, training {'seed' if len(seeds) == 1 else 'seeds'} {span}."
    )


def _facts(records: list[Record]) -> list[str]:
    """Versions, commits, dates and devices of all records, each told once."""
    provenances = [record.provenance for record in records]
    facts = []
    for name in ("debiasbench", "protocol", "torch", "python"):
        found = sorted({str(one.versions[name]) for one in provenances if one.versions.get(name)})
        facts += [f"{name} {', '.join(found)}"] if found else []
    commits = dict.fromkeys(_short_commit(one.commit) for one in provenances if one.commit)
    facts += [f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"] if commits else []
    dates = sorted({one.finished[:10] for one in provenances if one.finished})
    facts += [f"finished {' to '.join(dict.fromkeys((dates[0], dates[-1])))} (UTC)"] if dates else []
    facts += sorted({one.device for one in provenances if one.device})
    return [*facts, f"{duration(sum(one.seconds.total for one in provenances))} of computing"]


def _short_commit(commit: str) -> str:
    """Twelve digits, and whether the checkout differed from the commit."""
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure(path: Path) -> dict[str, str]:
    kind, _, name = path.stem.partition("-")
    what = _FIGURES.get(kind, kind) + (f": {name.replace('+', ':', 1)}" if name else "")
    data = base64.b64encode(path.read_bytes()).decode()
    return {"source": f"data:{_MEDIA[path.suffix]};base64,{data}", "what": what}


# ---- learning curves -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """The learning curves of one dataset: an `<svg>` element, and what its caption tells."""

    dataset: str
    metric: str
    name: str
    svg: Markup
    has_runs: bool
    has_bands: bool
    has_validation: bool


def _charts(
    by_dataset: dict[str, list[Record]], metrics: dict[str, str], methods: set[str], displays: Displays
) -> tuple[list[Chart], list[str]]:
    """A chart for each dataset with finished records, and a complaint about each that could not be drawn."""
    charts, lost = [], []
    for index, (name, group) in enumerate(by_dataset.items(), 1):
        try:
            if group:
                charts.append(_chart(name, distinct(group), metrics[name], methods, f"curve-{index}", displays))
        except Exception as error:  # a chart never costs the tables
            lost.append(f"The learning curves on {name} could not be drawn: {type(error).__name__}: {error}")
    return charts, lost


def _chart(
    dataset: str, records: list[Record], metric: str, order: Iterable[str], name: str, displays: Displays
) -> Chart:
    """Curves of the epochs that were evaluated. order: all methods of the page; name: of the chart in it."""
    from markupsafe import Markup

    named = displays["method"]
    test: dict[str, list[dict[int, float]]] = {}
    validation: dict[str, list[dict[int, float]]] = {}
    for record in records:
        method = named[_method(record)]
        test.setdefault(method, []).append(_by_epoch(record, "test", metric))
        # where no rule may select on validation, it is the test split, or was trained on
        if record.result is not None and record.result.selected("val_acc") is not None:
            validation.setdefault(method, []).append(_by_epoch(record, "valid", VALIDATED))
    order = [named[method] for method in order]
    element = learning_curves(test, validation, metric=metric, order=order, name=name)
    return Chart(
        _heading(dataset, displays), metric, name, Markup(element),
        has_runs=any(1 < len(runs) <= MOST_CURVES for runs in test.values()),
        has_bands=any(len(runs) > MOST_CURVES for runs in test.values()),
        has_validation=any(map(any, validation.values())),
    )  # fmt: skip


def _by_epoch(record: Record, split: str, metric: str) -> dict[int, float]:
    """Epoch -> a metric, without epochs that lack it."""
    if isinstance(record, Brief):
        return dict(zip(*record.curves[split], strict=True))
    epochs = record.result.epochs if record.result is not None else ()
    found = {one.epoch: one.test if split == "test" else one.valid for one in epochs}
    return {epoch: metrics[metric] for epoch, metrics in found.items() if metric in metrics}


# ---- cells -----------------------------------------------------------------------------------------------------------

Pairs = list[tuple[str, str]]
NOT_TOLD = "-"


def _cells(
    by_dataset: dict[str, list[Record]], metrics: dict[str, str], n_done: int
) -> list[tuple[str, str, list[dict[str, Any]], int]]:
    """Each dataset with its metric, the blocks of its finished cells, and their number.

    Each cell has a block; where they are too many each method has one, and a cell a line of it.
    """
    groups = {name: _by_method(records) for name, records in by_dataset.items() if records}
    detailed = sum(map(len, groups.values())) <= MOST_CELLS
    found = []
    for name, of_methods in groups.items():
        if n_done <= MOST_CELLS:
            blocks = [_block(record, metrics[name]) for records in of_methods for record in records]
        else:
            blocks = [_group(records, metrics[name], detailed=detailed) for records in of_methods]
        found.append((name, metrics[name], blocks, sum(map(len, of_methods))))
    return found


def _by_method(records: list[Record]) -> list[list[Record]]:
    """The cells of each method: methods in the order given, seeds in their own."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(_method(record), []).append(record)
    return [sorted(one, key=lambda record: (data_seed(record.cell), record.cell.seed)) for one in found.values()]


def _group(records: list[Record], metric: str, *, detailed: bool) -> dict[str, Any]:
    """What a block of all cells of a method on a dataset shows: means over them, and a line a cell.

    detailed: with its settings, and all metrics.
    """
    lasts = [record.result.epochs[-1] for record in records if record.result is not None]
    splits = [one.test for one in lasts], [one.valid for one in lasts]
    names = dict.fromkeys(name for last in lasts for name in (*last.test, *last.valid)) if detailed else ()
    return {
        "method": _method(records[0]),
        "seed": _counted(len(records), "cell"),
        "value": _number(metric, _mean(one.get(metric) for one in splits[0])),
        "duration": duration(sum(record.provenance.seconds.total for record in records)),
        "metrics": [(name, *(_mean_number(name, split) for split in splits)) for name in names],
        "head": "mean of the cells",
        "settings": _filled(_settings(records[0].cell)) if detailed else [],
        "parts": [],
        "lines": [(*_line(record, metric), record.path.name if record.path else "") for record in records],
    }


def _mean_number(name: str, split: Sequence[Metrics]) -> str:
    """The mean of a metric over cells, as it is written; nothing where no cell has it."""
    mean = _mean(one.get(name) for one in split)
    return "" if mean is None else _number(name, mean)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(record: Record, metric: str) -> tuple[str, str, str]:
    """A cell in a line: its seeds, the metric at its last epoch, and its time."""
    cell, result = record.cell, record.result
    seed = f"seed {cell.seed}" + (f", data seed {data_seed(cell)}" if data_seed(cell) else "")
    value = _number(metric, result.epochs[-1].test.get(metric)) if result else ""
    return seed, value, duration(record.provenance.seconds.total)


def _failure_line(record: Record) -> tuple[str, str]:
    assert record.failure is not None
    return record.cell.title, f"{record.failure.type}: {record.failure.message}"


def _block(record: Record, metric: str) -> dict[str, Any]:
    """What a cell's block shows: a line, named lists of values, the metrics, and the error if it failed."""
    cell, result = record.cell, record.result
    last = result.epochs[-1] if result else None
    seed, value, time = _line(record, metric)
    return {
        "method": _method(record),
        "dataset": _dataset(record),
        "seed": seed,
        "value": value,
        "duration": time,
        "failure": record.failure,
        "metrics": [
            (name, *(_number(name, part[name]) if name in part else "" for part in (last.test, last.valid)))
            for name in dict.fromkeys([*last.test, *last.valid])
        ] if last else [],
        "head": f"epoch {last.epoch}" if last else "",
        "settings": _filled(_settings(cell)),
        "parts": _filled([*(_outcome(cell, result, metric) if result else []), *_origin(record)]),
        "lines": [],
    }  # fmt: skip


def _filled(parts: Iterable[tuple[str, Pairs]]) -> list[tuple[str, Pairs]]:
    return [(name, pairs) for name, pairs in parts if pairs]


def _settings(cell: Cell) -> list[tuple[str, Pairs]]:
    parts = {
        "Method": cell.method_parameters,
        "Dataset": cell.dataset_parameters,
        "Recipe": {name: value for name, value in cell.recipe.items() if name not in cell.recipe_changes},
        "The method's own": {name: value for name, value in cell.recipe.items() if name in cell.recipe_changes},
    }
    return [(part, [(name, write_value(value)) for name, value in values.items()]) for part, values in parts.items()]


def _outcome(cell: Cell, result: Result, metric: str) -> list[tuple[str, Pairs]]:
    selected = []
    for rule in rules_of(result):
        row = result.selected(rule)
        if row is not None:
            selected.append((rule, f"epoch {row.epoch}, {_number(metric, row.test.get(metric))}"))
    found = [
        (f"Identification by {name}", [(key, _number(key, value)) for key, value in numbers.items()])
        for name, numbers in result.identification.items()
    ]
    logged = [(name, write_value(value)) for name, value in result.logged.items()]
    return [
        (f"Selected epochs, test {metric}", selected),
        ("Test accuracy by class", _by_class(cell, result)),
        *found,
        ("Numbers of the method", logged),
    ]


def _by_class(cell: Cell, result: Result) -> Pairs:
    """Of the last epoch; a dash where an older record does not tell."""
    from debiasbench.datasets import registry

    accuracies = result.accuracy_by_class(result.epochs[-1], "test")
    if accuracies is None:
        return [("", NOT_TOLD)]
    cls = registry.classes().get(cell.dataset)
    names = cls.class_names if cls else ()
    if not isinstance(names, tuple) or len(names) != len(accuracies):  # not told by the class: parameters decide
        names = tuple(map(str, range(len(accuracies))))
    return [(str(name), _number("acc", accuracy)) for name, accuracy in zip(names, accuracies, strict=True)]


def _origin(record: Record) -> list[tuple[str, Pairs]]:
    provenance = record.provenance
    spent = provenance.seconds
    seconds = {"data": spent.data, "evaluation": spent.evaluation, "total": spent.total}
    seconds |= {f"stage {index}": value for index, value in enumerate(spent.stages, 1)} | spent.calls
    where = [
        ("finished", provenance.finished), ("device", provenance.device),
        ("kind of device", provenance.device_kind or NOT_TOLD), ("precision", provenance.precision or NOT_TOLD),
        ("threads", provenance.threads), ("peak_memory_mib", provenance.peak_memory_mib),
        *provenance.versions.items(), ("commit", _short_commit(provenance.commit)),
    ]  # fmt: skip
    files = [
        ("file", "/".join(record.path.parts[-3:]) if record.path else ""),  # not where the results folder is
        ("hash", record.hash[:16]),
        ("data", record.result.data.fingerprint[:16] if record.result else ""),
    ]
    return [
        ("Seconds", [(name, f"{value:,.1f}") for name, value in seconds.items() if spent.total]),
        ("Run with", [(name, str(value)) for name, value in where if value]),
        ("Record", [(name, value) for name, value in files if value]),
    ]


def _number(name: str, value: float | None) -> str:
    """A metric by its name: accuracies in per cent, counts whole, others with four digits; a dash for none."""
    if value is None:
        return NOT_TOLD
    if name.startswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name == "n" or name.startswith("n_") else f"{value:.4f}"
