"""Finds functions of `each` or `once` with side effects; these are called again after an interruption.

Other functions are skipped if their result is known. Skipping one that also fills a list would change what follows.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from debiasbench.parameters import Parameters

PLAIN = (bool, int, float, str, bytes, type(None))
CODE = (type, type(len))  # classes and built-in functions


class Traces:
    """Whether a function leaves traces: it holds something with unobservable writes, or writes into a held tensor."""

    def __init__(self, function: Callable[..., Any], *arguments: Tensor, harmless: Any = None) -> None:
        """Inspect a function before it is called with `arguments`; `harmless` is an object that it may hold."""
        held = [value for value in _held_by(function) if value is not harmless]
        self._tensors = [*arguments, *(value for value in held if isinstance(value, Tensor))]
        self._may_be_written = not all(_is_sealed(value) for value in held)
        self._before = self._versions()

    def were_left(self) -> bool:
        """Whether the function left traces, after its call; True if that is unknown."""
        return self._may_be_written or self._versions() != self._before

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self._tensors]


def versions_of(net: nn.Module) -> list[int]:
    """The number of writes into each tensor of a network."""
    return [value._version for value in net.state_dict(keep_vars=True).values()]


def _held_by(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The objects that a function reaches by its closure, defaults and `self`; functions among them are followed."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[Any]
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif inspect.ismethod(value):
        parts = [value.__func__, value.__self__]
    elif inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        parts = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif type(value) is tuple:
        parts = list(value)
    else:
        yield value
        return
    for part in parts:
        yield from _held_by(part, seen)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_sealed(value: Any) -> bool:
    """Whether every write into a value can be observed; networks and tensors count their writes."""
    return isinstance(value, (*PLAIN, *CODE, Tensor, nn.Module, Parameters))
