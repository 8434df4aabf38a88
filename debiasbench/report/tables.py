"""Tables as text: what the report shows, on a terminal, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import pandas as pd

MARKED = "†"  # data that are not the published ones


@dataclass(frozen=True)
class Table:
    """A table as text: cells are (text, whether best). Notes follow below it."""

    title: str
    columns: list[str]
    rows: list[list[tuple[str, bool]]]
    notes: list[str]


def percent(mean: float, std: float, n: float) -> str:
    """`96.88 ± 0.28` from shares; without a spread for one run; a dash for nothing."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if n > 1 else "")


def p_value(value: float) -> str:
    """`.0123`, `< .0001`, or a dash for nan."""
    if math.isnan(value):
        return "-"
    return "< .0001" if value < 0.0001 else f"{value:.4f}".lstrip("0") if value < 1 else "1"


def number(value: float, digits: int = 1) -> str:
    """A number with so many digits, or a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _escaped(text: str) -> str:
    """Text without what Markdown would take for a column, emphasis or code (single ~ and inner _ are harmless)."""
    return re.sub(r"([\\|*`]|~(?=~)|(?<=~)~|\b_|_\b)", r"\\\1", text)


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [
        f"### {table.title}",
        "",
        "| " + " | ".join(map(_escaped, table.columns)) + " |",
        "|" + " --- |" * len(table.columns),
    ]
    for row in table.rows:
        texts = [(_escaped(text), best) for text, best in row]
        lines.append("| " + " | ".join(f"**{text}**" if best else text for text, best in texts) + " |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in table.notes)]).rstrip()


_LATEX = {character: "\\" + character for character in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"$\sim$", "±": r"$\pm$", "†": r"$\dagger$", "§": r"\S{}",
    "‡": r"$\ddagger$", "<": "$<$", ">": "$>$", "|": "$|$", "≠": r"$\neq$", "×": r"$\times$", "α": r"$\alpha$",
    "ρ": r"$\rho$", "λ": r"$\lambda$", "≤": r"$\leq$", "≥": r"$\geq$", "[": "{[}", "]": "{]}",
}  # fmt: skip
_PLAIN = 0x180  # up to here LaTeX has the letters of European languages


def _tex(text: str) -> str:
    return "".join(_LATEX.get(one, one if ord(one) < _PLAIN else "?") for one in text)


LATEX_NEEDS = "% needs \\usepackage{booktabs, graphicx}\n"
LATEX_DOCUMENT = r"""% all tables of comparison.tex, to look at: pdflatex document.tex
\documentclass{article}
\usepackage[landscape, margin=2cm]{geometry}
\usepackage{booktabs, graphicx}
\begin{document}
\input{comparison}
\end{document}
"""


def latex(table: Table) -> str:
    """A table as LaTeX, at most as wide as the line; needs booktabs and graphicx."""
    rows = [" & ".join(rf"\textbf{{{_tex(text)}}}" if best else _tex(text) for text, best in row) for row in table.rows]
    notes = rf"  \par\smallskip\parbox{{\linewidth}}{{\footnotesize {_tex(' '.join(table.notes))}}}"
    return "\n".join([
        r"\begin{table}[htbp]", r"  \centering", rf"  \caption{{{_tex(table.title)}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"    \toprule",
        "    " + " & ".join(map(_tex, table.columns)) + r" \\", r"    \midrule",
        *(f"    {row} \\\\" for row in rows), r"    \bottomrule", r"  \end{tabular}}",
        *([notes] if table.notes else []), r"\end{table}",
    ])  # fmt: skip


def csv(table: Table) -> str:
    """A table as CSV; notes are left to the other formats."""
    rows = [[text for text, _ in row] for row in table.rows]
    return str(pd.DataFrame(rows, columns=table.columns).to_csv(index=False))
