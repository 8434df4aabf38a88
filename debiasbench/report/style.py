"""The style of figures."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from debiasbench.drawing import plain_settings
from debiasbench.escaping import one_line
from debiasbench.report.tables import KNOWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each colour has a contrast of at least 3:1 with white, as WCAG 2.2 asks of graphical objects (1.4.11). Any two differ
# by at least 0.06 in OKLab, three times the just noticeable difference, for readers with deuteranopia or protanopia too
# (as simulated by Machado, Oliveira and Fernandes, 2009). The first four and black are Okabe and Ito's (2008), whose
# orange, sky blue and yellow are too light for white paper; #882255, #AA4499 and #EE6677 are Tol's (2021). Markers and
# dashes separate what colours cannot.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#3399DD", "#000000", "#6B4E16", "#882255",
    "#004488", "#AA4499", "#7B68EE", "#EE6677",
)  # fmt: skip
COLUMN = 3.35  # inches
P = ParamSpec("P")
R = TypeVar("R")

# each colour has one of each; when a colour is used again, it has another pair (see `_look_at`)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = (  # lengths on and off, in line widths; () is solid
    (), (4, 1.5), (1, 1.3), (6, 1.5, 1, 1.5), (9, 2.5), (3, 1.2, 1, 1.2, 1, 1.2), (2, 2.5), (9, 1.5, 3, 1.5),
)  # fmt: skip


class Look(NamedTuple):
    """The look of a method."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


def looks(order: Iterable[str], shown: Iterable[str] | None = None) -> dict[str, Look]:
    """The looks of a figure's methods: the same in all figures of the report, and no two in one colour.

    A method known here has the colour of its rank, under its name and its display title. Methods for which the paper
    has numbers rank first, and all their colours differ; the others follow by name. If a method with an earlier rank
    has that colour in this report, the later one takes the first free colour. Other labels, such as variants, follow in
    alphabetical order. With more methods than colours, any two of 96 differ in (colour, marker) and (colour, dashes).

    Args:
        order: all methods of the report, in any order.
        shown: the methods of the figure; default: all. If two of them share a colour in the report, the later one has
            another colour here.
    """
    order = list(order)
    shown = order if shown is None else list(shown)
    ranks = _ranks()
    known = {label: ranks[bare] for label in (*order, *shown) if (bare := label.removesuffix(KNOWS)) in ranks}
    others = sorted({*order, *shown} - known.keys())
    first = sorted(known, key=lambda label: (known[label], label))
    places = _apart({label: known.get(label) for label in (*first, *others)})
    here = {label: place for label, place in places.items() if label in shown}
    return {label: _look_at(place) for label, place in _apart(here).items()}


def _apart(wanted: Mapping[str, int | None]) -> dict[str, int]:
    """Label -> index, in the given order: the wanted one, unless its colour is taken and another colour is free."""
    places: dict[str, int] = {}
    for label, place in wanted.items():
        taken = places.values()
        colours = {one % len(PALETTE) for one in taken}
        free = [one for one in range(len(PALETTE)) if one not in colours]
        if place is None or (place % len(PALETTE) in colours and (free or place in taken)):
            place = free[0] if free else next(one for one in itertools.count() if one not in taken)
        places[label] = place
    return places


def _look_at(place: int) -> Look:
    turn, index = divmod(place, len(PALETTE))
    again = turn + index // len(MARKERS)  # so the ninth colour differs in marks from the first, which is blue too
    other = (index + 3 * again) % len(MARKERS)  # 3 and 8 have no common factor: no pair repeats in eight turns
    return Look(PALETTE[index], MARKERS[other], DASHES[other])


def _ranks() -> dict[str, int]:
    """Name or display title of each method known here -> its index; most numbers in the paper come first."""
    from debiasbench.methods import registry

    classes, of_paper = registry.classes(), _methods_of_paper()
    ranks = {name: rank for rank, name in enumerate(sorted(classes, key=lambda name: (-of_paper[name], name)))}
    displays = {vars(cls).get("display"): ranks[name] for name, cls in classes.items()}
    return {display: rank for display, rank in displays.items() if display} | ranks


@functools.cache
def _methods_of_paper() -> Counter[str]:
    """Methods, without parameters, with numbers in `experiments/paper/` -> how many."""
    from debiasbench import experiments

    numbers: Counter[str] = Counter()
    for path in (Path(experiments.__path__[0]) / "paper").glob("*.csv"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            numbers.update((line.get("method") or "").partition(":")[0] for line in csv.DictReader(file))
    return numbers


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function to use matplotlib's default settings, with fonts for the text in its arguments."""

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
    """Make a figure with panels in rows of `n_columns`.

    Args:
        n_panels: number of panels.
        height: height of a row, in inches.
        around: additional height of the figure, in inches.
        n_columns: panels per row.
        width: width of the figure, in inches; default: one column of a paper.

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
    """Add a title above all panels, if there is one; the figure grows by lines beyond the first. size: in points."""
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
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None  # so equal records give equal bytes
            figure.savefig(path, dpi=200, metadata=metadata)
            figure.set_layout_engine("none")  # the first did the layout; again, it would take half of the second's time
    return paths


def legend(figure: Figure, handles: list[Any], *, handle_length: float, size: float = 6.5) -> None:
    """Add a legend below the panels, with as many columns as fit; the figure grows by its height. size: in points."""
    for handle in handles:
        handle.set_label(in_lines(handle.get_label(), 44))  # a label that is too long would cut off all others
    for n_columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=n_columns, fontsize=size, frameon=False,
            handlelength=handle_length, handletextpad=0.6, columnspacing=1.4, borderaxespad=0.2, labelspacing=0.35,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)  # labels are not formulas, even with dollar signs
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or n_columns == 1:
            break
        legend.remove()
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + box.height / figure.dpi)


def in_lines(label: str, width: int) -> str:
    """A label in lines of at most `width` characters if it can be broken after a colon, comma or space.

    Words that are longer than `width` and longer than 24 characters are cut.
    """
    lines = [""]
    for part in re.split(r"(?<=[:, ])", one_line(label)):
        for piece in re.findall(rf".{{1,{max(width, 24)}}}", part):
            if lines[-1] and len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)
