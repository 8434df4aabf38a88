"""What people see on a terminal or in a notebook: text as it is, never markup, and never an error for a character."""

from __future__ import annotations

import contextvars
import io
import sys
import threading
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from debiasbench.escaping import never_failing, printable

EACH = 0.5  # seconds between two looks at what changes, in a notebook
_HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal; font-family: monospace">{code}</pre>'


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


def in_a_notebook() -> bool:
    """Whether what is shown goes to a notebook (Jupyter, Colab, ...), which draws it."""
    return PlainConsole().is_jupyter


def live(shown: RenderableType, on: PlainConsole) -> Live | NotebookLive | None:
    """What shows something that changes, on a terminal or in a notebook; None where it cannot be, as in a file."""
    if on.is_jupyter:
        return NotebookLive(shown, on)
    return Live(shown, console=on, refresh_per_second=4) if on.is_terminal else None


class NotebookLive:
    """Something that changes in an output of its own, put in place of itself.

    rich's live display takes widgets in a notebook, which many lack, and which are gone when it is opened again.
    """

    def __init__(self, shown: RenderableType, on: PlainConsole) -> None:
        self.shown, self.width = shown, on.width
        self._ended = threading.Event()
        # what a thread shows belongs to the cell that began it
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._go_on,), daemon=True)
        self._output: Any = None
        self._before: dict[str, str] = {}  # what was shown last

    def start(self) -> None:
        """Show it, and look again until `stop`."""
        from IPython.display import display

        self._before = self._now()
        self._output = display(self._before, raw=True, display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave it as it is now."""
        self._ended.set()
        self._thread.join()
        self._output.update(self._now(), raw=True)

    def _go_on(self) -> None:
        while not self._ended.wait(EACH):
            now = self._now()
            if now != self._before:
                self._output.update(now, raw=True)
            self._before = now

    def _now(self) -> dict[str, str]:
        """As text and as HTML."""
        page = PlainConsole(
            file=io.StringIO(), width=self.width, record=True, force_jupyter=False, force_terminal=True,
            color_system="truecolor", highlight=False, legacy_windows=False,
        )  # fmt: skip
        page.print(self.shown)
        text = page.export_text(clear=False)
        return {"text/plain": text, "text/html": page.export_html(code_format=_HTML, inline_styles=True)}
