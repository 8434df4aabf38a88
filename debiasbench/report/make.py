"""Tables, tests and figures from records alone, from any source, and also while cells still run."""

from __future__ import annotations

import codecs
import contextlib
import functools
import gc
import json
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from debiasbench.about import PROTOCOL_VERSION
from debiasbench.cell import Cell
from debiasbench.code import digest_of_plugin
from debiasbench.drawing import lacking
from debiasbench.errors import BenchmarkError
from debiasbench.escaping import markdown_line
from debiasbench.experiments import Experiment
from debiasbench.files import atomic_file, check_writable, file_name, file_names, write_atomically
from debiasbench.parameters import suggestion
from debiasbench.plain import encodable, from_plain
from debiasbench.plugins import is_shipped, version_of
from debiasbench.records import Record, read_records, sources, without_copies
from debiasbench.report import beside, profile
from debiasbench.report.budgets import as_asked
from debiasbench.report.export import check_export, write_export
from debiasbench.report.groups import groups_tables
from debiasbench.report.outcomes import outcome
from debiasbench.report.page import page
from debiasbench.report.phrases import Displays, display_titles
from debiasbench.report.pictures import accuracy_picture, marked_titles, profile_picture, rank_picture, score_picture
from debiasbench.report.published import cells as grid_cells
from debiasbench.report.results import (
    Measure,
    bias_knowing,
    check_metric,
    check_reference,
    check_rule,
    compare_by,
    dataset_title,
    existing,
    headline_of,
    headlines_of,
    in_parts,
    metrics_in,
    runs,
    scores_of,
    shortened,
    to_frame,
    without_settings,
)
from debiasbench.report.sections import (
    comparison_table,
    identification_table,
    marked,
    means_of,
    one_a_dataset,
    ranks_table,
    selection_table,
    tests_table,
)
from debiasbench.report.strict import (
    Commands,
    Refusal,
    Seal,
    Wholes,
    changed_tables,
    differences,
    message,
    read_seal,
    refusals,
    seal,
    shown_in,
    write_seal,
)
from debiasbench.report.style import save
from debiasbench.report.tables import (
    Column,
    Table,
    count,
    csv,
    frame_csv,
    latex_document,
    latex_file,
    markdown,
    results_csv,
    with_display_titles,
    words,
)
from debiasbench.report.tuning import cells_of, draw_tuning, draws_table
from debiasbench.report.verdict import verdicts
from debiasbench.tuning import tried_by
from debiasbench.wording import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """What `make` found and wrote.

    Attributes:
        tables: the comparison and all other tables.
        paths: kind of output -> files.
        failed: records of cells that have no result.
        complaints: one for each file that was left out and each figure that could not be drawn.
        passed: the line below tables that passed `strict`, with their digest; "" without `strict`.
        verdicts: the best method in each column of the comparison, and whether that is certain.
    """

    tables: list[Table]
    paths: dict[str, list[Path]]
    failed: list[Record]
    complaints: list[str]
    passed: str = ""
    verdicts: list[str] = field(default_factory=list)

    def table(self, key: str) -> Table:
        """The table with this key.

        Raises:
            KeyError: there is no such table.
        """
        return {one.key: one for one in self.tables}[key]


@dataclass(frozen=True)
class Shown:
    """What the comparison shows.

    Attributes:
        methods, datasets: titles or names, shown in this order; empty: all.
        metrics: names; empty: the headline metrics.
        select: selection rules.
        beside: a CSV of published numbers to show beside ours.
        profile: whether to also show how hard the benchmark is, by conflict ratio.
        order: of the methods: "given", "score" (best mean in the first column first) or "name".
        by: what columns are grouped by: "dataset" or "metric".
    """

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    select: tuple[str, ...] = ("last",)
    beside: Path | None = None
    profile: bool = False
    order: str = "given"
    by: str = "dataset"


