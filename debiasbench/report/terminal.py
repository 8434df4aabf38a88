"""Tables on terminals of any width: numbers never wrap, titles wrap between options, wide tables are split."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len, chop_cells
from rich.table import Table as RichTable
from rich.text import Text

from debiasbench.console import PlainConsole
from debiasbench.report.tables import Table

FRAME = 3  # characters that a column takes besides its text; the table takes one more
NARROWEST = 10  # characters for a title if the terminal is too narrow for anything


def shown_in(table: Table, console: PlainConsole) -> list[RichTable]:
    """The table; if the console is too narrow, several tables with some of its columns and the titles of its rows."""
    heads = [console.shown(column.heading) for column in table.columns]
    rows = [[console.shown(entry.shown) for entry in row] for row in table.rows]
    columns = [
        _Column(head, [row[index] for row in rows], wraps=not table.columns[index].numeric)
        for index, head in enumerate(heads)
    ]
    n_titles = next((index for index, one in enumerate(table.columns) if one.numeric), len(columns))
    titles, units = list(range(n_titles)), list[list[int]]()
    for index in range(n_titles, len(columns)):
        if table.columns[index].counts_runs and units:
            units[-1].append(index)
        else:
            units.append([index])
    widest = max((_taken(columns[index].narrowest for index in unit) for unit in units), default=0)
    room = max(console.width - 1 - widest, (NARROWEST + FRAME) * n_titles)
    narrow = _within([columns[index].narrowest for index in titles], room)
    parts = _parts(units, columns, console.width - 1 - _taken(narrow))
    used = [_taken(columns[index].narrowest for index in part) for part in parts] or [0]
    wide = _grown(narrow, [columns[index].widest for index in titles], console.width - 1 - max(used) - _taken(narrow))
    found = []
    for number, part in enumerate(parts or [[]]):
        widths = wide + [columns[index].narrowest for index in part]
        natural = wide + [columns[index].widest for index in part]
        widths = _grown(widths, natural, console.width - 1 - _taken(widths))
        widths = [columns[index].used(width) for index, width in zip([*titles, *part], widths, strict=True)]
        found.append(_drawn(table, columns, [*titles, *part], widths, with_title=number == 0))
    return found


@dataclass(frozen=True)
class _Column:
    """A heading and the texts below it; the heading can always wrap, the texts only if `wraps`."""

    head: str
    texts: list[str]
    wraps: bool

    @cached_property
    def narrowest(self) -> int:
        """The smallest width, in characters, that cuts no word or option."""
        whole = [] if self.wraps else self.texts
        pieces = [piece for text in [self.head, *(self.texts if self.wraps else ())] for piece in _pieces(text)]
        return max(map(cell_len, [*whole, *(piece.rstrip() for piece in pieces)]), default=0)

    @cached_property
    def widest(self) -> int:
        """The width without any wrapping."""
        return max(map(cell_len, [self.head, *self.texts]))

    def used(self, width: int) -> int:
        """The part of a width that is used when texts wrap to it."""
        lines = (line for text in [self.head, *self.texts] for line in _wrapped(text, width).splitlines())
        return max(map(cell_len, lines), default=0)


def _pieces(text: str) -> list[str]:
    """The parts of a text between which it can wrap: words, numbers, and the options of a title."""
    number = r"(?<=\d),(?=\d{3}(?!\d))"  # the comma within 1,050
    return re.findall(rf"(?:[^\s,:]|{number})*(?:[,:](?=\S)|\s+|[,:]+\s*|$)", text) if text else []


def _wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width`, wrapped between its pieces if possible."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        *full, rest = chop_cells(piece, width) if cell_len(piece.rstrip()) > width else [piece]
        lines[-1:] = [*(lines[-1] + one for one in full), rest] if full else [lines[-1] + rest]
    return "\n".join(line.rstrip() for line in lines)


def _taken(widths: Sequence[int] | Iterator[int]) -> int:
    """The characters that columns of these widths take on a terminal."""
    return sum(width + FRAME for width in widths)


def _within(widths: list[int], room: int) -> list[int]:
    """The widths after the widest ones are reduced until all take at most `room`, none of them below `NARROWEST`."""
    found = list(widths)
    while found and _taken(found) > room and max(found) > NARROWEST:
        found[found.index(max(found))] -= 1
    return found


def _grown(widths: list[int], natural: Sequence[int], room: int) -> list[int]:
    """The widths after the narrowest ones grow, each up to its `natural` width, and by at most `room` in total."""
    found = list(widths)
    for _ in range(room):
        growing = [index for index, wanted in enumerate(natural) if found[index] < wanted]
        if not growing:
            break
        found[min(growing, key=found.__getitem__)] += 1
    return found


def _parts(units: list[list[int]], columns: list[_Column], room: int) -> list[list[int]]:
    """The columns in parts that fit into `room`; columns of a unit stay together."""
    parts: list[list[int]] = []
    for unit in units:
        joined = [*parts[-1], *unit] if parts else unit
        if parts and _taken(columns[index].narrowest for index in joined) <= room:
            parts[-1] = joined
        else:
            parts.append(unit)
    return parts


def _drawn(
    table: Table, columns: list[_Column], chosen: list[int], widths: list[int], *, with_title: bool
) -> RichTable:
    shown = RichTable(title=table.title if with_title else None, title_justify="left", title_style="bold")
    for index, width in zip(chosen, widths, strict=True):
        head = Text(_wrapped(columns[index].head, width))
        shown.add_column(head, justify="left" if columns[index].wraps else "right", width=width, overflow="fold")
    for number, row in enumerate(table.rows):
        cells = (_wrapped(columns[index].texts[number], width) for index, width in zip(chosen, widths, strict=True))
        styles = ("bold green" if row[index].best else "" for index in chosen)
        shown.add_row(*(Text(cell, style) for cell, style in zip(cells, styles, strict=True)))
    return shown
