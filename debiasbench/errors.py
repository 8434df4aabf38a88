"""User-fixable errors, which are printed as one message without a traceback."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path


class BenchmarkError(ValueError):
    """A user's mistake; the message says what is wrong, what was given, what is allowed and what to do."""


class DivergedError(RuntimeError):
    """Training produced values that are not finite; the cell is recorded as failed and the grid goes on."""


@contextlib.contextmanager
def raised_by(whose: str) -> Iterator[None]:
    """Turn any error that a plug-in raises while a grid is planned into one that names the plug-in and the line.

    Raises:
        BenchmarkError: the plug-in's own BenchmarkError, or one made from any other error.
    """
    try:
        yield
    except BenchmarkError:
        raise
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = "".join(traceback.format_exception_only(error)).strip()
        raise BenchmarkError(f"{whose}: {what} ({Path(at.filename).name}, line {at.lineno})") from error