@contextlib.contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Garbage collection less often than usual: each one searches all of torch for reference cycles.

    That would take an eighth of the time of a report of 10,000 records. The peak of memory is the same without it.
    """
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@_rare_garbage_collection()
def make(  # noqa: PLR0913 - the report's options
    results_dir: Path,
    *,
    reference: str | None = None,
    keep: Callable[[Record], bool] | None = None,
    order: list[str] | None = None,
    figures: bool = True,
    shown: Shown | None = None,
    experiment: Experiment | None = None,
    data_dir: Path | None = None,
    strict: bool = False,
    export: Path | None = None,
) -> Report:
    """Read the records below `results_dir` and write tables, figures and `report.html` beside them.

    Args:
        results_dir: a results folder, any folder of records, or an archive of them (then files are written into a
            folder of the same name beside it).
        reference: the method that the others are tested against; default: the first.
        keep: selects records (those of one grid, for example); default: all.
        order: titles of methods in the wanted order; others follow. Names in `shown` take precedence.
        shown: methods, datasets, metrics and selection rules of the comparison.
        experiment: an experiment whose table and figure are made as well, beside the paper's numbers.
        data_dir: the data folder, for experiments that read the data again.
        strict: refuse tables that are not ready for publication (see `strict`), and write `tables/strict.json`.
        export: a file for the long table of results (see `export`).

    Raises:
        BenchmarkError: there are no records; records must not be mixed; a name is not there; with `strict`, everything
            that keeps the tables from being published (then nothing is written).
    """
    if export is not None:
        check_export(export)
    given, source = results_dir, sources(existing(results_dir))
    if results_dir.is_file():  # an archive: output goes into a folder of the same name
        results_dir = results_dir.with_suffix("")
    for part in ("tables", "figures"):  # before thousands of records are read
        check_writable(
            results_dir / part, "debiasbench report (a copy of the records)", what=f"The results folder {results_dir}"
        )
    shown = shown or Shown()
    records, complaints = read_records(*source, shorten=shortened)
    records = without_copies([record for record in records if keep is None or keep(record)])
    if not records:
        raise _no_records(results_dir, complaints)
    draws: list[Record] = []
    if keep is None:  # with `keep`, draws that were asked for by name are shown
        draws = [record for record in records if record.cell.draw]
        records = [record for record in records if not record.cell.draw]
    if not records:
        raise BenchmarkError(
            f"{results_dir} has only draws of a tuning, which are not results. `debiasbench tune` has written their "
            "tables and figures. To run the chosen values: debiasbench run --tuned FILE."
        )
    saved = read_grid(results_dir, complaints) if keep is None else LastGrid()
    unread = list(complaints)
    complaints += [f"{len(draws)} draws of a tuning are left out: they are not results."] if draws else []
    order = order or list(saved.order)
    experiment = experiment or saved.experiment
    rank = {title: index for index, title in enumerate(order)}
    records.sort(key=lambda record: rank.get(record.cell.method_title, len(rank)))
    limited = bool(shown.methods or shown.datasets)
    records = _in_order(_chosen(records, shown), shown)
    known = list(dict.fromkeys(record.cell.method_title for record in records))
    if reference is None and saved.reference in known:
        reference = saved.reference
    if reference is not None:
        check_reference(reference, known, " among the methods and datasets that are shown" * limited)
    done = [record for record in records if record.done]
    failed = [record for record in records if not record.done]
    of_draws = {record.cell.method_title for record in draws if record.cell.draw and record.cell.draw.number}
    wholes = Wholes()
    check = functools.partial(
        _check_strictly, records, wholes=wholes, complaints=unread,
        asked=lambda: [cell for cell in saved.cells(of_draws) if _chosen_names(cell, shown)],
        commands=_commands(given, shown, reference or known[0]),
    )  # fmt: skip
    if strict and not done:
        check([], None)
    if not done:
        html = page("debiasbench", [], [], records, notes=complaints)
        return Report([], {"report": [_write(results_dir / "report.html", html)]}, failed, complaints)
    parts = in_parts(done)
    table = parts.without_settings()
    measures = _measures(table, shown)
    accuracies = [name for name in table if name.startswith("acc_")]
    others = beside.read(shown.beside, accuracies) if shown.beside else None
    sweeps = profile.sweeps(done) if shown.profile else []
    if strict:
        check(measures, parts.of_rules(one.select for one in measures))
    with_settings = parts.of_rules(["last"])
    for dataset in table.dataset.unique():
        runs(with_settings, dataset, headline_of(table, dataset))  # refuses runs that must not be mixed
    reference = reference or table.method.iloc[0]
    if shown.order != "given":
        rank = _rank(table, measures[0], shown.order)
        for some in (records, done):
            some.sort(key=lambda record: rank.get(record.cell.method_title, len(rank)))
        parts = parts.by_method(rank)
        table = parts.without_settings()
        measures = _measures(table, shown)
    folder = results_dir / "tables"
    results = _write_csv(folder / "results.csv", results_csv(parts))
    exported = [write_export(export, parts.whole())] if export is not None else []
    del parts, with_settings
    paths: dict[str, list[Path]] = {"records": source} | ({"export": exported} if exported else {})
    methods = table.method.unique().tolist()
    tables, tests = _compared(table, done, measures, reference, by=shown.by)
    if tests is not None:
        paths["tests"] = [_write_csv(folder / "tests.csv", frame_csv(tests))]
    passed = [_sealed(done, tables, shown, reference, wholes)] if strict else []
    if others is not None and shown.beside:
        tables[0], told = beside.with_published(tables[0], others, measures, done, shown.beside)
        complaints += told
    comparison = tables[0]
    rules = dict.fromkeys(record.cell.tuned.rule for record in done if record.cell.tuned) if draws else {}
    tunings = {rule: tried_by(draws, rule) for rule in rules}
    displays = display_titles(
        [*(record.cell for record in done), *chain.from_iterable(map(cells_of, tunings.values()))]
    )
    drawn = draw(table, done, measures, displays, results_dir / "figures", complaints) if figures else []
    for rule, found in tunings.items():
        tables.append(draws_table(found, rule))
        drawn += draw_tuning(found, done, rule, results_dir / "figures", complaints) if figures else []
    if experiment is not None:
        ran = outcome(experiment, results_dir, data_dir, order=methods)
        complaints += ran.complaints
        tables = [*ran.tables, *tables]
        drawn = [*ran.figures, *drawn]
        if ran.lines is not None:
            path = folder / f"{file_name(experiment.name)}.csv"
            paths["beside the paper"] = [_write_csv(path, frame_csv(ran.lines))]
    by_group = [marked(one, bias_knowing(table)) for one in groups_tables(done)]
    if by_group:
        tables += by_group
        names = file_names(one.key for one in by_group)
        paths["groups"] = [_write_csv(folder / f"{names[one.key]}.csv", [csv(one)]) for one in by_group]
    if sweeps:
        shown_by_ratio, curves = profile.profile(table, sweeps, reference)
        tables.append(shown_by_ratio)
        paths["profile"] = [_write_csv(folder / "profile.csv", [csv(shown_by_ratio)])]
        if figures:
            stem = results_dir / "figures" / "profile"
            titles = marked_titles(displays, table)
            drawn += _drawn(stem, complaints, profile_picture, table, curves, reference, titles)
    complaints = list(dict.fromkeys([*complaints, *(_without_glyphs(done) if drawn else ())]))
    lines = [one.line for one in passed]
    in_paper = [with_display_titles(one, displays) for one in tables]
    paths["tables"] = [
        _write(folder / "comparison.md", "\n\n".join([*map(markdown, tables), *map(markdown_line, lines)]) + "\n"),
        _write(folder / "comparison.tex", "".join(f"% {line}\n" for line in lines) + latex_file(in_paper)),
        _write(folder / "document.tex", latex_document(in_paper, "comparison")),
        _write_csv(folder / "comparison.csv", [csv(comparison)]),
        results,
    ]
    for one in passed:
        path = folder / "strict.json"
        write_atomically(path, write_seal(one))
        paths["strict"] = [path]
    if drawn:
        paths["figures"] = drawn
    told = verdicts(table, measures, tests)
    compared = {one.dataset: one.metric for one in one_a_dataset(measures)}
    html = page(
        "debiasbench", tables, drawn, records, metrics=compared, notes=[*lines, *complaints], verdicts=told
    )  # fmt: skip
    paths["report"] = [_write(results_dir / "report.html", html)]
    return Report(tables, paths, failed, complaints, passed[0].line if passed else "", told)


def _compared(
    table: pd.DataFrame, done: list[Record], measures: list[Measure], reference: str | None, *, by: str
) -> tuple[list[Table], pd.DataFrame | None]:
    """The tables of these records, the comparison first, and its tests (None for a single method)."""
    tables = [comparison_table(table, done, measures, by=by)]
    tables += [selection_table(table, dataset) for dataset in table.dataset.unique()]
    tables += [part for part in (ranks_table(table, measures), identification_table(done)) if part]
    methods, tests = table.method.unique().tolist(), None
    if len(methods) > 1:
        tests = compare_by(table, measures, reference=reference if reference in methods else None)
        tables += [tests_table(tests)] if len(tests) else []
    return [marked(one, bias_knowing(table)) for one in tables], tests


def _chosen(records: list[Record], shown: Shown) -> list[Record]:
    """The records of the shown methods and datasets, which may be given by title, or by name for all its titles."""
    for kind, wanted in (("method", shown.methods), ("dataset", shown.datasets)):
        there = {name for record in records for name in _names(record.cell, kind)}
        lacking = [name for name in wanted if name not in there]
        if lacking:
            raise BenchmarkError(
                f"No results of the {kind} '{lacking[0]}'.{suggestion(lacking[0], there)} There are: "
                f"{', '.join(sorted(there))}."
            )
        if wanted:
            records = [record for record in records if _names(record.cell, kind) & set(wanted)]
    return records


def _in_order(records: list[Record], shown: Shown) -> list[Record]:
    """The records by method; methods, and the datasets of each, are in the order in which they are named."""

    def place(cell: Cell, kind: str, wanted: tuple[str, ...]) -> int:
        return next((index for index, name in enumerate(wanted) if name in _names(cell, kind)), len(wanted))

    methods = list(dict.fromkeys(record.cell.method_title for record in records))
    rank = {title: index for index, title in enumerate(methods)}
    return sorted(
        records,
        key=lambda one: (
            place(one.cell, "method", shown.methods), rank[one.cell.method_title],
            place(one.cell, "dataset", shown.datasets),
        ),
    )  # fmt: skip


def _rank(table: pd.DataFrame, first: Measure, order: str) -> dict[str, int]:
    """Rank of each method by its mean in the first column, best first, those without a mean last; or by title."""
    methods = table.method.unique().tolist()
    if order == "name":
        methods.sort(key=lambda title: (title.casefold(), title))
    else:
        means = dict(zip(methods, means_of(table, [first])[0].tolist(), strict=True))
        methods.sort(key=lambda title: -means[title] if means[title] == means[title] else math.inf)
    return {title: index for index, title in enumerate(methods)}


def _chosen_names(cell: Cell, shown: Shown) -> bool:
    """Whether the method and the dataset of a cell are shown."""
    wanted = {"method": shown.methods, "dataset": shown.datasets}
    return all(not names or bool(_names(cell, kind) & set(names)) for kind, names in wanted.items())


def _names(cell: Cell, kind: str) -> set[str]:
    """The names and titles that a cell's method or dataset may be called."""
    if kind == "method":
        return {cell.method, cell.method_title}
    return {cell.dataset, cell.dataset_title, dataset_title(cell)}


