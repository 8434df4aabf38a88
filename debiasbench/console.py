"""What people see on a terminal: text as it is, never markup, and never an error for want of a character."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from debiasbench.escaping import never_failing, printable


class PlainConsole(Console):
    """A console that takes nothing in a text for markup, and shows the codes of characters that the terminal lacks.

    The codes are there before lines are laid out, so that columns stay straight.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """What every str goes through: printed, in a table, as a title."""
        return super().render_str(self.shown(text), **(options | {"markup": False, "emoji": False}))

    def shown(self, text: str) -> str:
        """Text as this terminal can show it."""
        return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


def console(*, stderr: bool = False) -> PlainConsole:
    """A console on the standard output, or for progress and messages on the standard error; 170 wide in a file."""
    never_failing(sys.stderr if stderr else sys.stdout)
    found = PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal and not stderr:
        found.width = 170
    return found
