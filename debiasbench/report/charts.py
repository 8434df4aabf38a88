"""The geometry of the page's charts. `page.html` draws them as SVG, in the colours of the reader's browser.

With a dozen methods in one chart, none can be seen. So each method has its own panel, which shows the means of all
others in grey. All panels have the same scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from debiasbench.report.style import looks

MOST_CURVES = 20  # per method: with more runs, a band is drawn
Curve = Mapping[int, float]  # epoch -> fraction; epochs without a value are left out
Points = Sequence[tuple[float, float]]

# The size of a panel and the area of its curves, in pixels (roughly); the rest is room for labels
FRAME = {"width": 200, "height": 130, "left": 26, "right": 158, "top": 8, "bottom": 108}


@dataclass(frozen=True)
class Scale:
    """A linear axis: the value `low` is at position `start`, and `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The position of a value on the axis."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Panel:
    """The curves of a method as SVG paths; "" if there is no such curve.

    Attributes:
        method: its display title.
        colour: the colour of its curves, such as `#0072B2`.
        mean: the mean over runs, on the test split.
        validation: the same on the validation split.
        runs: each run, if there are at least 2 and at most MOST_CURVES.
        band: from the lowest to the highest run, if there are more than MOST_CURVES.
        last: position of the end of the mean, and its value there in per cent; None without a mean.
        told: what the panel shows, in words.
    """

    method: str
    colour: str
    mean: str
    validation: str
    runs: str
    band: str
    last: tuple[float, float, str] | None
    told: str


@dataclass(frozen=True)
class Panels:
    """Learning curves: one panel per method, all on one scale. ticks: (y, label); epochs: the first and the last."""

    panels: list[Panel]
    ticks: list[tuple[float, str]]
    epochs: tuple[int, int]


def learning_curves(
    test: Mapping[str, Sequence[Curve]], validation: Mapping[str, Sequence[Curve]], *, order: Iterable[str]
) -> Panels:
    """Learning curves of methods on one dataset: the mean over runs, and each run.

    Means and bands cover the epochs that all runs have; otherwise they would jump where a run ends.

    Args:
        test: method -> its runs.
        validation: the same on the validation split, for the methods that get such a curve.
        order: all methods of the report, for colours.
    """
    seen = looks(order)
    drawn = [*itertools.chain(*test.values()), *(_mean(runs) for runs in validation.values())]
    epochs = [epoch for curve in drawn for epoch in curve] or [1]
    ticks = round_ticks([100 * value for curve in drawn for value in curve.values()])
    x = Scale(min(epochs), max(*epochs, min(epochs) + 1), FRAME["left"], FRAME["right"])
    y = Scale(ticks[0], ticks[-1], FRAME["bottom"], FRAME["top"])

    def points(curve: Curve) -> Points:
        return [(x.at(epoch), y.at(100 * value)) for epoch, value in curve.items()]

    panels = []
    for method, runs in test.items():
        mean, several = _mean(runs), 1 < len(runs) <= MOST_CURVES
        ends = [points(_over(runs, end)) for end in (min, max)] if len(runs) > MOST_CURVES else [[], []]
        panels.append(
            Panel(
                method, seen[method].colour, path(points(mean)), path(points(_mean(validation.get(method, ())))),
                runs="".join(path(points(run)) for run in runs) if several else "",
                band=path([*ends[0], *reversed(ends[1])]) + "z" * bool(ends[0]),
                last=(*points(mean)[-1], f"{100 * list(mean.values())[-1]:.1f}") if mean else None,
                told=_told(method, mean),
            )
        )  # fmt: skip
    return Panels(panels, [(y.at(tick), f"{tick:g}") for tick in ticks], (int(x.low), int(x.high)))


def _told(method: str, mean: Curve) -> str:
    ends = list(mean.items())
    return f"{method}: " + ", ".join(f"{100 * value:.1f} % at epoch {epoch}" for epoch, value in (ends[0], ends[-1])
                                     ) if ends else f"{method}: no epoch that all runs have"  # fmt: skip


def _mean(runs: Sequence[Curve]) -> Curve:
    """The mean over runs, at the epochs that all of them have."""
    return _over(runs, lambda values: sum(values) / len(values))


def _over(runs: Sequence[Curve], summed: Callable[[list[float]], float]) -> Curve:
    """A summary of the values of all runs, at the epochs that all of them have."""
    epochs = [epoch for epoch in (runs[0] if runs else ()) if all(epoch in run for run in runs)]
    return {epoch: summed([run[epoch] for run in runs]) for epoch in epochs}


@dataclass(frozen=True)
class Row:
    """The runs of a method as SVG paths in an area of 100 by 20; "" if there is no such path.

    Attributes:
        method: its display title.
        colour: the colour of its runs, such as `#0072B2`.
        runs: one dot per run; with more than MOST_CURVES runs, a line from the lowest to the highest.
        middle: with more than MOST_CURVES runs, a bar over the middle half.
        mean: position of the mean, from 0 to 100; None without a run.
        told: what the row shows, in words.
    """

    method: str
    colour: str
    runs: str
    middle: str
    mean: float | None
    told: str


@dataclass(frozen=True)
class Rows:
    """The runs of methods: one row per method, all on one scale. ticks: (x in per cent of the width, label)."""

    rows: list[Row]
    ticks: list[tuple[float, str]]


def rows_of_runs(values: Mapping[str, Sequence[float]], *, order: Iterable[str]) -> Rows:
    """The chart of a comparison on one dataset.

    Args:
        values: method -> fractions, one per run.
        order: all methods of the report, for colours.
    """
    seen = looks(order)
    percents = {method: [100 * value for value in some] for method, some in values.items()}
    ticks = round_ticks(list(itertools.chain(*percents.values())))
    x = Scale(ticks[0], ticks[-1], 0, 100)
    rows = [_row(method, seen[method].colour, some, x) for method, some in percents.items()]
    return Rows(rows, [(round(x.at(tick), 2), f"{tick:g}") for tick in ticks])


def _row(method: str, colour: str, percents: Sequence[float], x: Scale) -> Row:
    n = len(percents)
    if not n:
        return Row(method, colour, "", "", None, f"{method}: no run")
    mean, low, high = sum(percents) / n, min(percents), max(percents)
    told = f"{method}: mean {mean:.2f} %, n = {n}"
    if n > MOST_CURVES:
        runs, told = path([(x.at(low), 10), (x.at(high), 10)]), f"{told}, from {low:.2f} to {high:.2f}"
        middle = path([(x.at(float(end)), 10) for end in np.quantile(percents, (0.25, 0.75))])
    else:
        heights = [10 + 10 * (index / (n - 1) - 0.5) if n > 1 else 10 for index in range(n)]  # equal runs apart
        runs = "".join(path([(x.at(value), height)]) for value, height in zip(percents, heights, strict=True))
        middle, told = "", told + (": " + ", ".join(f"{value:.2f}" for value in percents) if n > 1 else "")
    return Row(method, colour, runs, middle, round(x.at(mean), 2), told)


def path(points: Points) -> str:
    """An SVG path through points, to a tenth; one point is a line of length 0, which round ends turn into a dot."""
    if not points:
        return ""
    places = " ".join(f"{round(number, 1) + 0.0:g}" for point in points for number in point)
    return f"M{places}" + "h0" * (len(points) == 1)


def round_ticks(values: Sequence[float]) -> list[float]:
    """At most seven round numbers at equal distances that enclose all values; 0 to 100 without values.

    Values are in per cent. If all are equal and between 0 and 100, the numbers stay between 0 and 100 too.
    """
    low, high = (min(values), max(values)) if values else (0, 100)
    if low == high:
        inside = 0 <= low <= 100
        low, high = (max(low - 1, 0), min(high + 1, 100)) if inside else (low - 1, high + 1)
    for step in _steps((high - low) / 6):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 6:
            return [step * number for number in range(first, last + 1)]
    raise AssertionError("steps never end")


def _steps(least: float) -> Iterator[float]:
    """1, 2 and 5 times the powers of ten in increasing order; the first is at most `least`."""
    for power in itertools.count(math.floor(math.log10(least))):
        yield from (number * 10.0**power for number in (1, 2, 5))
