"""matplotlib with its defaults: no display, settings file, style or backend in the environment can affect drawing."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from debiasbench.errors import BenchmarkError

VARIABLES = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR")
_FOR_OTHERS = re.compile("CJK|Han|Hei|Gothic|Ming|Song|Unicode|Fallback|Noto|Symbol")  # names of fonts to try first


def library() -> Any:
    """Import `matplotlib`, even if a missing backend or a settings file would make its import fail.

    Only then is the environment ignored, so that a notebook's own figures look as they would without this suite.

    Raises:
        BenchmarkError: it cannot be imported at all.
    """
    if "matplotlib" not in sys.modules:
        try:
            return importlib.import_module("matplotlib")
        except Exception:  # remove what it imported so far, so that parts of two imports do not mix
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                if str(getattr(sys.modules[name], "__file__", "")).endswith(".py"):
                    del sys.modules[name]
        given = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        os.environ["MATPLOTLIBRC"] = os.devnull  # takes precedence over the file in the home folder
        try:
            return importlib.import_module("matplotlib")
        except Exception as error:
            raise BenchmarkError(
                f"matplotlib cannot be imported ({type(error).__name__}: {error}). A file matplotlibrc in "
                f"{Path.cwd()} that is damaged does so."
            ) from None
        finally:
            del os.environ["MATPLOTLIBRC"]
            os.environ.update(given)
    return sys.modules["matplotlib"]


@contextlib.contextmanager
def plain_settings(text: str = "") -> Iterator[None]:
    """Use matplotlib's default settings in this context, and restore the previous settings after it.

    Args:
        text: the text that will be shown. Characters that the usual font lacks are taken from other installed fonts; if
            no font has a character, a box is shown, without a warning for each (see `lacking`).
    """
    matplotlib = library()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about settings that a later version removes
            defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
            matplotlib.rcParams.update(defaults)
        families, _ = _fonts_for("".join(sorted(set(text))))
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *families]  # it comes with matplotlib
        yield


def lacking(texts: Iterable[str]) -> str:
    """The characters in texts that no installed font has, each once."""
    return _fonts_for("".join(sorted(set().union(*texts))))[1]


@functools.cache
def _fonts_for(characters: str) -> tuple[tuple[str, ...], str]:
    """Installed fonts with the characters that the usual font lacks, and the characters that no font has."""
    if characters.isascii():
        return (), ""
    matplotlib = library()
    fonts = importlib.import_module("matplotlib.font_manager")
    usual = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    missing = {one for one in characters if one.isprintable()} - _known_to(fonts, str(usual), characters)
    families = []

    def order(entry: Any) -> tuple[Any, ...]:
        return not _FOR_OTHERS.search(entry.name), entry.style != "normal", entry.weight != 400, entry.name, entry.fname

    for entry in sorted(fonts.fontManager.ttflist, key=order) if missing else ():
        found = missing & _known_to(fonts, entry.fname, characters)
        if found:
            families.append(entry.name)
            missing -= found
        if not missing:
            break
    return tuple(families), "".join(sorted(missing))


def _known_to(fonts: Any, path: str, characters: str) -> set[str]:
    """The characters that a font has; none if it cannot be read."""
    try:
        known = fonts.get_font(path).get_charmap()
    except Exception:  # damaged, removed, or of an unknown kind
        return set()
    return {one for one in characters if ord(one) in known}