def _measures(table: pd.DataFrame, shown: Shown) -> list[Measure]:
    """The columns of the comparison; a metric that a dataset does not have is left out there."""
    for name in shown.metrics:
        check_metric(table, name)
    for rule in shown.select:
        check_rule(table, rule)
    measures = []
    for dataset in table.dataset.unique():
        has = [
            name
            for name in shown.metrics
            if table.loc[(table.dataset == dataset) & (table["split"] == "test"), name].notna().any()
        ]
        metrics = has if shown.metrics else headlines_of(table, dataset)
        measures += [Measure(dataset, metric, rule) for metric in metrics for rule in shown.select]
    measures = list(dict.fromkeys(measures))
    if shown.by == "metric":
        columns = list(dict.fromkeys((one.metric, one.select) for one in measures))
        measures.sort(key=lambda one: columns.index((one.metric, one.select)))
    if not measures:
        raise BenchmarkError(f"No shown dataset has {', '.join(shown.metrics)}. Known: {', '.join(metrics_in(table))}.")
    return measures


# ---- checks before publication ---------------------------------------------------------------------------------------


def _check_strictly(
    records: list[Record],
    measures: list[Measure],
    table: pd.DataFrame | None,
    *,
    asked: Callable[[], list[Cell]],
    commands: Commands,
    complaints: list[str],
    wholes: Wholes,
) -> None:
    """Refuse tables that are not ready for publication; `asked` gives the cells of the last run.

    Raises:
        BenchmarkError: everything that is wrong.
    """
    try:
        found = refusals(records, measures, asked=asked(), table=table, commands=commands, wholes=wholes)
    except BenchmarkError as error:
        found = [Refusal(f"The cells of the last run cannot be determined here ({error}).")]
    if found or complaints:
        raise BenchmarkError(message(found, complaints, commands))


