"""How figures look."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from debiasbench.drawing import plain_settings
from debiasbench.escaping import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, with a brown for its yellow, which is too light for lines
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31",
    "#882255", "#117733", "#AA4499", "#999933",
)  # fmt: skip
COLUMN = 3.35  # inches
P = ParamSpec("P")
R = TypeVar("R")

# one of each belongs to a colour; where colours come round again, the pair is another one (see `look`)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = (  # in line widths, on and off; () is solid
    (), (4, 1.5), (1, 1.3), (6, 1.5, 1, 1.5), (9, 2.5), (3, 1.2, 1, 1.2, 1, 1.2), (2, 2.5), (9, 1.5, 3, 1.5),
)  # fmt: skip


def look(method: str, order: Iterable[str]) -> tuple[str, str, tuple[float, ...]]:
    """How a method looks in every figure: its colour, marker and dashes.

    A method known here looks the same in every report, by its name and by its display title: its place among all of
    them decides. Other labels, such as variants, follow in the alphabet of the report. Any two of the first 12 differ
    in colour and any two of 8 that follow each other in all three; any two of 96 in the pair of colour and marker, and
    of colour and dashes.

    `order`: all methods of the report, in any order.
    """
    known = _known()
    others = sorted(set(order) - set(known))
    place = known[method] if method in known else max(known.values(), default=-1) + 1 + others.index(method)
    turn, index = divmod(place, len(PALETTE))
    other = (index + 3 * turn) % len(MARKERS)  # 3 and 8 share no factor: eight turns without a pair twice
    return PALETTE[index], MARKERS[other], DASHES[other]


def _known() -> dict[str, int]:
    """Name, or display title, of each method that is known here -> its place among all names."""
    from debiasbench.methods import registry

    classes = registry.classes()
    places = {name: place for place, name in enumerate(sorted(classes))}
    displays = {vars(cls).get("display"): places[name] for name, cls in classes.items()}
    return {display: place for display, place in displays.items() if display} | places


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """A function that draws: in matplotlib's own settings, with fonts for what its arguments say."""

    @functools.wraps(function)
    def drawn(*given: P.args, **options: P.kwargs) -> R:
        with plain_settings("".join(_texts((given, options)))):
            return function(*given, **options)

    return drawn


def _texts(value: Any) -> Iterator[str]:
    """All text in dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.items()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def new_figure(
    n_panels: int, height: float, *, around: float = 0.0, n_columns: int = 1, width: float = COLUMN
) -> tuple[Figure, Any]:
    """A figure and its panels in rows of `n_columns`.

    Args:
        n_panels: how many.
        height: of a row, in inches.
        around: height beside the rows, in inches.
        n_columns: of panels.
        width: of the figure, in inches; default: a column of a paper.

    Returns:
        The figure, and its axes (n_panels,).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from debiasbench.report.canvas import OwnFigure

    n_rows = math.ceil(n_panels / n_columns)
    figure = OwnFigure(figsize=(width, height * n_rows + around), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no display, no global state
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    axes = axes[:n_panels]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure, axes


def headline(figure: Figure, title: str, size: float = 8) -> None:
    """What stands above all panels, if anything; the figure grows by what does not fit into one line. size: points."""
    if title:
        title = in_lines(title, round(15.5 * figure.get_figwidth() * 8 / size))
        figure.suptitle(title, fontsize=size, parse_math=False)
        figure.set_figheight(figure.get_figheight() + title.count("\n") * 1.2 * size / 72)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.pdf and `stem`.png; stem: a path without an ending."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + ending) for ending in (".pdf", ".png")]
    with plain_settings():
        for path in paths:
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # equal records, equal bytes
            figure.savefig(path, dpi=200, metadata=metadata)
            figure.set_layout_engine("none")  # laid out by the first; doing it again is half of the second's time
    return paths


def legend(figure: Figure, handles: list[Any], *, handle_length: float, size: float = 6.5) -> None:
    """A legend below the panels in as many columns as fit; the figure grows by its height. size: of text, in points."""
    for handle in handles:
        handle.set_label(in_lines(handle.get_label(), 44))  # one too long to fit would cut off all others
    for n_columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=n_columns, fontsize=size, frameon=False,
            handlelength=handle_length, handletextpad=0.6, columnspacing=1.4, borderaxespad=0.2, labelspacing=0.35,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # labels are no formulas, whatever dollars they hold
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or n_columns == 1:
            break
        legend.remove()
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + box.height / figure.dpi)


def in_lines(label: str, width: int) -> str:
    """A label in lines of at most `width` characters where it can be broken: behind a colon, comma or space.

    Words are cut that are longer than `width` and than 24 characters.
    """
    lines = [""]
    for part in re.split(r"(?<=[:, ])", one_line(label)):
        for piece in re.findall(rf".{{1,{max(width, 24)}}}", part):
            if lines[-1] and len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
