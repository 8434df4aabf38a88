"""The charts of the page: what lies where. `page.html` draws them as SVG, in the colours of the reader's browser.

A chart of a dozen methods over each other shows none of them. So each method has a panel of its own, on one scale, in
which the means of all others are grey.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from debiasbench.report.style import looks

MOST_CURVES = 20  # of a method: of more runs, a band is drawn
Curve = Mapping[int, float]  # epoch -> fraction, without the epochs that lack it
Points = Sequence[tuple[float, float]]

# A panel, in about pixels: its size, and where its curves lie; beside them is room for labels
FRAME = {"width": 200, "height": 130, "left": 26, "right": 158, "top": 8, "bottom": 108}


@dataclass(frozen=True)
class Scale:
    """A linear axis: `low` lies at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Panel:
    """The curves of a method: paths, "" for none.

    Attributes:
        method: its display title.
        colour: of its curves, as `#0072B2`.
        mean: over runs, on the test split.
        validation: the same on the validation split.
        runs: each run, where there are several, and not more than MOST_CURVES.
        band: from the lowest to the highest, where there are more.
        last: of the mean: where it ends, and its percent there; None without a mean.
        told: what it shows, in words.
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
    """Learning curves, a panel a method on one scale. ticks: (y, label); epochs: the first and the last."""

    panels: list[Panel]
    ticks: list[tuple[float, str]]
    epochs: tuple[int, int]


def learning_curves(
    test: Mapping[str, Sequence[Curve]], validation: Mapping[str, Sequence[Curve]], *, order: Iterable[str]
) -> Panels:
    """Methods on one dataset, epoch by epoch: the means over runs, and each run.

    Means and bands are over the epochs that all runs have, as they would jump where one of them ends.

    Args:
        test: method -> its runs.
        validation: the same on the validation split, of the methods that are to have such a curve.
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
    """What sums up the values of all runs, at the epochs that all of them have."""
    epochs = [epoch for epoch in (runs[0] if runs else ()) if all(epoch in run for run in runs)]
    return {epoch: summed([run[epoch] for run in runs]) for epoch in epochs}


@dataclass(frozen=True)
class Row:
    """The runs of a method on a line of 100 by 20: paths, "" for none.

    Attributes:
        method: its display title.
        colour: of its runs, as `#0072B2`.
        runs: each run a dot; of more than MOST_CURVES a line from the lowest to the highest.
        middle: of those a bar over the middle half.
        mean: where it lies, from 0 to 100; None without a run.
        told: what it shows, in words.
    """

    method: str
    colour: str
    runs: str
    middle: str
    mean: float | None
    told: str


@dataclass(frozen=True)
class Rows:
    """The runs of each method, a row a method on one scale. ticks: (x in per cent of the width, label)."""

    rows: list[Row]
    ticks: list[tuple[float, str]]


def rows_of_runs(values: Mapping[str, Sequence[float]], *, order: Iterable[str]) -> Rows:
    """The picture of a comparison on one dataset.

    Args:
        values: method -> fractions, one a run.
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
        heights = [10 + 10 * (index / (n - 1) - 0.5) if n > 1 else 10 for index in range(n)]  # so that equals are seen
        runs = "".join(path([(x.at(value), height)]) for value, height in zip(percents, heights, strict=True))
        middle, told = "", told + (": " + ", ".join(f"{value:.2f}" for value in percents) if n > 1 else "")
    return Row(method, colour, runs, middle, round(x.at(mean), 2), told)


def path(points: Points) -> str:
    """An SVG path through points, to a tenth; a single one is a line of no length, which round ends make a dot."""
    if not points:
        return ""
    places = " ".join(f"{round(number, 1) + 0.0:g}" for point in points for number in point)
    return f"M{places}" + "h0" * (len(points) == 1)


def round_ticks(values: Sequence[float]) -> list[float]:
    """At most seven round numbers at equal distances, the first below all values and the last above; 0 to 100 of none.

    Values are in per cent: where all are equal, the numbers stay within 0 and 100 if they do.
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
    """1, 2 and 5 times the powers of ten, rising, from at most `least` on."""
    for power in itertools.count(math.floor(math.log10(least))):
        yield from (number * 10.0**power for number in (1, 2, 5))