def _commands(given: Path, shown: Shown, reference: str) -> Commands:
    """Makes the commands that fix a report on a folder or archive, as the user named it."""
    options = {name: getattr(shown, name) for name in ("methods", "datasets", "metrics")}
    options |= {
        name: (getattr(shown, name),) for name in ("order", "by") if getattr(shown, name) != getattr(Shown, name)
    }
    return Commands(_trained_into(given), given, options, reference)


def _trained_into(given: Path) -> Path:
    """The results folder in which more cells are trained so that a report on `given` has them as well."""
    for folder in (given, *given.parents):
        if folder.stem == "records" and folder.suffix in ("", ".zip"):
            return folder.parent
    if given.is_file():
        return given.parent
    return given if sources(given) != [given] else given / "more"


def _sealed(done: list[Record], tables: list[Table], shown: Shown, reference: str, wholes: Wholes) -> Seal:
    by = None if shown.by == Shown.by else shown.by
    return seal(done, tables, reference=reference, metrics=shown.metrics, select=shown.select, wholes=wholes, by=by)


def verify(file: Path, folder: Path | None = None) -> tuple[bool, list[str]]:
    """Check records against a seal.

    Args:
        file: `tables/strict.json` of a report that passed.
        folder: the folder of the records, or an archive of them; default: the results folder that the file is in.

    Returns:
        Whether the records, and the tables made of them, are those of the seal; and lines to show.

    Raises:
        BenchmarkError: the file is not a seal; there is no such folder.
    """
    sealed = read_seal(file)
    if folder is None:
        folder = file.absolute().parent.parent
        archive = folder.with_name(f"{folder.name}.zip")  # what a report on an archive wrote is beside it
        folder = archive if sources(folder) == [folder] and archive.is_file() else folder
    records, complaints = read_records(*sources(existing(folder)), shorten=shortened)
    rank = {title: index for index, title in enumerate(sealed.methods)}
    some = [
        record for record in without_copies(records)
        if not record.cell.draw and record.cell.method_title in rank and dataset_title(record.cell) in sealed.datasets
    ]  # fmt: skip
    datasets = sealed.datasets
    some.sort(key=lambda one: (rank[one.cell.method_title], datasets.index(dataset_title(one.cell))))
    lines = differences(sealed, some)
    if not lines:
        table = to_frame(some)
        by = sealed.by or Shown.by
        measures = _measures(table, Shown(metrics=sealed.metrics, select=sealed.select, by=by))
        tables, _ = _compared(without_settings(table), some, measures, sealed.reference, by=by)
        lines = changed_tables(sealed, shown_in(tables))
    told = [*lines, *(f"not read: {complaint}" for complaint in complaints)]
    if lines:
        return False, [*told, f"Not equal: {folder} differs from what {file} was made of (digest {sealed.digest})."]
    return True, [*told, f"Equal: {len(sealed.records):,} records and the tables, digest {sealed.digest}."]


