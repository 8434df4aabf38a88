"""Parameters of methods and datasets: declared as dataclass fields, checked, and read from `name:key=value`.

A plug-in declares a parameter as an annotated class attribute. If the values are limited, it says so:

    alpha: float = between(0, 1, default=0.7)

Everything else follows from this: typed values from the command line, range checks, titles, identity.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, Self, dataclass_transform

from debiasbench.errors import BenchmarkError


@dataclass(frozen=True)
class Allowed:
    """A limit on a value: a test, its description, and the allowed words if only some words are allowed."""

    text: str
    holds: Callable[[Any], bool]
    words: tuple[str, ...] = ()


def _limited(default: Any, text: str, holds: Callable[[Any], bool], words: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"allowed": Allowed(text, holds, words)})


def between(low: float, high: float, *, default: Any) -> Any:
    """A number in [low, high], both ends included."""
    return _limited(default, f"a number in [{low:g}, {high:g}]", lambda value: low <= value <= high)


def at_least(low: float, *, default: Any) -> Any:
    """A finite number of at least `low`."""
    return _limited(default, f"a number of at least {low:g}", lambda value: low <= value < math.inf)


def above(low: float, *, default: Any) -> Any:
    """A finite number greater than `low`."""
    return _limited(default, f"a number above {low:g}", lambda value: low < value < math.inf)


def one_of(*choices: str | int, default: str | int) -> Any:
    """One of the given words, or of the given whole numbers."""
    words = tuple(map(str, choices))
    return _limited(default, "one of " + ", ".join(words), lambda value: value in choices, words)


MOST_DIGITS = 15  # of a whole number: enough for every count, and exact in every JSON reader
TOO_LONG = f"a whole number of at most {MOST_DIGITS} digits"


def has_too_many_digits(text: str) -> bool:
    """Whether a text is a whole number that is too large; Python refuses to read thousands of digits."""
    digits = text.strip().lstrip("+-")
    return digits.isdecimal() and len(digits) > MOST_DIGITS


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the known word most similar to `word`, in upper or lower case; "" if there is none."""
    words = {one.lower(): one for one in known}
    found = difflib.get_close_matches(word.lower(), list(words), n=1, cutoff=0.5)
    return f" Did you mean '{words[found[0]]}'?" if found else ""


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(between, at_least, above, one_of, field)
)
class Parameters:
    """Base class of everything with parameters: each subclass becomes a frozen, keyword-only dataclass."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_unannotated(cls)
        _refuse_mistyped(cls)
        dataclass(frozen=True, kw_only=True)(cls)
        _refuse_without_default(cls)
        # the two methods below freeze it instead, so that a subclass with a decorator is accepted, too
        del cls.__setattr__, cls.__delattr__

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field '{name}'")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field '{name}'")

    def __post_init__(self) -> None:
        """Check types and limits of all fields, and report all mistakes at once."""
        hints = field_types(type(self))
        for item in fields_of(self):
            value, kinds = getattr(self, item.name), _kinds(hints[item.name])
            if float in kinds and type(value) is int and abs(value) < 10**MOST_DIGITS:
                object.__setattr__(self, item.name, float(value))
            if isinstance(value, list) and any(typing.get_origin(kind) is tuple for kind in kinds):
                object.__setattr__(self, item.name, tuple(value))  # JSON has no tuples
        check_values(type(self), self.values())
        self.check()

    def check(self) -> None:
        """Override this to refuse combinations of values, with a `BenchmarkError`."""

    def values(self) -> dict[str, Any]:
        """The parameters as plain values, in the order of declaration."""
        return {item.name: getattr(self, item.name) for item in fields_of(self)}

    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def _refuse_unannotated(cls: type[Any]) -> None:
    """Refuse a class attribute that looks like a parameter but is not one, because it has no annotation.

    Constants are written in capitals or with an underscore. Attributes that the base class declares need no annotation.
    """
    bases = cls.__mro__[1:]
    parameters = {item.name for base in bases if dataclasses.is_dataclass(base) for item in dataclasses.fields(base)}
    known = {name for base in bases for name in vars(base)} - parameters
    own = inspect.get_annotations(cls)
    plain = (bool, int, float, str, tuple, list, dict, set, type(None), Field)
    for name, value in vars(cls).items():
        if name in own or name in known or name.startswith("_") or name.isupper() or not isinstance(value, plain):
            continue
        default = value.default if isinstance(value, Field) else value
        hint = "float | None" if default is None else type(default).__name__
        raise BenchmarkError(
            f"'{name}' of {cls.__qualname__} has no annotation, so it is not a parameter and cannot be set: write "
            f"{name}: {hint} = {'...' if isinstance(value, Field) else repr(value)}. (A constant is written in "
            "capitals, or begins with _.)"
        )


_CONTRACTS = ("debiasbench.parameters", "debiasbench.methods", "debiasbench.datasets")
# checked by `Registry` and `Method.search_space`, which know more about them
_CHECKED_LATER = ("name", "display", "alias_display", "alias_citation", "search")


def _refuse_mistyped(cls: type[Any]) -> None:
    """Refuse declarations whose type differs from that in the contract (`headline = "acc_worst"`).

    What a property computes is not known here, and declarations of other base classes are their own affair.
    """
    own = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        is_parameter = name in own and "ClassVar" not in str(own[name])
        computed = hasattr(type(value), "__get__") and not inspect.isfunction(value)
        if is_parameter or computed or name in _CHECKED_LATER:
            continue
        base = next((base for base in cls.__mro__[1:] if name in inspect.get_annotations(base)), object)
        hint = field_types(base)[name] if base.__module__ in _CONTRACTS else Any
        if typing.get_origin(hint) is ClassVar and not _fits(value, kind := typing.get_args(hint)[0]):
            advice = " Write @property above it." if inspect.isfunction(value) else ""
            raise BenchmarkError(f"'{name}' of {cls.__qualname__} must be {_in_words(kind)}. Got {value!r}.{advice}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has the type of a declaration. A list may stand for a tuple, and a whole number for a decimal."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return True
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, parts[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if isinstance(value, bool):
        return origin is bool
    return isinstance(value, {float: Real, int: Integral}.get(origin, origin))


def _in_words(kind: Any) -> str:
    """The type of a declaration, in words."""
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    if typing.get_origin(kind) is tuple:
        return "a tuple of texts, such as ('a', 'b')"
    if typing.get_origin(kind) is dict:
        of_dicts = typing.get_origin(typing.get_args(kind)[1]) is dict
        return "a dictionary of dictionaries, such as {'name': {'key': 1}}" if of_dicts else "a dictionary"
    return words.get(kind, f"a {kind.__name__}")


def _refuse_without_default(cls: type[Any]) -> None:
    """Refuse parameters without a default, because a name alone, without inline parameters, must run."""
    lacking = [item.name for item in fields_of(cls) if default_of(item) is MISSING]
    if lacking:
        raise BenchmarkError(
            f"The parameter '{lacking[0]}' of {cls.__qualname__} has no default: write {lacking[0]}: ... = VALUE. "
            "Every parameter needs one, so that the name alone can be run."
        )


def check_values(cls: type[Parameters], values: Mapping[str, Any]) -> None:
    """Refuse values of a wrong type or outside their limits, all in one message."""
    hints = field_types(cls)
    problems = []
    for item in fields_of(cls):
        value = values.get(item.name)
        problem = _problem(value, item, _kinds(hints[item.name])) if item.name in values else None
        if problem:
            owner, allowed = cls.name or cls.__name__, item.metadata.get("allowed")
            near = suggestion(value, allowed.words) if isinstance(value, str) and allowed else ""
            problems.append(f"The '{item.name}' parameter of {owner} must be {problem}. Got {value!r}.{near}")
    if problems:
        raise BenchmarkError("\n".join(problems))


def fields_of(owner: Any) -> tuple[Field[Any], ...]:
    """The dataclass fields of a parameter class or instance."""
    return dataclasses.fields(owner)


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> type, with string annotations evaluated."""
    return _type_hints(cls)


