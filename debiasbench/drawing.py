"""matplotlib as it comes: no display, settings file, style or backend of the environment changes or ends anything."""

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
    """The module `matplotlib`, also where a backend that is not there, or a settings file, would end its import.

    Only then is the environment left aside: otherwise a notebook's own figures appear as they would without us.

    Raises:
        BenchmarkError: it cannot be imported at all.
    """
    if "matplotlib" not in sys.modules:
        try:
            return importlib.import_module("matplotlib")
        except Exception:  # what a half of it imported goes, so that no part knows another's
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                if str(getattr(sys.modules[name], "__file__", "")).endswith(".py"):
                    del sys.modules[name]
        given = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        os.environ["MATPLOTLIBRC"] = os.devnull  # before that of the home folder
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
    """The defaults of matplotlib while this lasts; the settings before it come back.

    Args:
        text: what will be shown. For characters that the usual font lacks another one is taken that is installed;
            where there is none a box stands, without a warning for each (see `lacking`).
    """
    matplotlib = library()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that a later version will not have
            defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
            matplotlib.rcParams.update(defaults)
        families, _ = _fonts_for("".join(sorted(set(text))))
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *families]  # which matplotlib brings along
        yield


def lacking(texts: Iterable[str]) -> str:
    """The characters of texts that no installed font has, each once."""
    return _fonts_for("".join(sorted(set().union(*texts))))[1]


@functools.cache
def _fonts_for(characters: str) -> tuple[tuple[str, ...], str]:
    """Installed fonts that have what the usual one lacks of the characters, and what none has."""
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
    """Which characters a font has; none, if it cannot be read."""
    try:
        known = fonts.get_font(path).get_charmap()
    except Exception:  # damaged, gone, of a kind that is not known
        return set()
    return {one for one in characters if ord(one) in known}
