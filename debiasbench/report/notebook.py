"""Data frames that a notebook shows as the report's tables, with the same numbers, titles and marks as a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from debiasbench.errors import BenchmarkError
from debiasbench.escaping import printable
from debiasbench.records import Record
from debiasbench.report.results import Measure, bias_knowing, headlines_of, to_frame, without_settings
from debiasbench.report.sections import comparison_table, marked, tests_table
from debiasbench.report.tables import Table

MOST_FAILURES = 10  # shown one by one


class Results(pd.DataFrame):
    """The results of records (`results.to_frame`); a notebook shows them as a comparison.

    Otherwise it is an ordinary data frame, and anything derived from it, such as some of its rows, is a plain one.
    """

    _metadata: ClassVar[list[str]] = ["records", "made_of"]  # pandas treats these as attributes, not as columns
    records: Sequence[Record]
    made_of: list[str]  # columns

    @classmethod
    def of(cls, records: Sequence[Record]) -> Results:
        """The results of these records."""
        found = cls(to_frame(records))
        found.records, found.made_of = records, list(found.columns)
        return found

    def _repr_html_(self) -> str | None:
        return _html(self, super()._repr_html_, lambda: _comparison(self, self.records))


class Tests(pd.DataFrame):
    """Tests of methods against a reference (`results.compare`); a notebook shows them as in the report.

    Otherwise it is an ordinary data frame, and anything derived from it is a plain one.
    """

    _metadata: ClassVar[list[str]] = ["knowing", "made_of"]
    knowing: set[str]
    made_of: list[str]  # columns

    @classmethod
    def of(cls, tests: pd.DataFrame, results: pd.DataFrame) -> Tests:
        """Tests of methods in these results."""
        found = cls(tests)
        found.knowing, found.made_of = bias_knowing(results), list(found.columns)
        return found

    def _repr_html_(self) -> str | None:
        return _html(self, super()._repr_html_, lambda: ([marked(tests_table(self), self.knowing)], []))


def _html(
    frame: Results | Tests, plain: Callable[[], str | None], shown: Callable[[], tuple[list[Table], list[str]]]
) -> str | None:
    """The HTML of a frame; None if the user wants text, and the plain one if it is empty or lacks columns."""
    if not pd.get_option("display.notebook_repr_html"):
        return None
    if not len(frame) or set(frame.made_of) - set(frame.columns):
        return plain()
    try:
        tables, lines = shown()
    except BenchmarkError as error:  # these runs must not share a table: show the reason, and the rows
        return _rendered([], [str(error)]) + (plain() or "")
    size = f"A data frame of {len(frame):,} row{'s' * (len(frame) != 1)} and {frame.shape[1]:,} columns"
    return _rendered(tables, [*lines, f"{size}: .head() shows it."])


def _comparison(frame: pd.DataFrame, records: Sequence[Record]) -> tuple[list[Table], list[str]]:
    """The comparison of the finished runs in a frame, and a line for each run that failed."""
    there = set(frame.hash)
    records = [record for record in records if record.hash in there]
    results = [record for record in records if not record.cell.draw]
    done = [record for record in results if record.done]
    failed = [record for record in results if not record.done]
    lines = [_failure(record) for record in failed[:MOST_FAILURES]]
    lines += [f"failed: {len(failed) - MOST_FAILURES:,} more."] if len(failed) > MOST_FAILURES else []
    n_draws = sum(record.cell.draw is not None for record in records)
    lines += [f"{n_draws:,} draws of a tuning are left out: they are not results."] if n_draws else []
    if not done:
        return [], lines
    table = without_settings(frame[frame.hash.isin([record.hash for record in done])])
    datasets = table.dataset.unique()
    measures = [Measure(dataset, metric) for dataset in datasets for metric in headlines_of(table, dataset)]
    return [marked(comparison_table(table, done, measures), bias_knowing(table))], lines


def _failure(record: Record) -> str:
    assert record.failure is not None
    return f"failed: {record.cell.title}: {record.failure.type}: {record.failure.message}"


def _rendered(tables: list[Table], lines: list[str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_printable
    )
    template = environment.from_string(Path(__file__).with_name("notebook.html").read_text(encoding="utf-8"))
    return template.render(tables=tables, lines=lines)


def _printable(value: Any) -> Any:
    """Text without control characters and lone surrogates, which a notebook file cannot hold."""
    is_markup = hasattr(value, "__html__")  # from the template itself
    return printable(value) if isinstance(value, str) and not is_markup else value