_type_hints = functools.cache(typing.get_type_hints)  # a grid makes thousands of instances of one class


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The plain types that a hint allows: `float | None` -> (float, NoneType)."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    return (hint,)


_NUMBERS = "finite numbers, written a/b/c"
_WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none",
    tuple[float, ...]: _NUMBERS,
}  # fmt: skip


def _words(kinds: tuple[Any, ...]) -> str:
    return " or ".join(_WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)


def _problem(value: Any, item: Field[Any], kinds: tuple[Any, ...]) -> str | None:
    """What the value should be, or None if it is right."""
    if value is None and type(None) in kinds:
        return None
    plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        return _words(kinds)
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        return TOO_LONG
    if isinstance(value, float) and math.isnan(value):
        return "a number, and not nan"
    if isinstance(value, tuple) and not all(type(part) in (int, float) and math.isfinite(part) for part in value):
        return _NUMBERS
    allowed: Allowed | None = item.metadata.get("allowed")
    if allowed and not allowed.holds(value):
        return allowed.text
    return None


def read_value(text: str, hint: Any, what: str) -> Any:
    """Read one inline value according to the type of its field; `what` names it in messages.

    Lists of numbers are written with slashes: `milestones=0.4/0.8`.
    """
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    if int in kinds and has_too_many_digits(text):
        raise BenchmarkError(f"The {what} must be {TOO_LONG}. Got {text!r}.")
    for kind in sorted(kinds, key=lambda kind: kind is str):
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if kind is str:
            return text
        if typing.get_origin(kind) is tuple:
            try:
                return tuple(float(part) for part in text.split("/") if part)
            except ValueError:
                continue
    raise BenchmarkError(f"The {what} must be {_words(kinds)}. Got {text!r}.")


