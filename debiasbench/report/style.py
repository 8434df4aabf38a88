"""How figures look."""

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

# Each reaches a contrast of 3:1 with white, as WCAG 2.2 asks of graphical objects (1.4.11). Any two differ for readers
# with deuteranopia or protanopia too, as Machado, Oliveira and Fernandes (2009) simulate it: by at least 0.06 in OKLab,
# three times what is just noticed. The first four and black are Okabe and Ito's (2008), whose orange, sky blue and
# yellow are too light for white paper; #882255, #AA4499 and #EE6677 are Tol's (2021). What colours cannot tell apart,
# markers and dashes do.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#3399DD", "#000000", "#6B4E16", "#882255",
    "#004488", "#AA4499", "#7B68EE", "#EE6677",
)  # fmt: skip
COLUMN = 3.35  # inches
P = ParamSpec("P")
R = TypeVar("R")

# one of each belongs to a colour; where colours come round again, the pair is another one (see `_look_at`)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[tuple[float, ...], ...] = (  # in line widths, on and off; () is solid
    (), (4, 1.5), (1, 1.3), (6, 1.5, 1, 1.5), (9, 2.5), (3, 1.2, 1, 1.2, 1, 1.2), (2, 2.5), (9, 1.5, 3, 1.5),
)  # fmt: skip


class Look(NamedTuple):
    """How a method looks."""

    colour: str
    marker: str
    dashes: tuple[float, ...]


def looks(order: Iterable[str], shown: Iterable[str] | None = None) -> dict[str, Look]:
    """How the methods of a figure look: each as in all other figures of the report, and no two in one colour.

    A method known here has the colour of its rank, by its name and by its display title: first the methods of which the
    paper has numbers, which all differ, then the others by name. If a method of an earlier rank has that colour in this
    report, it takes the first free one. Other labels, such as variants, follow in alphabetical order. With more methods
    than colours, any two of 96 differ in (colour, marker) and in (colour, dashes).

    Args:
        order: all methods of the report, in any order.
        shown: those of the figure; default: all. Of two that have one colour in the report, the later has another here.
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
    """Label -> its place, in the order given: as wanted, but for a colour that is taken while another is free."""
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
    again = turn + index // len(MARKERS)  # the ninth colour, too, has other marks than the first, which is as blue
    other = (index + 3 * again) % len(MARKERS)  # 3 and 8 share no factor: eight turns without a pair twice
    return Look(PALETTE[index], MARKERS[other], DASHES[other])


def _ranks() -> dict[str, int]:
    """Name, or display title, of each method that is known here -> its place; what the paper shows most comes first."""
    from debiasbench.methods import registry

    classes, of_paper = registry.classes(), _methods_of_paper()
    ranks = {name: rank for rank, name in enumerate(sorted(classes, key=lambda name: (-of_paper[name], name)))}
    displays = {vars(cls).get("display"): ranks[name] for name, cls in classes.items()}
    return {display: rank for display, rank in displays.items() if display} | ranks


@functools.cache
def _methods_of_paper() -> Counter[str]:
    """The methods, without parameters, of which `experiments/paper/` has numbers -> how many."""
    from debiasbench import experiments

    numbers: Counter[str] = Counter()
    for path in (Path(experiments.__path__[0]) / "paper").glob("*.csv"):
        with path.open(newline="", encoding="utf-8-sig") as file:
            numbers.update((line.get("method") or "").partition(":")[0] for line in csv.DictReader(file))
    return numbers


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
