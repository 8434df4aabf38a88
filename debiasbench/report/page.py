"""The report as one HTML page: the comparison and its tests first, then failures, learning curves, and every cell.

The page contains its styles, script and figures, and loads nothing. Equal inputs give equal bytes. Its text, styles and
script are in `page.html`, a Jinja template that escapes all values. Without the script, everything is shown; with it,
tables can be sorted, and methods and datasets can be hidden.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.cell import Cell
from debiasbench.files import file_names
from debiasbench.parameters import write_value
from debiasbench.records import Brief, Metrics, Record, Result
from debiasbench.report.charts import FRAME, Panels, Rows, learning_curves, rows_of_runs
from debiasbench.report.phrases import Displays, display_titles, displayed, titles_in
from debiasbench.report.pictures import marked_titles_of
from debiasbench.report.results import VALIDATED, data_seed, dataset_title, distinct, headlines, rules_of
from debiasbench.report.tables import Column, Entry, Table, with_display_titles
from debiasbench.wording import duration

if TYPE_CHECKING:
    from markupsafe import Markup

# Descriptions of figures by the start of the file name: "scores-<dataset>.png", "tuning-<rule>-<dataset>.png"
_FIGURES = {
    "scores": "Histograms of the per-sample scores of aligned and of conflicting samples, a panel for each method",
    "accuracies": "Test accuracy of each run, and the means; histograms where there are many runs",
    "figure2": "Variants of a method over datasets: mean, standard deviation and every run",
    "figure3": "Traces of the inverse Fisher information of the final layer, one point per run",
    "figure10": "Histograms of the accuracies of many runs, a panel for each dataset",
    "theorem2": "The one-dimensional example of Theorem 2: the objective, and its minimum at h proportional to |g|",
    "profile": "Accuracy by fraction of conflicting training samples, one line per method; grey: aligned samples",
    "tuning": "What the rule went by, of the draws of a tuning and of the runs with what was chosen",
    "ranks": "Average ranks of the methods; a bar joins those that do not differ significantly",
}
MOST_CELLS = 500  # with a block each; also the limit for (method, dataset) blocks that show settings
MOST_FAILURES = 100  # with different reasons that have a block
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


def page(
    title: str,
    tables: list[Table],
    figures: list[Path],
    records: list[Record],
    *,
    metrics: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    verdicts: Sequence[str] = (),
) -> str:
    """The whole page as text, to be written as UTF-8.

    Args:
        title: the headline.
        tables: in order.
        figures: PNG or SVG files to embed in the page; others, such as the PDFs beside them, are left out.
        records: finished and failed ones from `read_records`, in order; colours are those of the figures.
        metrics: dataset -> metric of the chart of runs; default: its headline metric, which the curves always show.
        notes: what the reader should know first, such as files that could not be read.
        verdicts: the best methods, and whether that is certain.

    Raises:
        OSError: a figure cannot be read.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"breakable": _breakable, "sha256": _sha256, "value": _value}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    done = [record for record in records if record.done]
    failed = [record for record in records if not record.done]
    main = {_dataset(record): headlines(record.cell.dataset)[0] for record in records}
    by_dataset = {name: [record for record in done if _dataset(record) == name] for name in main}
    displays = display_titles(record.cell for record in records)
    marked = marked_titles_of(displays, [record.cell for record in records], records)  # tables have marks already
    kept = _Kept(list(dict.fromkeys(map(_method, records))), list(main))
    charts, lost = _charts(by_dataset, main, metrics or {}, list(dict.fromkeys(map(_method, done))), marked)
    reasons = _reasons(failed, main)
    first, further = _by_place(tables)
    there = [name for name, group in by_dataset.items() if group]
    environment.globals |= {"kept": kept.mark, "displays": displays, "marked": marked}
    return template.render(
        title=title,
        frame=FRAME,
        notes=[*notes, *lost],
        summary=_summary(records),
        facts=_facts(records),
        verdicts=[(displayed(one, displays), kept.mark(**kept.of(one, kinds=["dataset"]))) for one in verdicts],
        n_cells=len(records),
        n_failed=len(failed),
        kinds=[f"{kind} ({n:,})" if n > 1 else kind for kind, n in Counter(map(_kind_of_failure, failed)).items()],
        reasons=reasons[:MOST_FAILURES],
        more_reasons=reasons[MOST_FAILURES:],
        first=[_shown(one, displays, kept) for one in first],
        further=[_shown(one, displays, kept) for one in further],
        charts=charts,
        figures=[_figure(path, there, marked) for path in figures if path.suffix in _MEDIA],
        choices=[(kind, titles) for kind, titles in kept.titles.items() if len(titles) > 1],
        cells=_cells(by_dataset, main, len(done)),
        heading=lambda dataset: _heading(dataset, displays, marked),
    )


def _method(record: Record) -> str:
    return record.cell.method_title


def _dataset(record: Record) -> str:
    return dataset_title(record.cell)


def _heading(dataset: str, displays: Displays, marked: Displays) -> str:
    """The display title of a dataset, with its mark, and the title that tables and commands use."""
    heading = marked["dataset"][dataset]
    return heading if displays["dataset"][dataset] == dataset else f"{heading} ({dataset})"