def split_spec(spec: str) -> tuple[str, dict[str, list[str]]]:
    """`name:key=value,key=a|b` -> (name, {key: [values]}).

    The text is split at the first `:`, at commas, and at the first `=` of each part. `|` separates the values of a
    sweep. None of these splits inside quotes.
    """
    name, _, rest = spec.partition(":")
    options: dict[str, list[str]] = {}
    for part in _split_outside_quotes(rest, ",") if rest else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or not value:
            raise BenchmarkError(
                f"Cannot read '{part}' in '{spec}': parameters are written name:key=value,key=value "
                f"(for example pgd:norm=l1,alpha=0.9)."
            )
        if key in options:
            raise BenchmarkError(f"'{key}' is given twice in '{spec}'; write a sweep as {key}=a|b.")
        options[key] = [_unquote(choice.strip()) for choice in _split_outside_quotes(value, "|")]
        if not all(choice.strip() for choice in options[key]):
            raise BenchmarkError(f"'{key}' has an empty value in '{spec}'; write {key}=value or {key}=a|b.")
    return name.strip(), options


MOST_SETTINGS = 10_000  # of one name: each is a row in tables, or data to build


def expand_sweeps(options: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """Every combination of the swept values.

    Raises:
        BenchmarkError: there are more than `MOST_SETTINGS`.
    """
    n = math.prod(map(len, options.values()))
    if n > MOST_SETTINGS:
        raise BenchmarkError(
            f"{', '.join(options)}: {n:,} combinations of values are too many; at most {MOST_SETTINGS:,}."
        )
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def _split_outside_quotes(text: str, separator: str) -> list[str]:
    parts, quote, start = [], "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == separator:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def default_of(item: Field[Any]) -> Any:
    """The default of a field; MISSING if it has none."""
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else MISSING


def write_value(value: Any) -> str:
    """Write a value as it is given inline; the inverse of `read_value`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, tuple | list):
        return "/".join(write_value(part) for part in value) or "/"
    text = str(value)
    mark = "'" if '"' in text else '"'
    return f"{mark}{text}{mark}" if any(character in text for character in ",|:\"'") else text
