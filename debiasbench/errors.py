"""User-fixable errors. They are printed as one message, without a traceback."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path


class BenchmarkError(ValueError):
    """A mistake in what was asked or given: says what is wrong, what was given, what is allowed, what to do."""


class DivergedError(RuntimeError):
    """A training produced values that are not finite; the cell is recorded as failed and the grid goes on."""


@contextlib.contextmanager
def raised_by(whose: str) -> Iterator[None]:
    """What the code of a plug-in raises while a grid is planned, as one error that says whose it is and where.

    Raises:
        BenchmarkError: as the plug-in raised it, or made of what else it raised.
    """
    try:
        yield
    except BenchmarkError:
        raise
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        what = "".join(traceback.format_exception_only(error)).strip()
        raise BenchmarkError(f"{whose}: {what} ({Path(at.filename).name}, line {at.lineno})") from error