def _value(entry: Entry) -> str:
    """The value that the script sorts an entry by; words are sorted as they are shown."""
    if isinstance(entry.value, str):
        return entry.text
    return str(entry.value).replace("inf", "Infinity") if isinstance(entry.value, float) else str(entry.value)


def _breakable(text: str) -> Markup:
    """Escaped text that may wrap after the separators of long labels, so that columns stay narrow."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([:,/])(?=[^\W\d])", r"\1<wbr>", str(escape(text))))


def _sha256(text: str) -> str:
    """The digest of the page's script for its security policy, so that no other script can run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- summary ---------------------------------------------------------------------------------------------------------


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
    """Versions, commits, dates and devices of all records, each one once."""
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
    """The first twelve digits, and the suffix of a checkout that differed from the commit."""
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


# ---- tables ----------------------------------------------------------------------------------------------------------


class _Kept:
    """Numbers that mark what belongs to one method or dataset, so that the reader can hide it."""

    def __init__(self, methods: list[str], datasets: list[str]) -> None:
        self.titles = {"method": methods, "dataset": datasets}
        self._numbers = {kind: {title: n for n, title in enumerate(some)} for kind, some in self.titles.items()}

    def mark(self, **titles: str | None) -> Markup:
        """HTML attributes of an element of this method, dataset or both; none for titles that no cell has."""
        from markupsafe import Markup

        numbers = ((kind, self._numbers[kind].get(title or "")) for kind, title in titles.items())
        return Markup("".join(f' data-{kind}="{n}"' for kind, n in numbers if n is not None))

    def of(self, *texts: str, kinds: Iterable[str] = ("method", "dataset")) -> dict[str, str]:
        """Kind -> the title of this kind in the texts, if there is exactly one."""
        found = {kind: set().union(*(titles_in(text, kind) for text in texts)) for kind in kinds}
        return {kind: some.pop() for kind, some in found.items() if len(some) == 1}


@dataclass(frozen=True)
class _Shown:
    """A table as the page shows it, with display titles, and marks of the table and of each column, row and note."""

    table: Table
    mark: Markup
    columns: list[tuple[Column, Markup]]
    rows: list[tuple[list[Entry], Markup]]
    notes: list[tuple[str, Markup]]


def _by_place(tables: list[Table]) -> tuple[list[Table], list[Table]]:
    """The tables up to the comparison, its tests and ranks, which come first on the page; and all other tables."""
    places = {"comparison": 1, "tests": 2, "ranks": 3}
    index = next((n for n, one in enumerate(tables) if one.key == "comparison"), len(tables))
    place = [0 if n < index else places.get(one.key, 4) for n, one in enumerate(tables)]
    ordered = sorted(zip(place, tables, strict=True), key=lambda pair: pair[0])
    return [one for n, one in ordered if n < 4], [one for n, one in ordered if n == 4]


def _shown(table: Table, displays: Displays, kept: _Kept) -> _Shown:
    given = {column.key: column for column in table.columns}
    shown = with_display_titles(table, displays)
    titled = [column.key if column.key in kept.titles else "" for column in shown.columns]
    of_columns = (kept.of(one.heading, one.group, one.part) for one in (given[column.key] for column in shown.columns))
    rows = []
    for row in shown.rows:
        titles = {kind: str(entry.value) for kind, entry in zip(titled, row, strict=True) if kind}
        rows.append((row, kept.mark(**titles)))
    of_notes = [{} if n < table.in_caption else kept.of(note) for n, note in enumerate(table.notes)]
    return _Shown(
        shown, kept.mark(**kept.of(table.title)),
        [(column, kept.mark(**titles)) for column, titles in zip(shown.columns, of_columns, strict=True)],
        rows, [(note, kept.mark(**titles)) for note, titles in zip(shown.notes, of_notes, strict=True)],
    )  # fmt: skip


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figure(path: Path, datasets: list[str], displays: Displays) -> dict[str, str]:
    kind, _, name = path.stem.partition("-")
    rule, _, name = name.partition("-") if kind == "tuning" else ("", "", name)
    title = {name: title for title, name in file_names(datasets).items()}.get(name, name.replace("+", ":", 1))
    what = (
        _FIGURES.get(kind, kind)
        + (f" ({rule})" if rule else "")
        + (f": {displays['dataset'].get(title, title)}" if name else "")
    )
    data = base64.b64encode(path.read_bytes()).decode()
    return {"source": f"data:{_MEDIA[path.suffix]};base64,{data}", "what": what, "dataset": title}


# ---- charts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """The runs and learning curves on one dataset. methods: display title, as used in both charts -> title."""

    dataset: str
    metric: str
    of_runs: str
    methods: Mapping[str, str]
    runs: Rows
    curves: Panels


