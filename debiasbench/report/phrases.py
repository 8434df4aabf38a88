"""Text that contains titles of methods and datasets, and can be written again with their display titles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd

from debiasbench.cell import Cell
from debiasbench.plugins import display_of
from debiasbench.report.results import dataset_title

Displays = Mapping[str, Mapping[str, str]]  # kind -> title -> display title; kinds: "method", "dataset", "dataset_name"


class Phrase(str):
    """Text made of parts, as by `str.format`; a part given by keyword is a title of that kind.

    It reads as an ordinary `str`; `displayed` makes the same text with display titles.
    """

    template: str
    parts: tuple[str, ...]
    titles: dict[str, str]

    def __new__(cls, template: str, *parts: str, **titles: str) -> Phrase:
        """The text of `template`; what users write may be in parts and titles, but never in the template."""
        self = super().__new__(cls, template.format(*parts, **titles))
        self.template, self.parts, self.titles = template, parts, titles
        return self


def joined(separator: str, parts: Iterable[str]) -> Phrase:
    """Like `separator.join(parts)`."""
    parts = list(parts)
    return Phrase(separator.join(["{}"] * len(parts)), *parts)


def displayed(text: str, displays: Displays) -> str:
    """A phrase with display titles in place of its titles; other text is returned unchanged."""
    if not isinstance(text, Phrase):
        return text
    parts = (displayed(part, displays) for part in text.parts)
    titles = {kind: displays.get(kind, {}).get(title, title) for kind, title in text.titles.items()}
    return text.template.format(*parts, **titles)


def titles_in(text: str, kind: str) -> set[str]:
    """The titles of a kind in a phrase; none for other text."""
    if not isinstance(text, Phrase):
        return set()
    own = {text.titles[kind]} if kind in text.titles else set()
    return own.union(*(titles_in(part, kind) for part in text.parts))


def display_titles(cells: Iterable[Cell]) -> Displays:
    """Display titles of the methods and datasets of these cells; what is not known here keeps its title.

    Display titles are looked up and not kept in records, so that one that is added or corrected later applies to all
    records. Those that would have the same display title keep their titles.
    """
    from debiasbench.datasets import registry as datasets
    from debiasbench.methods import registry as methods

    known, of_data = methods.classes(), datasets.classes()
    cells = list(cells)
    by_method = {cell.method_title: cell for cell in cells}
    by_dataset = {title: cell for cell in cells for title in (cell.dataset_title, dataset_title(cell))}
    names = dict.fromkeys(cell.dataset for cell in cells)
    return {
        "method": _apart({title: _or(title, _of_method, known, cell) for title, cell in by_method.items()}),
        "dataset": _apart({title: _or(title, _of_dataset, cell, title) for title, cell in by_dataset.items()}),
        "dataset_name": _apart({name: _or(name, _of_class, of_data, name) for name in names}),
    }


def display_titles_in(table: pd.DataFrame) -> Displays:
    """The same for the methods and datasets of a table that has their titles, such as that of `results.to_frame`."""
    from debiasbench.datasets import registry as datasets
    from debiasbench.grid import dataset_from_spec
    from debiasbench.methods import registry as methods

    known, of_data = methods.classes(), datasets.classes()

    def of_method(title: str) -> str:
        return display_of(known[title.partition(":")[0]], title)

    def of_dataset(title: str) -> str:
        return display_of(dataset_from_spec(title)[0], title)

    names = dict.fromkeys(title.partition(":")[0] for title in table.dataset)
    return {
        "method": _apart({title: _or(title, of_method, title) for title in table.method.unique()}),
        "dataset": _apart({title: _or(title, of_dataset, title) for title in table.dataset.unique()}),
        "dataset_name": _apart({name: _or(name, _of_class, of_data, name) for name in names}),
    }


def _of_method(known: Mapping[str, Any], cell: Cell) -> str:
    return display_of(known[cell.method], cell.method_title)


def _of_dataset(cell: Cell, title: str) -> str:
    return display_of(cell.build_dataset(), title)


def _of_class(known: Mapping[str, Any], name: str) -> str:
    display = vars(known[name]).get("display")
    return display if isinstance(display, str) and display else name


def _or(title: str, look_up: Callable[..., str], *given: Any) -> str:
    """The display title; or the title, if the look-up fails: it is not known here, or its parameters have changed."""
    try:
        return look_up(*given)
    except Exception:  # the report must not fail because of a plug-in's display title
        return title


def _apart(displays: Mapping[str, str]) -> dict[str, str]:
    """Display titles that are all different: those that are equal are replaced by the titles."""
    apart = dict(displays)
    while True:
        twice = {display for display, n in Counter(apart.values()).items() if n > 1}
        if not twice:
            return apart
        apart = {title: title if display in twice else display for title, display in apart.items()}
