"""Tables: values and their texts, written as Markdown, LaTeX and CSV."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from debiasbench import escaping
from debiasbench.report.phrases import Displays, Phrase, displayed
from debiasbench.report.results import InParts

ROWS_AT_ONCE = 10_000
_TO_QUOTE = re.compile('[",\r\n]')
MARKED = "†"  # not the published data
TIE = "~"  # statistically indistinguishable from the best
ORACLE, KNOWS = "§", "‡"
SIGNS = {
    MARKED: "not the published data",
    KNOWS: "trains with bias labels: an oracle baseline, not a competitor",
    ORACLE: "selected with bias labels or on the test split",
}
# Columns with titles -> kind of title
_TITLED = {"method": "method", "best": "method", "dataset": "dataset"}


@dataclass(frozen=True)
class Entry:
    """One entry of a table.

    Attributes:
        value: the number (accuracies in [0, 1]; in tables of the paper in its unit) or the words; None if empty.
        text: the value as shown, without marks.
        std: sample standard deviation in the unit of the value, in a column with a spread; None for a single run.
        best: whether it is the best of its column.
        tied: whether it was tested and does not differ significantly from the best.
        mark: a sign after the text, explained in a note below the table.
    """

    value: float | str | None
    text: str
    std: float | None = None
    best: bool = False
    tied: bool = False
    mark: str = ""

    @property
    def shown(self) -> str:
        """The text with its marks."""
        return f"{self.text}{self.mark}" + (f" {TIE}" if self.tied else "")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: its name in a CSV, unique within the table.
        heading: its name as shown.
        numeric: whether its values are numbers.
        spread: whether its entries have a standard deviation; a CSV has a separate column for it.
        counts_runs: whether it is the n of the column before it; LaTeX leaves it out if every n is equal.
        group: heading that it shares with its neighbours in LaTeX; `part`: its own heading below that.
    """

    key: str
    heading: str
    numeric: bool = True
    spread: bool = False
    counts_runs: bool = False
    group: str = ""
    part: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with one entry per column; the first entry names the row. Notes follow below the table.

    `key` identifies a table ("comparison", "tests"), and `title` is shown. The first `in_caption` notes say what the
    table shows; in LaTeX they are part of the caption.
    """

    key: str
    title: str
    columns: list[Column]
    rows: list[list[Entry]]
    notes: list[str]
    in_caption: int = 0


NOTHING = Entry(None, "-")
METHOD, DATASET = (Column(key, key, numeric=False) for key in ("method", "dataset"))


def words(*texts: str) -> list[Entry]:
    """One entry per text."""
    return [Entry(text, text) for text in texts]


def count(n: int) -> Entry:
    """`1,234`."""
    return Entry(n, f"{n:,}")


def number(value: float, write: Callable[[float], str]) -> Entry:
    """A number as `write` writes it; a dash for nan."""
    return NOTHING if math.isnan(value) else Entry(float(value), write(value))


def percent(mean: float, std: float, n: float) -> Entry:
    """`96.88 ± 0.28` from fractions; without a spread for one run; a dash for nan."""
    if math.isnan(mean):
        return NOTHING
    text = f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if n > 1 else "")
    return Entry(float(mean), text, std=float(std) if n > 1 else None)


def p_value(value: float) -> str:
    """`.0123`, `< .0001`, or a dash for nan."""
    if math.isnan(value):
        return "-"
    return "< .0001" if value < 0.0001 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [
        f"### {escaping.markdown(table.title)}",
        "",
        "| " + " | ".join(escaping.markdown(column.heading) for column in table.columns) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    for row in table.rows:
        texts = [(escaping.markdown(entry.shown), entry.best) for entry in row]
        lines.append("| " + " | ".join(f"**{text}**" if best else text for text, best in texts) + " |")
    return "\n".join([*lines, "", *(f"{escaping.markdown_line(note)}\n" for note in table.notes)]).rstrip()


def _tex_entry(entry: Entry) -> str:
    text = escaping.latex(entry.shown)
    return rf"\textbf{{{text}}}" if entry.best else text


def with_display_titles(table: Table, displays: Displays) -> Table:
    """The table as in a paper: with display titles, and without the counts of runs if they are all equal."""
    counts = [index for index, column in enumerate(table.columns) if column.counts_runs]
    alike = len({row[index].text for row in table.rows for index in counts}) == 1
    kept = [index for index in range(len(table.columns)) if not (alike and index in counts)]
    columns = [table.columns[index] for index in kept]
    titles = [displays.get(_TITLED.get(column.key, ""), {}) for column in columns]
    return replace(
        table,
        title=displayed(table.title, displays),
        columns=[
            replace(one, heading=displayed(one.heading, displays), group=displayed(one.group, displays),
                    part=displayed(one.part, displays))
            for one in columns
        ],
        rows=[
            [replace(row[index], text=_named(row[index].text, names, displays))
             for index, names in zip(kept, titles, strict=True)]
            for row in table.rows
        ],
        notes=[displayed(note, displays) for note in table.notes],
    )  # fmt: skip


def with_marks(displays: Displays, *, knowing: Collection[str], unofficial: Collection[str]) -> Displays:
    """Display titles with the marks that tables have, for figures.

    Args:
        displays: the titles.
        knowing: titles of the methods that train with bias labels.
        unofficial: titles of the datasets that are not the published data.
    """
    marks = {"method": (knowing, KNOWS), "dataset": (unofficial, MARKED)}
    marked = {
        kind: {title: display + mark * (title in some) for title, display in displays[kind].items()}
        for kind, (some, mark) in marks.items()
    }
    return {**displays, **marked}


def _named(text: str, names: Mapping[str, str], displays: Displays) -> str:
    return displayed(text, displays) if isinstance(text, Phrase) else names.get(text, text)


def latex_file(tables: list[Table]) -> str:
    r"""All tables as LaTeX for `\input`; comments name the packages and fonts that they need."""
    labels = _labels(tables)
    body = "\n\n".join(latex(table, label) for table, label in zip(tables, labels, strict=True)) + "\n"
    needs = ["% needs \\usepackage{booktabs, graphicx}\n"]
    if strange := escaping.beyond_pdflatex(body):
        needs.append(f"% has {strange}: needs lualatex or xelatex, and a font that has them\n")
    if letters := escaping.only_in_t1(body):
        needs.append(f"% has {letters}: needs, with pdflatex, \\usepackage[T1]{{fontenc}}\n")
    return "".join(needs) + body


def _labels(tables: list[Table]) -> list[str]:
    """The label of each table; all labels differ."""
    labels: list[str] = []
    for table in tables:
        label = escaping.latex_label(table.key)
        n = sum(one == label or one.startswith(f"{label}--") for one in labels)
        labels.append(f"{label}--{n + 1}" if n else label)  # the label of a key never has two hyphens
    return labels


def latex_document(tables: list[Table], name: str) -> str:
    """A document that shows the tables of the file `name`; pdflatex prints ? for characters that it does not know."""
    body = "".join(map(latex, tables))
    strange, letters = escaping.beyond_pdflatex(body), escaping.only_in_t1(body)
    lines = [
        f"% all tables of {name}.tex, to look at: {'lualatex' if strange else 'pdflatex'} document.tex",
        r"\documentclass{article}", r"\usepackage[landscape, margin=2cm]{geometry}", r"\usepackage{booktabs, graphicx}",
    ]  # fmt: skip
    if strange or letters:
        lines += [
            r"\ifdefined\Umathchar % lualatex, xelatex", r"  \usepackage{fontspec}",
            *([r"  \IfFontExistsTF{Noto Serif CJK SC}{\setmainfont{Noto Serif CJK SC}}{} % or another that has them"]
              if strange else []),
            r"\else", r"  \usepackage[T1]{fontenc}",
            *(rf"  \DeclareUnicodeCharacter{{{ord(one):04X}}}{{?}}" for one in strange), r"\fi",
        ]  # fmt: skip
    return "\n".join([*lines, r"\begin{document}", rf"\input{{{name}}}", r"\end{document}", ""])


def latex(table: Table, label: str | None = None) -> str:
    """A table as LaTeX, at most as wide as the line; needs booktabs and graphicx.

    Args:
        table: the caption has its title and its first `in_caption` notes; other notes are below the table.
        label: the LaTeX label, without `tab:`; default: made from the table's key.
    """
    rows = [" & ".join(map(_tex_entry, row)) for row in table.rows]
    below = table.notes[table.in_caption :]
    notes = rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {escaping.latex(' '.join(below))}}}"
    return "\n".join([
        r"\begin{table}[htbp]", r"  \centering", f"  {_caption(table)}",
        rf"  \label{{tab:{label or escaping.latex_label(table.key)}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"    \toprule",
        *(f"    {line}" for line in _headings(table.columns)), r"    \midrule",
        *(f"    {row} \\\\" for row in rows), r"    \bottomrule", r"  \end{tabular}}",
        *([notes] if below else []), r"\end{table}",
    ])  # fmt: skip


def _caption(table: Table) -> str:
    r"""`\caption`, with a short version for the list of tables if it says more than the title."""
    title, told = escaping.latex(table.title), table.notes[: table.in_caption]
    if not told:
        return rf"\caption{{{title}}}"
    shown = "".join([*(column.heading for column in table.columns), *(one.shown for row in table.rows for one in row)])
    signs = [f"{sign}: {meaning}." for sign, meaning in SIGNS.items() if sign in shown]
    return rf"\caption[{title}]{{{title}. {escaping.latex(' '.join([*told, *signs]))}}}"


def _headings(columns: list[Column]) -> list[str]:
    """The line of headings; two lines and a rule if neighbours share a heading."""
    groups = [list(some) for _, some in itertools.groupby(columns, key=lambda column: column.group)]
    if all(len(some) == 1 or not some[0].group for some in groups):
        return [" & ".join(escaping.latex(column.heading) for column in columns) + r" \\"]
    above, rules, below, first = [], [], [], 1
    for some in groups:
        if some[0].group:
            above.append(rf"\multicolumn{{{len(some)}}}{{c}}{{{escaping.latex(some[0].group)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + len(some) - 1}}}")
        else:
            above += [""] * len(some)
        below += [escaping.latex(column.part if column.group else column.heading) for column in some]
        first += len(some)
    return [" & ".join(above) + r" \\", " ".join(rules), " & ".join(below) + r" \\"]


def csv(table: Table) -> str:
    """The values of a table as CSV: numbers as computed, and an empty field without a value.

    A column with a spread becomes two: mean and standard deviation. Marks and notes are left out.
    """
    names = [[f"{column.key} mean", f"{column.key} std"] if column.spread else [column.key] for column in table.columns]
    lines = [_line(itertools.chain.from_iterable(names))]
    for row in table.rows:
        pairs = zip(table.columns, row, strict=True)
        parts = [[entry.value, entry.std] if column.spread else [entry.value] for column, entry in pairs]
        lines.append(_line(itertools.chain.from_iterable(parts)))
    return "".join(lines)


def frame_csv(frame: pd.DataFrame) -> Iterator[str]:
    """A data frame as CSV, in parts, with the rules of `csv` for text and names of columns."""
    yield _line(frame)
    for first in range(0, len(frame), ROWS_AT_ONCE):
        yield "".join(f"{line}\n" for line in _lines(frame.iloc[first : first + ROWS_AT_ONCE]))


def results_csv(table: InParts) -> Iterator[str]:
    """The long table of results as `frame_csv` writes it, but the settings of a record become text only once."""
    yield _line(table.columns)
    for first in range(0, len(table.rows), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        places, of_rows = np.unique(table.of_rows[rows], return_inverse=True)
        parts: list[Iterable[str]] = []
        for is_of_record, names in itertools.groupby(table.columns, key=table.cells.columns.__contains__):
            if is_of_record:
                parts.append(np.array(_lines(table.cells[list(names)].iloc[places]), dtype=object)[of_rows])
            else:
                parts.append(_lines(table.rows[list(names)].iloc[rows]))
        yield "".join(f"{line}\n" for line in map(",".join, zip(*parts, strict=True)))


def _line(values: Iterable[object]) -> str:
    return ",".join(map(_written, values)) + "\n"


def _lines(frame: pd.DataFrame) -> list[str]:
    columns = [_column_texts(frame.iloc[:, index]) for index in range(frame.shape[1])]
    return list(map(",".join, zip(*columns, strict=True)))


def _column_texts(column: pd.Series) -> list[str]:
    """The values of a column as text. Each different value is written once, because in a grid most values repeat."""
    if column.dtype == object:  # mixed types: 1 and True are equal, but written differently
        return list(map(_written, column))
    if column.dtype == float:  # by their bits, because 0.0 and -0.0 are equal
        codes, bits = pd.factorize(column.to_numpy().view(np.int64))
        values = bits.view(float)
    else:
        codes, values = pd.factorize(column)
    texts = [*map(_written, values.tolist()), ""]  # the last one, at -1, is for missing values
    return list(np.array(texts, dtype=object)[codes])


def _written(value: object) -> str:
    """A value as a field of a CSV, in quotes if necessary; "" for None and nan."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(escaping.csv_field(value))
    return '"' + text.replace('"', '""') + '"' if _TO_QUOTE.search(text) else text