def _charts(
    by_dataset: dict[str, list[Record]], main: dict[str, str], compared: Mapping[str, str], methods: list[str],
    displays: Displays,
) -> tuple[list[Chart], list[str]]:  # fmt: skip
    """A chart for each dataset with finished records, and a complaint about each one that could not be drawn.

    main: dataset -> metric of the curves. compared: dataset -> metric of the runs, if it is another one.
    """
    charts, lost = [], []
    for name, group in by_dataset.items():
        try:
            if group:
                of_runs = compared.get(name, main[name])
                charts.append(_chart(name, distinct(group), main[name], of_runs, methods, displays))
        except Exception as error:  # the page must not fail because of a chart
            lost.append(f"The learning curves on {name} could not be drawn: {type(error).__name__}: {error}")
    return charts, lost


def _chart(
    dataset: str, records: list[Record], metric: str, of_runs: str, methods: list[str], displays: Displays
) -> Chart:
    """Runs at their last epoch, for all methods of the page, and curves over the evaluated epochs."""
    named = {title: displays["method"][title] for title in methods}
    test: dict[str, list[dict[int, float]]] = {}
    validation: dict[str, list[dict[int, float]]] = {}
    last: dict[str, list[float]] = {display: [] for display in named.values()}
    for record in records:
        assert record.result is not None
        method = named[_method(record)]
        test.setdefault(method, []).append(_by_epoch(record, "test", metric))
        value = record.result.epochs[-1].test.get(of_runs)
        last[method] += [] if value is None else [value]
        # if no rule may select on validation, it is the test split, or the method trains on it
        if record.result.selected("val_acc") is not None:
            validation.setdefault(method, []).append(_by_epoch(record, "valid", VALIDATED))
    order = list(named.values())
    return Chart(
        dataset, metric, of_runs, {display: title for title, display in named.items()},
        rows_of_runs(last, order=order), learning_curves(test, validation, order=order),
    )  # fmt: skip


def _by_epoch(record: Record, split: str, metric: str) -> dict[int, float]:
    """Epoch -> a metric; epochs without it are left out."""
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

    Each cell has a block. If there are too many cells, each method has a block with one line per cell.
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
    """The cells of each method: methods in the given order, and cells by their seeds."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(_method(record), []).append(record)
    return [sorted(one, key=lambda record: (data_seed(record.cell), record.cell.seed)) for one in found.values()]


def _group(records: list[Record], metric: str, *, detailed: bool) -> dict[str, Any]:
    """The content of a block with all cells of a method on a dataset: their means, and one line per cell.

    detailed: whether it shows settings and all metrics.
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
    """The mean of a metric over cells as text; empty if no cell has the metric."""
    mean = _mean(one.get(name) for one in split)
    return "" if mean is None else _number(name, mean)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _line(record: Record, metric: str) -> tuple[str, str, str]:
    """A cell in one line: its seeds, the metric at its last epoch, and its time."""
    cell, result = record.cell, record.result
    seed = f"seed {cell.seed}" + (f", data seed {data_seed(cell)}" if data_seed(cell) else "")
    value = _number(metric, result.epochs[-1].test.get(metric)) if result else ""
    return seed, value, duration(record.provenance.seconds.total)


@dataclass(frozen=True)
class Reason:
    """Cells that failed with the same error, as (method, dataset, seed), and the block of the first one."""

    cells: list[tuple[str, str, str]]
    block: dict[str, Any]


def _kind_of_failure(record: Record) -> str:
    assert record.failure is not None
    return record.failure.type


def _reasons(failed: list[Record], metrics: dict[str, str]) -> list[Reason]:
    """The failures, grouped by error, in the order of their first cells."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in failed:
        assert record.failure is not None
        found.setdefault((record.failure.type, record.failure.message), []).append(record)
    return [
        Reason([(_method(one), _dataset(one), _line(one, "")[0]) for one in some],
               _block(some[0], metrics[_dataset(some[0])]))
        for some in found.values()
    ]  # fmt: skip


def _block(record: Record, metric: str) -> dict[str, Any]:
    """The content of a cell's block: its line, named lists of values, the metrics, and the error if it failed."""
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
    """Test accuracy by class at the last epoch; a dash for older records without it."""
    from debiasbench.datasets import registry

    accuracies = result.accuracy_by_class(result.epochs[-1], "test")
    if accuracies is None:
        return [("", NOT_TOLD)]
    cls = registry.classes().get(cell.dataset)
    names = result.data.class_names or (cls.class_names if cls else ())
    if not isinstance(names, tuple) or len(names) != len(accuracies):  # names that depend on parameters
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
        ("file", "/".join(record.path.parts[-3:]) if record.path else ""),  # without the path of the results folder
        ("hash", record.hash[:16]),
        ("data", record.result.data.fingerprint[:16] if record.result else ""),
    ]
    return [
        ("Seconds", [(name, f"{value:,.1f}") for name, value in seconds.items() if spent.total]),
        ("Run with", [(name, str(value)) for name, value in where if value]),
        ("Record", [(name, value) for name, value in files if value]),
    ]


def _number(name: str, value: float | None) -> str:
    """A metric as text: accuracies in per cent, counts as integers, others with four decimals; a dash for none."""
    if value is None:
        return NOT_TOLD
    if name.startswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name == "n" or name.startswith("n_") else f"{value:.4f}"
