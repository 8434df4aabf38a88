"""How figures look."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, with a brown for its yellow, which is too light for lines
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31",
    "#882255", "#117733", "#AA4499", "#999933",
)  # fmt: skip
COLUMN = 3.35  # inches

# one of each belongs to a colour; where colours come round again, the pair is another one (see `look`)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = (  # in line widths, on and off; () is solid
    (), (4, 1.5), (1, 1.3), (6, 1.5, 1, 1.5), (9, 2.5), (3, 1.2, 1, 1.2, 1, 1.2), (2, 2.5), (9, 1.5, 3, 1.5),
)  # fmt: skip


def look(method: str, order: Iterable[str]) -> tuple[str, str, tuple[float, ...]]:
    """How a method looks in every figure: its colour, marker and dashes.

    A method known here by its name looks the same in every report: its place among all of them decides. Other labels,
    such as variants, follow in the alphabet of the report. Any two of the first 12 differ in colour and any two of 8
    that follow each other in all three; any two of 96 in the pair of colour and marker, and of colour and dashes.

    `order`: all methods of the report, in any order.
    """
    known = _known()
    places = [*known, *sorted(set(order) - set(known))]
    turn, place = divmod(places.index(method), len(PALETTE))
    other = (place + 3 * turn) % len(MARKERS)  # 3 and 8 share no factor: eight turns without a pair twice
    return PALETTE[place], MARKERS[other], DASHES[other]


def _known() -> list[str]:
    from debiasbench.methods import registry

    return sorted(registry.classes())


def new_figure(n_panels: int, height: float, *, around: float = 0.0, n_columns: int = 1) -> tuple[Figure, Any]:
    """A figure one column wide, and its panels in rows of `n_columns`; height: inches a row, around: beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_rows = math.ceil(n_panels / n_columns)
    figure = Figure(figsize=(COLUMN, height * n_rows + around), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no display, no global state
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    axes = axes[:n_panels]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure, axes


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.pdf and `stem`.png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + ending) for ending in (".pdf", ".png")]
    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # equal records, equal bytes
        figure.savefig(path, dpi=200, metadata=metadata)
        figure.set_layout_engine("none")  # laid out by the first; doing it again is half of the second's time
    return paths


def legend(figure: Figure, handles: list[Any], *, handle_length: float) -> None:
    """A legend below the panels in as many columns as fit; the figure grows by its height."""
    for handle in handles:
        handle.set_label(in_lines(handle.get_label(), 44))
    for n_columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=n_columns, fontsize=6.5, frameon=False,
            handlelength=handle_length, handletextpad=0.6, columnspacing=1.4, borderaxespad=0.2, labelspacing=0.35,
        )  # fmt: skip
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or n_columns == 1:
            break
        legend.remove()
    figure.set_size_inches(COLUMN, figure.get_figheight() + box.height / figure.dpi)


def in_lines(label: str, width: int) -> str:
    """A label in lines of at most `width` characters where it can be broken: behind a colon, comma or space."""
    lines = [""]
    for part in re.split(r"(?<=[:, ])", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
