"""Ranges of hyper-parameters that fair tuning draws from: `search = {"alpha": uniform(0.1, 0.9, source="...")}`.

Each range names its source. It is checked where it is declared, and an invalid one raises a BenchmarkError.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from debiasbench.errors import BenchmarkError

DIGITS = 3  # of a drawn number: people read and type it


@dataclass(frozen=True)
class Range(ABC):
    """The values of one hyper-parameter.

    Attributes:
        source: where the range comes from.
    """

    source: str

    @abstractmethod
    def draw(self, generator: random.Random, default: Any) -> Any:
        """Draw one value.

        Args:
            generator: the source of randomness.
            default: the untuned value of the method on the dataset.
        """

    @abstractmethod
    def holds(self, value: Any, default: Any) -> bool:
        """Whether a value is in the range, given the untuned value `default`."""


@dataclass(frozen=True)
class Between(Range):
    """Numbers from `low` to `high`, both included, drawn uniformly.

    Attributes:
        low: the lowest number.
        high: the highest number.
        log: draw uniformly in the logarithm.
        whole: draw whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, generator: random.Random, default: Any) -> float:
        """Draw a number, rounded to three digits if it need not be whole."""
        del default
        if self.whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        if not self.log:
            return self._rounded(generator.uniform(self.low, self.high))
        half = 0.5 if self.whole else 0.0  # 1 stands for 0.5 to 1.5, so it is as frequent as its part of the logarithm
        low, high = math.log(self.low - half), math.log(self.high + half)
        return self._rounded(math.exp(generator.uniform(low, high)))

    def _rounded(self, value: float) -> float:
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any, default: Any) -> bool:
        """Whether a value is a number from `low` to `high`."""
        del default
        return type(value) in (int, float) and self.low <= value <= self.high and (type(value) is int or not self.whole)


@dataclass(frozen=True)
class Around(Range):
    """The default (above 0) times a factor from `low` to `high`, drawn uniformly in its logarithm."""

    low: float
    high: float

    def draw(self, generator: random.Random, default: Any) -> float:
        """Draw a number, rounded to three digits.

        Raises:
            BenchmarkError: the default is not a number above 0.
        """
        if type(default) not in (int, float) or default <= 0:
            raise BenchmarkError(f"around({self.low}, {self.high}) needs a default above 0. Got {default!r}.")
        factor = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return float(f"{default * factor:.{DIGITS}g}")

    def holds(self, value: Any, default: Any) -> bool:
        """Whether a value is within these factors of the default."""
        if not all(type(one) in (int, float) and one > 0 for one in (value, default)):
            return False
        return bool(self.low * 0.995 <= value / default <= self.high * 1.005)  # tolerance for rounding


@dataclass(frozen=True)
class Choice(Range):
    """One of a few values, all equally likely."""

    values: tuple[Any, ...]

    def draw(self, generator: random.Random, default: Any) -> Any:
        """Draw one of the values."""
        del default
        return generator.choice(self.values)

    def holds(self, value: Any, default: Any) -> bool:
        """Whether it is one of the values."""
        del default
        return value in self.values


def uniform(low: float, high: float, *, source: str) -> Range:
    """Numbers from `low` to `high`, all equally likely."""
    return _between("uniform", low, high, source)


def log_uniform(low: float, high: float, *, source: str) -> Range:
    """Numbers from `low` (above 0) to `high`, each order of magnitude equally likely."""
    return _between("log_uniform", low, high, source, log=True)


def whole(low: int, high: int, *, log: bool = False, source: str) -> Range:
    """Whole numbers from `low` to `high`, all equally likely; with `log`, each order of magnitude (`low` above 0)."""
    if type(low) is not int or type(high) is not int:
        raise BenchmarkError(f"whole({low!r}, {high!r}) must go from one whole number to another.")
    return _between("whole", low, high, source, log=log, whole=True)


def around(low: float, high: float, *, source: str) -> Range:
    """A method's default on a dataset, times a factor from `low` (above 0, at most 1) to `high` (at least 1)."""
    if not 0 < low <= 1 <= high < math.inf:
        raise BenchmarkError(f"around({low!r}, {high!r}) must be factors around 1: 0 < low <= 1 <= high.")
    return Around(_said(f"around({low!r}, {high!r})", source), low, high)


def choice(*values: Any, source: str) -> Range:
    """One of these values, all equally likely."""
    if len(values) < 2 or len(set(values)) != len(values):
        raise BenchmarkError(f"choice({', '.join(map(repr, values))}) must have two values or more, all different.")
    return Choice(_said(f"choice({', '.join(map(repr, values))})", source), values)


def _between(name: str, low: float, high: float, source: str, *, log: bool = False, whole: bool = False) -> Range:
    call = f"{name}({low!r}, {high!r})"
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise BenchmarkError(f"{call} must go from a finite number to a higher one.")
    if log and low <= 0:
        raise BenchmarkError(f"{call} must begin above 0, as it is uniform in the logarithm.")
    return Between(_said(call, source), low, high, log, whole)


def _said(call: str, source: str) -> str:
    if not isinstance(source, str) or not source.strip():
        raise BenchmarkError(f"{call} needs its source: where the range comes from.")
    return source