# ---- the last grid ---------------------------------------------------------------------------------------------------

MOST_BYTES = 2**20  # of grid.json: a larger file is something else


@dataclass(frozen=True)
class LastGrid:
    """What a report takes from the last run into a folder: reference, order of methods, experiment."""

    reference: str | None = None
    order: tuple[str, ...] = ()
    experiment: Experiment | None = field(default=None, metadata={"written": False})
    asked: Experiment | None = field(default=None, metadata={"written": False})  # None: written by an earlier version

    def cells(self, draws: Collection[str]) -> list[Cell]:
        """The cells of the last run; none if it was a tuning, some of whose `draws` have these titles.

        Raises:
            BenchmarkError: a method or dataset of the run is not known here.
        """
        if self.asked is None or set(self.order) & set(draws):
            return []
        found = []
        for title in self.order or self.asked.methods:  # "all" may have been fewer methods then
            spec, by_tuning = as_asked(title)
            cells = grid_cells(self.asked, [spec], self.asked.datasets)
            found += [replace(cell, method_title=title) if by_tuning else cell for cell in cells]
        return found


def read_grid(results_dir: Path, complaints: list[str]) -> LastGrid:
    """The grid that was last run into a folder; empty if the file is missing or, with a complaint, damaged."""
    path = results_dir / "grid.json"
    if not path.exists():
        return LastGrid()
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError("it is not a regular file, or too large")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        found: LastGrid = from_plain(LastGrid, content)
        experiment, asked = (_experiment(content.get(name), name) for name in ("experiment", "asked"))
        return replace(found, experiment=experiment, asked=asked)
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        complaints.append(f"{path}: {why}: reference and order of the last run are not known.")
        return LastGrid()


