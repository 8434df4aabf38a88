"""Figures for papers: readable in one column, and safe for colour-blind readers.

Names of methods, datasets and classes are shown as they are (`parse_math=False`), even if they contain dollar signs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from debiasbench.report.style import PALETTE, Look, headline, in_lines, legend, looks, new_figure, plainly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TONES = ALIGNED, CONFLICTING = PALETTE[4], PALETTE[1]
FEWEST_FOR_HISTOGRAM = 10  # runs of some method: with fewer, a histogram shows its bins more than the runs


@plainly
def score_histogram(scores: dict[str, tuple[np.ndarray, np.ndarray]], *, title: str = "") -> Figure:
    """Per-sample scores of aligned and conflicting samples, as in the paper's Figure 9.

    scores: method -> (scores (N,), whether conflicting (N,)). Scores are divided by their maximum. Counts are on a
    logarithmic axis, because conflicting samples are few.
    """
    figure, axes = new_figure(len(scores), 1.55)
    edges = np.linspace(0, 1, 31)
    for axis, (method, (score, conflicting)) in zip(axes, scores.items(), strict=True):
        relative = score / score.max() if score.max() > 0 else score
        for members, colour, name in ((~conflicting, ALIGNED, "aligned"), (conflicting, CONFLICTING, "conflicting")):
            axis.hist(
                relative[members], edges, color=colour, alpha=0.75, label=f"{name} (n = {int(members.sum()):,})",
                histtype="stepfilled",
            )  # fmt: skip
        axis.set_yscale("log")
        axis.set_ylabel("samples", fontsize=8)
        axis.set_title(in_lines(method, 42), fontsize=8, loc="left", pad=3, parse_math=False)
        axis.legend(fontsize=6, frameon=False, loc="upper right")
    axes[-1].set_xlabel("score / largest score", fontsize=8)
    headline(figure, title)
    return figure


@plainly
def accuracy_figure(
    values: dict[str, np.ndarray], *, metric: str, title: str = "", order: list[str] | None = None
) -> Figure:
    """Accuracies of the runs of each method: points if all methods have fewer than ten runs, else histograms.

    Points: one row per method, one dot per run (a little apart, so that equal runs are seen), a line at the mean.
    Histograms, as in the paper's Figure 10: one panel per method, one tick per run.

    Args:
        values: method -> fractions (n,); nan values are left out.
        metric: name on the axis.
        title: above the figure.
        order: all methods of the report; it keeps colours the same in all figures.
    """
    percents = {method: 100 * numbers[~np.isnan(numbers)] for method, numbers in values.items()}
    few = max(map(len, percents.values())) < FEWEST_FOR_HISTOGRAM
    figure = (_accuracy_points if few else _accuracy_histograms)(percents, metric, order or list(values))
    headline(figure, title)
    return figure


def _accuracy_points(percents: dict[str, np.ndarray], metric: str, order: list[str]) -> Figure:
    names = [in_lines(f"{method} (n = {len(percent)})", 28) for method, percent in percents.items()]
    n_lines = max(name.count("\n") for name in names) + 1
    figure, (axis,) = new_figure(1, (0.08 + 0.1 * n_lines) * len(percents), around=0.6)
    seen = looks(order, percents)
    for row, (method, percent) in enumerate(percents.items()):
        heights = row + 0.12 * (np.arange(len(percent)) - (len(percent) - 1) / 2) / max(1, len(percent) / 4)
        axis.plot([percent.mean()] * 2, [row - 0.36, row + 0.36], color="black", linewidth=1.2)
        axis.plot(percent, heights, "o", color=seen[method].colour, markersize=3.5, alpha=0.85, clip_on=False)
    everything = np.concatenate(list(percents.values()))
    margin = max(0.5, 0.05 * np.ptp(everything))
    axis.set_xlim(everything.min() - margin, everything.max() + margin)
    axis.set_ylim(len(percents) - 0.4, -0.6)  # the first method on top
    axis.set_yticks(range(len(percents)), names, fontsize=7, parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.92", linewidth=0.5)
    axis.set_axisbelow(True)
    figure.supxlabel(in_lines(f"{metric} (%); line: mean", 50), fontsize=8, parse_math=False)
    return figure


def _accuracy_histograms(percents: dict[str, np.ndarray], metric: str, order: list[str]) -> Figure:
    figure, axes = new_figure(len(percents), 0.55, around=0.8)
    everything = np.concatenate(list(percents.values()))
    margin = max(0.5, 0.05 * np.ptp(everything))
    edges = np.linspace(everything.min() - margin, everything.max() + margin, 41)
    seen = looks(order, percents)
    for axis, (method, percent) in zip(axes, percents.items(), strict=True):
        axis.hist(percent, edges, color=seen[method].colour, alpha=0.75, histtype="stepfilled")
        axis.plot(percent, np.zeros(len(percent)), "|", color="black", markersize=5, clip_on=False)
        axis.axvline(percent.mean(), color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(edges[0], edges[-1])
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        axis.set_title(in_lines(f"{method} (n = {len(percent)})", 48), fontsize=7, loc="left", pad=2, parse_math=False)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[len(axes) // 2].set_ylabel("runs", fontsize=8)
    axes[-1].set_xlabel(in_lines(f"{metric} (%); dotted: mean", 50), fontsize=8, parse_math=False)
    return figure


@dataclass(frozen=True)
class Draws:
    """A method in the figure of a tuning: values of the rule for its draws (n,) and for later runs (m,).

    `default`, `chosen`: indices of these draws; `default` is None if that draw failed.
    """

    values: np.ndarray
    default: int | None
    chosen: int
    runs: np.ndarray


@plainly
def tuning_figure(
    draws: Mapping[str, Draws],
    *,
    rule: str,
    percent: bool = True,
    title: str = "",
    order: list[str] | None = None,
) -> Figure:
    """The spread of each method's draws, and the spread over seeds of runs with the chosen values.

    Each method has two rows. The upper one shows its draws as dots, with a cross on the defaults and a ring around the
    chosen draw; the lower one shows the runs as hollow marks.

    Args:
        draws: method -> its draws and runs, in the same measure.
        rule: the rule that chose; it names the axis.
        percent: whether values are fractions.
        title: above the figure.
        order: all methods of the report; it keeps colours the same in all figures.
    """
    from matplotlib.lines import Line2D

    seen = looks(order or draws, draws)
    unit = 100 if percent else 1
    names = [in_lines(method, 28) for method in draws]
    figure, (axis,) = new_figure(1, 0.36 * len(draws), around=0.75)
    for row, (method, one) in enumerate(draws.items()):
        colour = seen[method].colour
        values, runs = unit * one.values, unit * one.runs
        above, below = row - 0.19 + _apart(len(values)), row + 0.19 + _apart(len(runs))
        if row:
            axis.axhline(row - 0.5, color="0.85", linewidth=0.5)
        axis.plot(values, above, "o", color=colour, markersize=3.5, alpha=0.6, mew=0)
        if one.default is not None:
            axis.plot(values[one.default], above[one.default], "x", color="black", markersize=4.5, mew=1)
        axis.plot(values[one.chosen], above[one.chosen], "o", color="black", markersize=7, mfc="none", mew=0.9)
        axis.plot(runs, below, "D", color=colour, markersize=3.5, mfc="none", mew=0.9)
    axis.margins(x=0.06)
    axis.set_ylim(len(draws) - 0.4, -0.6)  # the first method on top
    axis.set_yticks(range(len(draws)), names, fontsize=7, parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.92", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.set_xlabel(f"{rule} on validation{' (%)' if percent else ''}", fontsize=8, parse_math=False)
    marks: dict[str, dict[str, Any]] = {
        "draw": {"marker": "o", "color": "0.4", "markersize": 3.5, "alpha": 0.6, "mew": 0},
        "defaults": {"marker": "x", "color": "black", "markersize": 4.5, "mew": 1},
        "chosen": {"marker": "o", "color": "black", "markersize": 7, "mfc": "none", "mew": 0.9},
    }
    if any(len(one.runs) for one in draws.values()):
        marks["run with it, a seed each"] = {
            "marker": "D", "color": "0.4", "markersize": 3.5, "mfc": "none", "mew": 0.9
        }  # fmt: skip
    legend(figure, [Line2D([], [], linestyle="none", label=label, **mark) for label, mark in marks.items()],
           handle_length=1)  # fmt: skip
    headline(figure, title)
    return figure


def _apart(n: int) -> np.ndarray:
    """Heights of points (n,) around a row, so that equal points are seen."""
    return 0.18 * (np.arange(n) / max(1, n - 1) - 0.5) if n > 1 else np.zeros(n)


@plainly
def contact_sheet(images: np.ndarray, names: list[str], stem: Path, *, rows: list[str], title: str) -> list[Path]:
    """Draw a sheet of sample images (R, K, H, W, 3), uint8, with names of the columns (`names`) and `rows`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows, n_columns = images.shape[:2]
    figure = Figure(figsize=(0.62 * n_columns + 1.1, 0.66 * n_rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for row in range(n_rows):
        for column in range(n_columns):
            axis = axes[row, column]
            axis.imshow(images[row, column], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(in_lines(names[column], 12), fontsize=7, parse_math=False)
            if column == 0:
                axis.set_ylabel(
                    in_lines(rows[row], 20), fontsize=7, rotation=0, ha="right", va="center", parse_math=False
                )
    headline(figure, title, 9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(f"{stem.name}.png")  # a title may contain a dot
    figure.savefig(path, dpi=150)
    return [path]


@plainly
def fisher_figure(numbers: list[dict[str, Any]], *, in_rank: bool = False, order: list[str] | None = None) -> Figure:
    """The trace of the inverse Fisher information of each method, as in the paper's Figure 3; less is better.

    numbers: for each run, what `report.fisher.of_record` returns. Each dataset, network and damping has a panel with a
    title that names them. A panel has one row per method, one point per run, and a line at the mean. Hollow points:
    the same networks with equal weights for all samples. The trace, in units of one over the squared gradient, is on a
    logarithmic axis.
    in_rank: without the directions in which no sample has a gradient, such as those of dead units.
    `order`: all methods of the report; it keeps colours the same in all figures.
    """
    ending = "_in_rank" if in_rank else ""
    shown = [one["method"] for one in numbers]
    seen = looks(order or shown, shown)
    panels: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for one in numbers:
        key = (one["dataset"], one["net"], one["damping"], one["dimension"])
        panels.setdefault(key, {}).setdefault(one["method"], []).append(one)
    n_rows = max(len(methods) for methods in panels.values())
    figure, axes = new_figure(len(panels), 0.55 + 0.26 * n_rows, around=0.45)
    for axis, ((dataset, net, damping, dimension), methods) in zip(axes, panels.items(), strict=True):
        for row, (method, runs) in enumerate(methods.items()):
            colour, marker, _ = seen[method]
            for name, height, face in (("uniform", row + 0.17, "white"), ("objective", row - 0.17, colour)):
                values = np.array([one[name + ending] for one in runs])
                if len(values) > 1:
                    axis.plot([values.mean()] * 2, [height - 0.17, height + 0.17], color="black", linewidth=1.2)
                axis.plot(values, np.full(len(values), height), marker, color=colour, mfc=face, markersize=4)
        axis.set_xscale("log")
        axis.tick_params(which="minor", labelsize=6)  # they have labels if the axis spans less than a decade
        axis.set_yticks(range(len(methods)), [in_lines(method, 28) for method in methods], parse_math=False)
        axis.set_ylim(len(methods) - 0.5, -0.5)  # the first method on top
        space = "without dead dimensions" if in_rank else f"{dimension:,} dimensions"
        axis.set_title(
            f"{in_lines(dataset, 44)}\nfinal layer of {net}: {space}, damping {damping:g}",
            fontsize=7, loc="right", multialignment="left", pad=3, parse_math=False,
        )  # fmt: skip
    axes[-1].set_xlabel(r"$\mathrm{Tr}\,(\hat{I}_h)^{-1}$ (damping: of the mean eigenvalue)", fontsize=7)
    marks = [
        axes[-1].plot([], [], "o", color="black", markerfacecolor=face, markersize=4, label=label)[0]
        for face, label in (("black", "own h"), ("white", "same network, uniform h"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    return figure


@plainly
def theorem_figure(
    *, a: float = 1.0, sizes: tuple[tuple[int, int], ...] = ((90, 10), (95, 5), (99, 1)), title: str = ""
) -> Figure:
    """Theorem 2: the objective of the one-dimensional example, and its minimum at h proportional to |g|.

    a: half of the distance between the optima of the two sets, not 0. sizes: pairs of |M| and |m|; uniform sampling is
    marked for each. The curve over the probability of drawing from M, and its minimum, are the same for all sizes.
    """
    from debiasbench.report.fisher import objective_of_sets, optimal_sampling

    figure, axes = new_figure(1, 2.3)
    axis = axes[0]
    fraction = np.linspace(0.004, 0.996, 497)
    axis.plot(fraction, objective_of_sets(fraction, a), color="black", linewidth=1.2)
    for index, (n_major, n_minor) in enumerate(sizes):
        uniform = n_major / (n_major + n_minor)
        axis.plot(
            uniform, objective_of_sets(uniform, a), "osD^v"[index % 5], color=PALETTE[index % len(PALETTE)],
            markersize=5, clip_on=False, label=rf"uniform, $|M| : |m|$ = {n_major:,} : {n_minor:,}",
        )  # fmt: skip
    best = sizes[0][0] * optimal_sampling(a, *sizes[0])[0]
    label = r"$h \propto |g|$ (all sizes)"
    axis.plot(best, objective_of_sets(best, a), "*", color="black", markersize=9, label=label)
    axis.set_yscale("log")
    axis.set_xlim(0, 1)
    axis.set_xlabel(r"probability of drawing from M, $|M|\,h_M$", fontsize=8)
    axis.set_ylabel(r"$\mathrm{Tr}\,(\hat{I}_h)^{-1}$", fontsize=8)
    axis.legend(fontsize=6, frameon=False, loc="upper center")
    axis.set_title(title or f"One-dimensional example, a = {a:g}", fontsize=8, loc="left", pad=3)
    return figure


@plainly
def critical_difference(
    ranks: dict[str, float],
    difference: float,
    cliques: Sequence[Sequence[str]],
    *,
    title: str = "",
    order: list[str] | None = None,
) -> Figure:
    """Average ranks of methods, and which ones cannot be separated: Demsar's (2006) diagram with one row per method.

    Rows leave room for long names and two dozen methods in one column of a paper; names on both sides of one line
    do not.

    Args:
        ranks: method -> average rank, from 1 (best).
        difference: critical difference of average ranks, drawn as a bar; nan (no bar) if no test was made.
        cliques: groups of methods that cannot be separated; a line beside its rows joins each group.
        title: above the figure.
        order: all methods of the report, for colours and markers.
    """
    methods = sorted(ranks, key=lambda method: (ranks[method], method))
    names = [f"{in_lines(method, 28)}  {ranks[method]:.2f}" for method in methods]
    n_lines = max(name.count("\n") for name in names) + 1
    tested = not math.isnan(difference)
    top = -1.7 if tested else -0.7  # in rows
    figure, (axis,) = new_figure(1, (0.05 + 0.1 * n_lines) * (len(methods) - 0.3 - top), around=0.6 if title else 0.42)
    last = max(len(methods), 2)
    seen = looks(order or methods, methods)
    for row, method in enumerate(methods):
        colour, marker, _ = seen[method]
        axis.plot((1, ranks[method]), (row, row), color=colour, linewidth=0.8)
        axis.plot(ranks[method], row, marker, color=colour, markersize=5, clip_on=False, zorder=4)
    if tested:
        axis.plot((1, 1 + difference), (-1, -1), "|-", color="black", linewidth=0.8, markersize=5, clip_on=False)
        words = f"critical difference {difference:.2f}"
        axis.annotate(words, (1, -1), (1, 3), textcoords="offset points", fontsize=6.5, va="bottom")
    rows = [sorted(methods.index(method) for method in group) for group in cliques]
    for level, members in zip(_levels([(group[0], group[-1]) for group in rows]), rows, strict=True):
        x = 1.05 + 0.035 * level  # as a fraction of the panel's width
        span = (members[0] - 0.25, members[-1] + 0.25)
        beside = axis.get_yaxis_transform()
        axis.plot((x, x), span, color="black", linewidth=2.2, solid_capstyle="butt", transform=beside, clip_on=False)
    axis.set_xlim(1, last)
    axis.set_ylim(len(methods) - 0.3, top)
    axis.set_yticks(range(len(methods)), names, fontsize=7, parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xticks(sorted({1, last} | {int(tick) for tick in axis.get_xticks() if 1 < tick < last}))
    axis.grid(axis="x", color="0.92", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines["left"].set_bounds(len(methods) - 0.3, -0.5)
    figure.supxlabel("average rank" + ("; joined: not separated" if rows else ""), fontsize=8)
    headline(figure, title)
    return figure


def _levels(intervals: Sequence[tuple[float, float]]) -> list[int]:
    """For each interval, the first level on which it touches no earlier interval."""
    taken: list[list[tuple[float, float]]] = []
    levels = []
    for low, high in intervals:
        free = [all(high < start or end < low for start, end in level) for level in taken]
        index = free.index(True) if True in free else len(taken)
        if index == len(taken):
            taken.append([])
        taken[index].append((low, high))
        levels.append(index)
    return levels


@plainly
def parameter_figure(
    values: dict[str, dict[str, np.ndarray]],
    *,
    metric: str,
    published: dict[str, dict[str, float]] | None = None,
    title: str = "",
    order: list[str] | None = None,
) -> Figure:
    """A few variants of a method on several datasets, as in the paper's Figure 2: one panel per dataset, own scales.

    Markers show means, bars sample standard deviations (none for a single run), and dots the runs.

    Args:
        values: dataset -> variant -> fractions (n,); nan values are left out.
        metric: name on the axis.
        published: dataset -> variant -> fraction, shown as an open marker beside ours.
        title: above the figure.
        order: all methods of the report, for colours and markers; variants keep the order of `values`.
    """
    from matplotlib.lines import Line2D

    published = published or {}
    variants = list(dict.fromkeys(variant for one in values.values() for variant in one))
    seen = looks(order or variants, variants)
    n_columns = 2 if len(values) in (2, 4) else min(len(values), 3)
    figure, axes = new_figure(len(values), 1.35, n_columns=n_columns)
    for index, (axis, (dataset, one)) in enumerate(zip(axes, values.items(), strict=True)):
        for x, variant in enumerate(variants):
            colour, marker, _ = seen[variant]
            percent = 100 * np.asarray(one.get(variant, ()), dtype=float)
            percent = percent[~np.isnan(percent)]
            if len(percent):
                spread = percent.std(ddof=1) if len(percent) > 1 else None
                axis.plot(np.full(len(percent), x - 0.22), percent, ".", color=colour, markersize=3, alpha=0.6)
                axis.errorbar(
                    x, percent.mean(), spread, color=colour, marker=marker, markersize=4.5, capsize=2.5, linewidth=1
                )
            theirs = published.get(dataset, {}).get(variant, math.nan)
            if not math.isnan(theirs):
                axis.plot(x + 0.27, 100 * theirs, marker, color=colour, markersize=4.5, markerfacecolor="none")
        axis.set_xlim(-0.6, len(variants) - 0.4)
        axis.set_xticks([])
        axis.margins(y=0.12)
        axis.set_title(in_lines(dataset, 36 // n_columns), fontsize=7, loc="left", pad=3, parse_math=False)
        axis.grid(axis="y", color="0.9", linewidth=0.5)
        axis.set_axisbelow(True)
        if index % n_columns == 0:
            axis.set_ylabel(in_lines(f"{metric} (%)", 20), fontsize=7, parse_math=False)
    handles = []
    for variant in variants:
        colour, marker, _ = seen[variant]
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4.5, linestyle="none", label=variant))
    if any(published.values()):
        handles.append(
            Line2D([], [], color="black", marker="o", markersize=4.5, markerfacecolor="none", linestyle="none",
                   label="open: published")
        )  # fmt: skip
    legend(figure, handles, handle_length=1)
    headline(figure, title)
    return figure


_GREY: dict[str, Any] = {"color": "0.45", "linestyle": (0, (4, 2)), "linewidth": 1}


def _line(look: Look) -> dict[str, Any]:
    """The style of a method's line."""
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": (0, look.dashes)}
    return style | {"markersize": 4, "linewidth": 1.2}


@plainly
def profile_figure(
    curves: dict[str, dict[str, dict[float, np.ndarray]]],
    aligned: dict[str, dict[float, np.ndarray]],
    *,
    metrics: dict[str, str],
    aligned_label: str,
    order: list[str] | None = None,
) -> Figure:
    """Accuracies against the fraction of conflicting samples: one panel per dataset, one line per method.

    Markers show means, and bars sample standard deviations (none for a single run). The dashed grey line is the
    reference on aligned samples. The fraction, in per cent, is on a logarithmic axis, so 0 cannot be shown.

    Args:
        curves: dataset -> method -> fraction of conflicting samples -> accuracies of the runs, fractions (n,).
        aligned: dataset -> fraction of conflicting samples -> accuracies of the reference on aligned samples.
        metrics: dataset -> name on its axis.
        aligned_label: name of the grey line.
        order: all methods of the report, for colours and markers.
    """
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(method for one in curves.values() for method in one))
    seen = looks(order or methods, methods)
    figure, axes = new_figure(len(curves), 2.1)
    for axis, (dataset, one) in zip(axes, curves.items(), strict=True):
        ratios = sorted({ratio for values in one.values() for ratio in values if ratio > 0})
        lines: list[tuple[dict[float, np.ndarray], dict[str, Any]]] = [(aligned.get(dataset, {}), _GREY)]
        for method, values in one.items():
            lines.append((values, _line(seen[method])))
        for values, style in lines:
            x = [ratio for ratio in sorted(values) if ratio > 0]
            percents = [100 * values[ratio] for ratio in x]
            spreads = [part.std(ddof=1) if len(part) > 1 else 0.0 for part in percents]
            if x:  # without a ratio above 0 there is nothing to draw
                axis.errorbar([100 * ratio for ratio in x], [part.mean() for part in percents], spreads,
                              capsize=2, elinewidth=0.8, **style)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks([100 * ratio for ratio in ratios], [f"{100 * ratio:g}" for ratio in ratios])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.set_title(in_lines(dataset, 42), fontsize=7, loc="left", pad=3, parse_math=False)
        axis.set_ylabel(in_lines(f"{metrics[dataset]} (%)", 30), fontsize=7, parse_math=False)
        axis.grid(axis="y", color="0.9", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[-1].set_xlabel("conflicting training samples (%)", fontsize=8)
    handles = [Line2D([], [], label=method, **_line(seen[method])) for method in methods]
    if any(aligned.values()):
        handles.append(Line2D([], [], label=aligned_label, **_GREY))
    legend(figure, handles, handle_length=2.5)
    return figure


@plainly
def trials_histogram(
    values: dict[str, dict[str, np.ndarray]],
    *,
    metric: str,
    p_values: dict[str, float] | None = None,
    title: str = "",
    order: list[str] | None = None,
) -> Figure:
    """Overlaid histograms of many runs of two (or three) methods, as in the paper's Figure 10: one panel per dataset.

    Args:
        values: dataset -> method -> fractions (n,); nan values are left out, and each dataset needs a number.
        metric: name on the axis.
        p_values: dataset -> p of the test that the title or caption names; nan and missing ones are left out.
        title: above the figure.
        order: all methods of the report, for the colours.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    methods = list(dict.fromkeys(method for one in values.values() for method in one))
    seen = looks(order or methods, methods)
    figure, axes = new_figure(len(values), 1.15, around=0.15)
    for axis, (dataset, one) in zip(axes, values.items(), strict=True):
        percents = {method: 100 * numbers[~np.isnan(numbers)] for method, numbers in one.items()}
        percents = {method: percent for method, percent in percents.items() if len(percent)}
        everything = np.concatenate(list(percents.values()))
        margin = max(0.2, 0.05 * np.ptp(everything))
        edges = np.linspace(everything.min() - margin, everything.max() + margin, 26)
        for method, percent in percents.items():
            colour, _, dashes = seen[method]
            axis.hist(percent, edges, color=colour, alpha=0.35, histtype="stepfilled")
            axis.hist(percent, edges, color=colour, linewidth=0.9, histtype="step")
            axis.axvline(percent.mean(), color=colour, linewidth=1.2, linestyle=(0, dashes))
        axis.axhline(0, color="black", linewidth=1)  # covers the outlines of empty bins
        highest = axis.get_ylim()[1]
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= highest])
        for index, (method, percent) in enumerate(percents.items()):  # below zero: a tick per run, a row per method
            rows = np.full(len(percent), -(0.6 + index) * 0.11 * highest)
            axis.plot(percent, rows, "|", color=seen[method].colour, markersize=4.5)
        axis.set_ylim(-(0.2 + len(percents)) * 0.11 * highest, highest)
        axis.set_xlim(edges[0], edges[-1])
        axis.set_ylabel("runs", fontsize=8)
        p = (p_values or {}).get(dataset, math.nan)
        text = "" if math.isnan(p) else "p < .0001" if p < 0.0001 else f"p = {p:.4f}".replace("0.", ".", 1)
        axis.set_title(in_lines(dataset, 36), fontsize=7, loc="left", pad=3, parse_math=False)
        axis.set_title(text, fontsize=7, loc="right", pad=3)
    axes[-1].set_xlabel(in_lines(f"{metric} (%); lines: means", 50), fontsize=8, parse_math=False)
    handles = []
    for method in methods:
        colour, _, dashes = seen[method]
        n = sorted({int((~np.isnan(one[method])).sum()) for one in values.values() if method in one})
        label = f"{method} (n = {n[0]}{f' to {n[-1]}' if n[-1] > n[0] else ''})"
        face, edge = (*to_rgb(colour), 0.35), (*to_rgb(colour), 1.0)
        handles.append(Patch(facecolor=face, edgecolor=edge, linestyle=(0, dashes), label=label))
    legend(figure, handles, handle_length=3)
    headline(figure, title)
    return figure


@plainly
def curve_figure(
    curves: Mapping[str, Sequence[Mapping[int, float]]],
    *,
    metric: str,
    title: str = "",
    order: list[str] | None = None,
) -> Figure:
    """Learning curves on one dataset: a thick line for the mean at the epochs that all runs have, thin ones for runs.

    Args:
        curves: method -> its runs, each a mapping of epoch to fraction.
        metric: name on the axis.
        title: above the figure.
        order: all methods of the report, for colours and markers.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, (axis,) = new_figure(1, 2.3)
    handles, seen = [], looks(order or curves, curves)
    for index, (method, runs) in enumerate(curves.items()):
        style = _line(seen[method])
        for run in runs if len(runs) > 1 else ():
            thin = {"color": style["color"], "linewidth": 0.5, "alpha": 0.4, "markersize": 3}
            axis.plot(list(run), [100 * value for value in run.values()], "." if len(run) == 1 else "", **thin)
        epochs = sorted(set(runs[0]).intersection(*runs))
        means = [100 * sum(run[epoch] for run in runs) / len(runs) for epoch in epochs]
        step = max(1, len(epochs) // 6)  # about six marks per line, offset so that they do not hide each other
        axis.plot(epochs, means, markevery=(index * step // len(curves), step), **style)
        handles.append(Line2D([], [], label=method, **style))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("epoch", fontsize=8)
    axis.set_ylabel(in_lines(f"{metric} (%)", 30), fontsize=7, parse_math=False)
    axis.grid(axis="y", color="0.9", linewidth=0.5)
    axis.set_axisbelow(True)
    legend(figure, handles, handle_length=2.5)
    headline(figure, title)
    return figure
