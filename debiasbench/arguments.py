"""Check the arguments of the Python interface against the types that its functions declare.

The command line checks its arguments while it parses them. This module does the same for calls from Python, so that a
mistake gives one sentence and not a traceback from deep inside.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from debiasbench.errors import BenchmarkError
from debiasbench.grid import MOST_CELLS
from debiasbench.parameters import Allowed
from debiasbench.plain import shown

P = ParamSpec("P")
R = TypeVar("R")


def checked(**limits: Allowed) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of the interface, so that it refuses arguments of types that it does not declare.

    Args:
        limits: argument -> which values of its type are allowed.

    Raises:
        BenchmarkError: (the function) some arguments are invalid; it names all, what was given and what is allowed.
    """

    def with_check(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        kinds = {name: str(one.annotation) for name, one in signature.parameters.items()}

        @functools.wraps(function)
        def door(*given: P.args, **options: P.kwargs) -> R:
            try:
                bound = signature.bind(*given, **options)
            except TypeError as error:  # as Python words it, with the function's name
                raise TypeError(f"{function.__name__}() {error}") from None
            problems = []
            for name, value in bound.arguments.items():
                try:
                    bound.arguments[name] = read = _read(kinds[name], value)
                    limit = limits.get(name) if read is not None else None
                    words = limit.text if limit is not None and not limit.holds(read) else None
                except (TypeError, ValueError):
                    words = _words(kinds[name])
                if words is not None:
                    problems.append(f"{name} must be {words}. Got {shown(value)} ({type(value).__name__}).")
            if problems:
                raise BenchmarkError(f"{function.__name__}: {' '.join(problems)}")
            return function(*bound.args, **bound.kwargs)

        return door

    return with_check


def _read(kind: str, value: Any) -> Any:
    """A value as one of the types that an annotation names.

    Raises:
        TypeError, ValueError: it has none of these types.
    """
    kinds = kind.split(" | ")
    if value is None and "None" in kinds:
        return None
    if not {*kinds} <= {*_READ, "None"}:
        return value  # the function checks it itself
    for _, read in (_READ[one] for one in kinds if one != "None"):
        with contextlib.suppress(TypeError, ValueError):
            return read(value)
    raise TypeError


def _words(kind: str) -> str:
    """The types of an annotation, in words for people."""
    told = [_READ[one][0] for one in kind.split(" | ") if one in _READ]
    return " or ".join(dict.fromkeys(told)) + (" (or None)" if "None" in kind.split(" | ") else "")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _path(value: Any) -> str | Path:
    if isinstance(value, str):
        return value
    return Path(os.fsdecode(os.fspath(value)))


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # numpy's integers too


def _number(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:  # a whole number with hundreds of digits
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _several(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def values(given: Any) -> list[Any]:
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise TypeError
        return [read(one) for one in islice(given, MOST_CELLS + 1)]  # a huge range would fill the memory

    return values


def _texts(given: Any) -> list[str]:
    """Several texts, or a single one, which Python would read as a sequence of letters."""
    return [given] if isinstance(given, str) else _several(_text)(given)


def _pair(given: Any) -> tuple[int, int]:
    first, second = _several(_whole)(given)
    return first, second


# annotation -> its type in words, and the function that reads it
_READ: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "str": ("text", _text),
    "Path": ("a path", _path),
    "bool": ("True or False", _truth),
    "int": ("a whole number", _whole),
    "float": ("a finite number", _number),
    "Sequence[int]": ("a list of whole numbers", _several(_whole)),
    "Sequence[str]": ("text, or a list of texts", _texts),
    "tuple[int, int]": ("two whole numbers", _pair),
}
