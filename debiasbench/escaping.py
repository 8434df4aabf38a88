"""Text of others (titles, class names, messages) written so that nothing in it is taken for markup: a rule a format.

Terminals and figures have `printable`, Markdown, LaTeX and CSV a function each. File names have `files.file_name`, and
`report.html` is escaped by Jinja.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from typing import Any

_TURNING = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # the direction of writing


def printable(text: str) -> str:
    r"""Text whose control characters stand as their codes, `\x1b`: it moves no cursor and turns no line round.

    Lines stay lines, and a tab is a space.
    """
    return "".join(one if _is_harmless(one) else one.encode("unicode_escape").decode() for one in _spaced(text, "\n"))


def one_line(text: str) -> str:
    """As `printable`, with spaces for what begins a new line."""
    return printable(_spaced(text, ""))


def never_failing(stream: Any) -> None:
    """Let a stream of text write the code of a character that its encoding lacks, where it would raise an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    elif isinstance(stream, codecs.StreamWriter):  # what older scripts put in place of sys.stdout
        stream.errors = "backslashreplace"


def _is_harmless(one: str) -> bool:
    return one == "\n" or (unicodedata.category(one) not in ("Cc", "Cs") and one not in _TURNING)


def _spaced(text: str, kept: str) -> str:
    """Spaces for what is white but none, or not one of those to be kept."""
    return re.sub(rf"[^\S {kept}]+", " ", text)


# ---- Markdown -------------------------------------------------------------------------------------------------------

# Columns, emphasis, code, links, formulas, tags and entities; a single ~, an inner _ and "< .05" are harmless
_MARKDOWN = re.compile(r"[\\|*`\[\]$]|~(?=~)|(?<=~)~|\b_|_\b|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_BLOCK = re.compile(r"(\s*)(?:([-+=>#])|(\d+)([.)]))")  # what makes a line a list, a heading, a quotation


def markdown(text: str) -> str:
    """Text within a line of Markdown, such as the place of a table."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown_line(text: str) -> str:
    """Text that is a line of Markdown of its own."""
    text = _BLOCK.sub(r"\1\3\\\2\4", markdown(text), count=1) if _BLOCK.match(text) else markdown(text)
    return text.lstrip()  # indented, it would be code


# ---- LaTeX ----------------------------------------------------------------------------------------------------------

_LATEX = {character: "\\" + character for character in "&%_#${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"$\sim$", "±": r"$\pm$", "†": r"$\dagger$", "§": r"\S{}",
    "‡": r"$\ddagger$", "<": "$<$", ">": "$>$", "|": "$|$", "≠": r"$\neq$", "×": r"$\times$", "α": r"$\alpha$",
    "ρ": r"$\rho$", "λ": r"$\lambda$", "≤": r"$\leq$", "≥": r"$\geq$", "[": "{[}", "]": "{]}", "…": r"\ldots{}",
}  # fmt: skip
_LIGATURES = re.compile(r"([-,'`])(?=\1)|[?!](?=`)")  # which are one other sign: --, '', ?`
# what pdflatex knows: the letters of European languages but for a few, and some signs; some in the encoding T1 alone
_LATIN = {chr(code) for code in range(0x180)} - set("ĦħĸĿŀŉŦŧſ") | set("–—‘’“”•€")
_T1 = set("«»ÐÞðþĄąĐđĘęĮįŊŋŲų")


def latex(text: str) -> str:
    """Text within a paragraph of LaTeX; characters of other writing systems stay (`beyond_pdflatex`)."""
    return _LIGATURES.sub(r"\g<0>{}", "".join(_LATEX.get(one, one) for one in one_line(text)))


def latex_label(text: str) -> str:
    r"""Text as a `\label`: letters and digits of ASCII and points, and a hyphen for whatever is between them."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "table"


def beyond_pdflatex(text: str) -> str:
    """The characters of a text in LaTeX that pdflatex does not know, each once, in order."""
    return "".join(sorted(set(text) - _LATIN))


def only_in_t1(text: str) -> str:
    """The characters that pdflatex knows in the encoding T1 alone, each once, in order."""
    return "".join(sorted(set(text) & _T1))


# ---- CSV ------------------------------------------------------------------------------------------------------------


def csv_field(value: object) -> object:
    """A value of a CSV: text on one line, and behind an apostrophe where a spreadsheet would compute it."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    begins = unicodedata.normalize("NFKC", text.lstrip()[:1])  # some take signs of full width as well
    return f"'{text}" if begins in ("=", "+", "-", "@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