def _experiment(plain: Any, key: str) -> Experiment | None:
    """An experiment from the plain values under a key; ValueError if they are something else or of another version."""
    if plain is None:
        return None
    kinds = typing.get_type_hints(Experiment)
    values: dict[str, Any] = from_plain(dict[str, Any], plain, key)
    strange = [name for name in values if name not in kinds]
    lacking = [name for name in ("name", "methods", "datasets") if name not in values]
    if strange or lacking:
        raise ValueError(f"{key} has unknown or missing fields: {', '.join([*strange, *lacking])}")
    for name, value in values.items():
        found = from_plain(_in_tuples(kinds[name]), value, f"{key}.{name}")
        values[name] = list(found) if isinstance(found, tuple) else found
    return Experiment(**values)


def _in_tuples(kind: Any) -> Any:
    """The type with tuples for lists, as `from_plain` reads them."""
    if typing.get_origin(kind) is list:
        return tuple[typing.get_args(kind)[0], ...]  # type: ignore[misc]
    if typing.get_origin(kind) is types.UnionType:
        return functools.reduce(operator.or_, map(_in_tuples, typing.get_args(kind)))
    return kind


def _write(path: Path, text: str) -> Path:
    write_atomically(path, encodable(text).encode("utf-8"))
    return path


def _write_csv(path: Path, parts: Iterable[str]) -> Path:
    """With a byte-order mark, without which Excel does not recognise UTF-8."""
    with atomic_file(path) as file:
        file.write(codecs.BOM_UTF8)
        for part in parts:
            file.write(encodable(part).encode("utf-8"))
    return path


