"""Escape text from elsewhere (titles, class names, messages), so that nothing in it is read as markup.

Each format has its own function: `printable` for terminals and figures, and one each for Markdown, LaTeX and CSV.
`files.file_name` is for file names, and Jinja escapes `report.html`.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from typing import Any

_TURNING = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they set the direction


def printable(text: str) -> str:
    r"""Text with control characters replaced by codes like `\x1b`: it cannot move the cursor or reverse a line.

    Line breaks are kept, and a tab becomes a space.
    """
    return "".join(one if _is_harmless(one) else one.encode("unicode_escape").decode() for one in _spaced(text, "\n"))


def one_line(text: str) -> str:
    """Like `printable`, with line breaks replaced by spaces."""
    return printable(_spaced(text, ""))


def never_failing(stream: Any) -> None:
    """Make a text stream write the code of a character that its encoding lacks, where it would raise an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    elif isinstance(stream, codecs.StreamWriter):  # older scripts replace sys.stdout by one
        stream.errors = "backslashreplace"


def _is_harmless(one: str) -> bool:
    return one == "\n" or (unicodedata.category(one) not in ("Cc", "Cs") and one not in _TURNING)


def _spaced(text: str, kept: str) -> str:
    """Replace each run of white space, other than spaces and the characters in `kept`, by one space."""
    return re.sub(rf"[^\S {kept}]+", " ", text)


# ---- Markdown -------------------------------------------------------------------------------------------------------

# Columns, emphasis, code, links, formulas, tags and entities; a single ~, an inner _ and "< .05" are harmless
_MARKDOWN = re.compile(r"[\\|*`\[\]$]|~(?=~)|(?<=~)~|\b_|_\b|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_BLOCK = re.compile(r"(\s*)(?:([-+=>#])|(\d+)([.)]))")  # starts of a list, a heading or a quotation


def markdown(text: str) -> str:
    """Text within a line of Markdown, such as the cell of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown_line(text: str) -> str:
    """Text that is a whole line of Markdown."""
    text = _BLOCK.sub(r"\1\3\\\2\4", markdown(text), count=1) if _BLOCK.match(text) else markdown(text)
    return text.lstrip()  # indented, it would be code


# ---- LaTeX ----------------------------------------------------------------------------------------------------------

_LATEX = {character: "\\" + character for character in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"$\sim$", "±": r"$\pm$", "†": r"$\dagger$", "§": r"\S{}",
    "‡": r"$\ddagger$", "<": "$<$", ">": "$>$", "|": "$|$", "≠": r"$\neq$", "×": r"$\times$", "α": r"$\alpha$",
    "ρ": r"$\rho$", "λ": r"$\lambda$", "≤": r"$\leq$", "≥": r"$\geq$", "[": "{[}", "]": "{]}", "…": r"\ldots{}",
}  # fmt: skip
_LIGATURES = re.compile(r"([-,'`])(?=\1)|[?!](?=`)")  # LaTeX joins these into another sign: --, '', ?`
# characters that pdflatex knows: the letters of European languages except a few, and some signs; some only in T1
_LATIN = {chr(code) for code in range(0x180)} - set("ĦħĸĿŀŉŦŧſ") | set("–—‘’“”•€")
_T1 = set("«»ÐÞðþĄąĐđĘęĮįŊŋŲų")


def latex(text: str) -> str:
    """Text within a paragraph of LaTeX; characters of other writing systems are kept (`beyond_pdflatex`)."""
    return _LIGATURES.sub(r"\g<0>{}", "".join(_LATEX.get(one, one) for one in one_line(text)))


def latex_label(text: str) -> str:
    r"""Text as a `\label`: ASCII letters, digits and points are kept, and anything between them becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "table"


def beyond_pdflatex(text: str) -> str:
    """The characters of a LaTeX text that pdflatex does not know, each once, in order."""
    return "".join(sorted(set(text) - _LATIN))


def only_in_t1(text: str) -> str:
    """The characters of a text that pdflatex knows only in the encoding T1, each once, in order."""
    return "".join(sorted(set(text) & _T1))


# ---- CSV ------------------------------------------------------------------------------------------------------------


def csv_field(value: object) -> object:
    """A value of a CSV file: text on one line, after an apostrophe if a spreadsheet would read it as a formula."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    begins = unicodedata.normalize("NFKC", text.lstrip()[:1])  # some spreadsheets accept full-width signs as well
    return f"'{text}" if begins in ("=", "+", "-", "@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
