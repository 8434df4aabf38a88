"""Typed values from the plain ones of JSON, checked once, and back again."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", type(None): "null"}


def from_plain(kind: Any, value: Any, where: str = "the content") -> Any:
    """A plain value as the type `kind`.

    Args:
        kind: str, bool, int, float, None, a union of these, `tuple[X, ...]`, `dict[str, X]`, a dataclass of such
            fields, or Any. A dataclass may lack keys that have a default; keys that it does not know are left out.
        value: what `json.loads` returns.
        where: names the value in messages.

    Raises:
        ValueError: the value is not of that type; the message says which part, what was found, and what is allowed.
    """
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _one_of(typing.get_args(kind), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _not("a list", value, where)
        (part, _) = typing.get_args(kind)
        return tuple(from_plain(part, one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is dict:
        (_, part) = typing.get_args(kind)
        return {key: from_plain(part, one, f"{where}.{key}") for key, one in _mapping(value, where).items()}
    if dataclasses.is_dataclass(kind):
        return _of_dataclass(kind, _mapping(value, where), where)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise _not(_WORDS[kind], value, where)
    return value


def to_plain(value: Any) -> Any:
    """What `from_plain` reads: dataclasses as dictionaries without fields that are None, tuples as lists.

    A number that is not finite has no place in JSON: as a value of a dictionary its key is left out.
    """
    if dataclasses.is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in _fields(type(value))}
        value = {name: one for name, one in value.items() if one is not None}
    if isinstance(value, Mapping):
        return {name: to_plain(one) for name, one in value.items() if not _is_odd(one)}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    return value


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _not("an object", value, where)
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return from_plain(kind, value, where)
        except ValueError as problem:
            problems.append(problem)
    raise problems[0]  # of `X | None`, what X should have been


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that are written: all but those that say where a value came from."""
    return [item for item in dataclasses.fields(kind) if item.metadata.get("written", True)]


def _of_dataclass(kind: Any, values: dict[str, Any], where: str) -> Any:
    found = {}
    for item in _fields(kind):
        if item.name in values:
            found[item.name] = from_plain(_hints(kind)[item.name], values[item.name], f"{where}.{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{item.name} is missing")
    return kind(**found)


def _not(what: str, value: Any, where: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{where} must be {what}, and is {shown if len(shown) <= 40 else shown[:40] + '...'}")