# ---- figures ---------------------------------------------------------------------------------------------------------


def draw(
    table: pd.DataFrame,
    records: list[Record],
    measures: list[Measure],
    displays: Displays,
    folder: Path,
    complaints: list[str],
) -> list[Path]:
    """Draw scores of aligned and conflicting samples (first seed), all runs by first column, and ranks if tested.

    Files are named after titles; labels in figures are display titles. What cannot be read or drawn is appended to
    `complaints`.
    """
    paths: list[Path] = []
    displays = marked_titles(displays, table)
    first = {one.dataset: one for one in one_a_dataset(measures)}

    def drawn(stem: str, picture: Callable[..., Figure | None], *given: Any) -> None:
        paths.extend(_drawn(folder / stem, complaints, picture, *given))

    for dataset, name in file_names(table.dataset).items():
        scores = _scores([record for record in records if dataset_title(record.cell) == dataset], complaints)
        if scores:
            drawn(f"scores-{name}", score_picture, scores, dataset, displays)
        if dataset in first:
            drawn(f"accuracies-{name}", accuracy_picture, table, first[dataset], displays)
    drawn("ranks", rank_picture, table, measures, displays)
    return paths


def _drawn(stem: Path, complaints: list[str], picture: Callable[..., Figure | None], *given: Any) -> list[Path]:
    """The files of a figure; none if there is nothing to draw or, with a complaint, if it cannot be drawn."""
    try:
        figure = picture(*given)
        return save(figure, stem) if figure is not None else []
    except Exception as error:  # the report must not fail because of a figure
        complaints.append(f"{stem.name} could not be drawn: {type(error).__name__}: {error}")
        return []


def _without_glyphs(records: list[Record]) -> list[str]:
    """One complaint about all characters that figures show as boxes."""
    characters = lacking(
        title for record in records for title in (record.cell.method_title, dataset_title(record.cell))
    )
    if not characters:
        return []
    return [
        f"The figures show boxes for {characters}: no installed font has them. Install one that does, such as Noto "
        "Sans CJK for Chinese, Japanese and Korean."
    ]


