"""Figures for papers: PDF and PNG, readable at one column, safe for colour-blind readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette; a method keeps its colour by its place in the alphabet of all methods in a report
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
ALIGNED, CONFLICTING = "#56B4E9", "#D55E00"
COLUMN = 3.35  # inches


def _new_figure(n_panels: int, height: float, *, around: float = 0.0) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height * n_panels + around), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no display, no global state
    axes = figure.subplots(n_panels, 1, squeeze=False)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure, axes


def _save(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + ending) for ending in (".pdf", ".png")]
    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # equal records, equal bytes
        figure.savefig(path, dpi=200, metadata=metadata)
        figure.set_layout_engine("none")  # laid out by the first; doing it again is half of the second's time
    return paths


def score_histogram(scores: dict[str, tuple[np.ndarray, np.ndarray]], stem: Path, *, title: str = "") -> list[Path]:
    """Per-sample scores of aligned and conflicting samples, as the paper's Figure 9.

    scores: method -> (scores (N,), whether conflicting (N,)); each is divided by its maximum. Counts are on a
    logarithmic axis, as conflicting samples are few.
    """
    figure, axes = _new_figure(len(scores), 1.55)
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
        axis.set_title(method, fontsize=8, loc="left", pad=3)
        axis.legend(fontsize=6, frameon=False, loc="upper right")
    axes[-1].set_xlabel("score / largest score", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=8)
    return _save(figure, stem)


def accuracy_histogram(
    values: dict[str, np.ndarray], stem: Path, *, metric: str, title: str = "", order: list[str] | None = None
) -> list[Path]:
    """Accuracies of the runs of each method, as the paper's Figure 10: a panel a method, every run a tick.

    values: method -> shares (n,). `order`: all methods of the report, so that colours stay the same everywhere.
    """
    order = sorted(order or values)
    figure, axes = _new_figure(len(values), 0.55, around=0.8)
    everything = 100 * np.concatenate([numbers[~np.isnan(numbers)] for numbers in values.values()])
    margin = max(0.5, 0.05 * np.ptp(everything))
    edges = np.linspace(everything.min() - margin, everything.max() + margin, 41)
    for axis, (method, numbers) in zip(axes, values.items(), strict=True):
        colour = PALETTE[order.index(method) % len(PALETTE)]
        percent = 100 * numbers[~np.isnan(numbers)]
        axis.hist(percent, edges, color=colour, alpha=0.75, histtype="stepfilled")
        axis.plot(percent, np.zeros(len(percent)), "|", color="black", markersize=5, clip_on=False)
        axis.axvline(percent.mean(), color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(edges[0], edges[-1])
        axis.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        axis.set_title(f"{method} (n = {len(percent)})", fontsize=7, loc="left", pad=2)
        axis.tick_params(labelbottom=axis is axes[-1])
    axes[len(axes) // 2].set_ylabel("runs", fontsize=8)
    axes[-1].set_xlabel(f"{metric} (%); dotted: mean", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=8)
    return _save(figure, stem)


def contact_sheet(images: np.ndarray, names: list[str], stem: Path, *, rows: list[str], title: str) -> list[Path]:
    """A sheet of sample images: images (R, K, H, W, 3) uint8, row names, column names."""
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
                axis.set_title(names[column], fontsize=7)
            if column == 0:
                axis.set_ylabel(rows[row], fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_suffix(".png")
    figure.savefig(path, dpi=150)
    return [path]
