"""Convert plain values (as in JSON) to typed ones, checking them once, and back."""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

Read = Callable[[Any], Any]

_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number", type(None): "null"}
_NAMES = {None: "null", True: "true", False: "false"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 40
_SHORT.maxlist = _SHORT.maxdict = 3
_SHORT.maxlevel = 2


class _MisfitError(Exception):
    """A value is not of its type: `path` leads to it, the innermost part first."""

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(problem)
        self.problem, self.path = problem, list(path)


def from_plain(kind: Any, value: Any, where: str = "the content") -> Any:
    """A plain value as the type `kind`.

    Args:
        kind: str, bool, int, float, None, a union of these, `tuple[X, ...]`, `dict[str, X]`, a dataclass with such
            fields, any of these or None, or Any. For a dataclass, keys with a default may be missing, and unknown keys
            are ignored. A dataclass may refuse an inconsistent set of values by a ValueError that begins with the name
            of a field.
        value: what `json.loads` returns.
        where: names the value in messages.

    Raises:
        ValueError: the value is not of that type; the message says which part, what was found, and what is allowed.
    """
    try:
        return _reader(kind)(value)
    except _MisfitError as misfit:
        raise ValueError(f"{where}{''.join(reversed(misfit.path))}{misfit.problem}") from None


def to_plain(value: Any) -> Any:
    """The inverse of `from_plain`: dataclasses become dictionaries without the fields that are None, tuples lists.

    JSON has no numbers that are not finite: if a value in a dictionary is one, its key is left out. Text is made
    `encodable`.
    """
    if dataclasses.is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in _fields(type(value))}
        value = {name: one for name, one in value.items() if one is not None}
    if isinstance(value, Mapping):
        return {to_plain(name): to_plain(one) for name, one in value.items() if not _is_odd(one)}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    return encodable(value) if isinstance(value, str) else value


def encodable(text: str) -> str:
    r"""Text that can be written as UTF-8: lone surrogates (from bytes in file names, for example) become `\udc80`."""
    return text if _is_whole(text) else text.encode("utf-8", "backslashreplace").decode()


def shown(value: Any) -> str:
    """A value on one short line, as in JSON."""
    return _NAMES[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_whole(text: str) -> bool:
    """Whether a text has no lone surrogate, with which it could not be written anywhere."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- readers: one per type, made once, since records hold many values ----------------------------------------------


@functools.cache
def _reader(kind: Any) -> Read:
    """The function that reads a plain value as a type, or raises a `_MisfitError`."""
    if kind is Any:
        return _read_any
    if kind in _OF_SIMPLE:
        return _OF_SIMPLE[kind]
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _union_reader(typing.get_args(kind))
    if origin is tuple:
        return _list_reader(_reader(typing.get_args(kind)[0]))
    if origin is dict:
        return _mapping_reader(_reader(typing.get_args(kind)[1]))
    return _dataclass_reader(kind)


def _not(what: str, value: Any) -> _MisfitError:
    return _MisfitError(f" must be {what}, but is {shown(value)}")


def _read_text(value: Any) -> str:
    if type(value) is not str:
        raise _not("text", value)
    if not _is_whole(value):
        raise _not("text of whole characters", value)
    return value


@functools.lru_cache(4096)
def _read_name(name: Any) -> str:
    """Read a name as one shared string, since thousands of records have the same few names."""
    return sys.intern(_read_text(name))


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _not("true or false", value)
    return value


def _read_int(value: Any) -> int:
    if type(value) is not int:
        raise _not("a whole number", value)
    if not -(2**63) <= value < 2**63:
        raise _not("a whole number of 64 bits", value)
    return value


def _read_float(value: Any) -> float:
    if type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not float or not math.isfinite(value):
        raise _not("a finite number", value)
    return value


def _read_none(value: Any) -> None:
    if value is not None:
        raise _not("null", value)


_OF_SIMPLE: dict[Any, Read] = {
    str: _read_text, bool: _read_bool, int: _read_int, float: _read_float, type(None): _read_none,
}  # fmt: skip


def _read_any(value: Any) -> Any:
    """Any plain value whose numbers and text can be written again."""
    if isinstance(value, dict):
        return _mapping_reader(_read_any)(value)
    if isinstance(value, list):
        return list(_list_reader(_read_any)(value))
    if type(value) not in _OF_SIMPLE:  # TOML has dates
        raise _not("a plain value", value)
    return _OF_SIMPLE[type(value)](value)


def _list_reader(read: Read) -> Read:
    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _not("a list", value)
        found: list[Any] = []
        try:
            for one in value:
                found.append(read(one))
        except _MisfitError as misfit:
            misfit.path.append(f"[{len(found)}]")
            raise
        return tuple(found)

    return read_list


def _mapping_reader(read: Read) -> Read:
    def read_mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _not("an object", value)
        found: dict[str, Any] = {}
        for name, one in value.items():
            try:
                found[_read_name(name)] = read(one)
            except _MisfitError as misfit:
                misfit.path.append(f".{name}" if name.isprintable() and len(name) <= 60 else f"[{shown(name)}]")
                raise
        return found

    return read_mapping


def _union_reader(kinds: tuple[Any, ...]) -> Read:
    """A reader that takes the first type that fits."""
    may_be_none = type(None) in kinds
    readers = [_reader(kind) for kind in kinds if kind is not type(None)]
    words = " or ".join(_WORDS[kind] for kind in kinds) if all(kind in _WORDS for kind in kinds) else ""
    if len(readers) == 1 and not words:
        (read_present,) = readers
        return lambda value: None if value is None and may_be_none else read_present(value)

    def read_union(value: Any) -> Any:
        if value is None and may_be_none:
            return None
        problems = []
        for read in readers:
            try:
                return read(value)
            except _MisfitError as misfit:
                problems.append(misfit.with_traceback(None))  # a traceback would keep the whole value alive
        raise _not(words, value) if words else problems[0]

    return read_union


def _fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields that are written: all except those marked as not written, such as a record's path."""
    return [item for item in dataclasses.fields(kind) if item.metadata.get("written", True)]


def _dataclass_reader(kind: Any) -> Read:
    hints = typing.get_type_hints(kind)
    fields = [
        (item.name, _reader(hints[item.name]), item.default is item.default_factory is dataclasses.MISSING)
        for item in _fields(kind)
    ]

    def read_dataclass(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _not("an object", value)
        found = {}
        for name, read, required in fields:
            if name in value:
                try:
                    found[name] = read(value[name])
                except _MisfitError as misfit:
                    misfit.path.append(f".{name}")
                    raise
            elif required:
                raise _MisfitError(" is missing", f".{name}")
        try:
            return kind(**found)
        except ValueError as problem:  # inconsistent values
            raise _MisfitError(f".{problem}") from None

    return read_dataclass
