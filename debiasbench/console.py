"""Output on a terminal or in a notebook: text is printed as it is, never as markup, and no character is an error."""

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

EACH = 0.5  # seconds between updates in a notebook
_HTML = '<pre style="white-space: pre; overflow-x: auto; line-height: normal; font-family: monospace">{code}</pre>'


class PlainConsole(Console):
    """A console without markup, which prints a code for each character that the terminal cannot show.

    Characters are replaced by codes before the layout, so that columns stay aligned.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a str; every str passes through here: printed, in a table, as a title."""
        return super().render_str(self.shown(text), **(options | {"markup": False, "emoji": False}))

    def shown(self, text: str) -> str:
        """Text as this terminal can show it."""
        return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)


def console(*, stderr: bool = False) -> PlainConsole:
    """A console on standard output, or on standard error for progress and messages; 170 wide if output is a file."""
    never_failing(sys.stderr if stderr else sys.stdout)
    found = PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal and not stderr:
        found.width = 170
    return found


def in_a_notebook() -> bool:
    """Whether output goes to a notebook (Jupyter, Colab, ...)."""
    return PlainConsole().is_jupyter


def live(shown: RenderableType, on: PlainConsole) -> Live | NotebookLive | None:
    """A live display on a terminal or in a notebook; None where there can be none, as in a file."""
    if on.is_jupyter:
        return NotebookLive(shown, on)
    return Live(shown, console=on, refresh_per_second=4) if on.is_terminal else None


class NotebookLive:
    """A live display in a notebook: one output, which each update replaces.

    The live display of rich uses widgets in a notebook. Many notebooks lack them, and they are gone when the notebook
    is opened again.
    """

    def __init__(self, shown: RenderableType, on: PlainConsole) -> None:
        self.shown, self.width = shown, on.width
        self._ended = threading.Event()
        # with this context, output of the thread belongs to the notebook cell that started it
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._go_on,), daemon=True)
        self._output: Any = None
        self._before: dict[str, str] = {}  # the output shown last

    def start(self) -> None:
        """Show it, and update it until `stop`."""
        from IPython.display import display

        self._before = self._now()
        self._output = display(self._before, raw=True, display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Update it once more and stop."""
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
        """The present state as text and as HTML."""
        page = PlainConsole(
            file=io.StringIO(), width=self.width, record=True, force_jupyter=False, force_terminal=True,
            color_system="truecolor", highlight=False, legacy_windows=False,
        )  # fmt: skip
        page.print(self.shown)
        text = page.export_text(clear=False)
        return {"text/plain": text, "text/html": page.export_html(code_format=_HTML, inline_styles=True)}