def _scores(records: list[Record], complaints: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> scores and whether conflicting, of the first record that has them."""
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for record in records:
        if record.cell.method_title not in scores:
            found = scores_of(record, complaints)
            if found is not None:
                scores[record.cell.method_title] = found
    return scores


# ---- other views of a folder -----------------------------------------------------------------------------------------


def bibtex(folder: Path) -> str:
    """BibTeX entries of the methods and datasets in the records below a folder.

    Raises:
        BenchmarkError: there is no such folder, or it has no records.
    """
    from debiasbench.datasets import registry as datasets
    from debiasbench.methods import registry as methods

    records, complaints = read_records(*sources(existing(folder)))
    if not records:
        raise _no_records(folder, complaints)
    cells = [record.cell for record in records]
    known, of_data = methods.classes(), datasets.classes()
    by_method = sorted(cells, key=lambda cell: cell.method, reverse=True)
    found = [one for cell in by_method if cell.method in known
             for one in known[cell.method].citations(cell.method_parameters)]  # fmt: skip
    names = sorted({cell.dataset for cell in cells} & of_data.keys(), reverse=True)
    return "\n\n".join(dict.fromkeys([*found, *(of_data[name].citation for name in names if of_data[name].citation)]))


def _no_records(folder: Path, complaints: list[str]) -> BenchmarkError:
    advice = "" if complaints else " Run `debiasbench run` first, or name a folder that has records."
    return BenchmarkError("\n".join([f"There are no records in {folder}.{advice}", *complaints]))


def _stale(records: list[Record]) -> list[str]:
    """Notes on finished records that no longer count, by cause, with the time to run them again."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cause = _cause_of_staleness(record) if record.done else ""
        if cause:
            found.setdefault((record.cell.method_title, cause), []).append(record)
    notes = []
    for (title, cause), some in found.items():
        seconds = sum(record.provenance.seconds.total for record in some)
        notes.append(f"Stale: {len(some)} of {title} ({cause}); {duration(seconds)} to run again.")
    return notes


def _cause_of_staleness(record: Record) -> str:
    """Why a finished record does not count for its cell as it would be run now; "" if it does, as far as is known.

    It does not check whether the data have changed, because this is known only when they are built.
    """
    from debiasbench.datasets import registry as datasets
    from debiasbench.methods import registry as methods
    from debiasbench.nets.own import registry as own_nets

    cell = record.cell
    if record.provenance.protocol != PROTOCOL_VERSION:
        return f"protocol {record.provenance.protocol}, now {PROTOCOL_VERSION}"
    data, cls = datasets.classes().get(cell.dataset), methods.classes().get(cell.method)
    if cls is not None and (current := _version_now(cell, cls, known=data is not None)) != cell.method_version:
        return f"version {cell.method_version} of the method, now {current}"
    if data is not None and (current := version_of(data)) != cell.dataset_version:
        return f"version {cell.dataset_version} of the dataset, now {current}"
    net = own_nets.classes().get(cell.recipe.get("net", ""))
    for kind, one in (("method", cls), ("net", net)):
        then, now = (record.provenance.code or {}).get(kind), digest_of_plugin(one) if one else None
        if one is not None and not is_shipped(one) and then is not None and now is not None and then != now:
            of = "its code" if kind == "method" else f"the code of its net {one.name}"
            return f"{of} has changed: --rerun changed or --keep-changed"
    return ""


def _folders(cell: Cell) -> tuple[str, str]:
    """The folders of a cell's log, also if its record is in an archive."""
    return file_name(cell.dataset_title), file_name(cell.method_title)


def _version_now(cell: Cell, cls: type[Any], *, known: bool) -> int | str:
    """The version of a cell's method, which may depend on its values; `known`: whether its dataset is known."""
    try:
        values = (cell.build_method(), cell.build_dataset()) if known else ()
    except (BenchmarkError, TypeError):  # values that the method or the dataset no longer takes
        values = ()
    return version_of(cls, *values)


def status(results_dir: Path) -> Table:
    """How many cells of a results folder are done, failed, or started without a record yet."""
    records, complaints = read_records(existing(results_dir))
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for record in {record.hash: record for record in without_copies(records)}.values():  # unequal ones are one cell
        key = (dataset_title(record.cell), record.cell.method_title)
        counts.setdefault(key, {"done": 0, "failed": 0})[record.status] += 1
    logs = results_dir / "logs"
    recorded = {Path(*_folders(record.cell), record.path.stem) for record in records if record.path is not None}
    started = [
        log.relative_to(logs).with_suffix("")
        for log in sorted(logs.rglob("*.log"))
        if log.relative_to(logs).with_suffix("") not in recorded
    ]
    rows = [[*words(*key), count(n["done"]), count(n["failed"])] for key, n in sorted(counts.items())]
    notes = [f"Started, not finished: {', '.join(map(str, started))}."] if started else []
    notes += [] if rows or started else ["No cell was started here yet: run `debiasbench run`."]
    notes += _stale(records)
    columns = [Column(name, name, numeric=False) for name in ("dataset", "method")]
    columns += [Column(name, name) for name in ("done", "failed")]
    return Table("status", f"Records in {results_dir}", columns, rows, notes + complaints)
