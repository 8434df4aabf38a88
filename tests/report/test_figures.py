"""What the figures show, read back from their lines and texts, and that nothing lies outside the column."""

import itertools
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from debiasbench import drawing
from debiasbench.drawing import plain_settings
from debiasbench.methods import registry
from debiasbench.report import figures
from debiasbench.report.figures import (
    Draws,
    accuracy_figure,
    contact_sheet,
    critical_difference,
    curve_figure,
    fisher_figure,
    parameter_figure,
    score_histogram,
    trials_histogram,
    tuning_figure,
)
from debiasbench.report.style import COLUMN, DASHES, MARKERS, PALETTE, looks, save

METHODS = [f"method-{letter}" for letter in "abcdefghijklmnopqrstuvwx"]
LONG = "a-method-with-a-name:parameter=value,another=0.125,official=true"


def generator():
    return np.random.default_rng(0)


def runs(mean, n=25):
    return generator().normal(mean, 0.01, n)


def scores(n=60):
    return generator().random(n), np.arange(n) % 4 == 0


EXAMPLES = {
    "scores": lambda names: score_histogram({name: scores() for name in names[:3]}, title="scores"),
    "accuracies": lambda names: accuracy_figure(
        {name: runs(0.9) for name in names[:3]}, metric="acc", title="accuracies", order=names
    ),
    "few accuracies": lambda names: accuracy_figure(
        {name: runs(0.9, 3) for name in names}, metric="acc", title="accuracies", order=names
    ),
    "ranks": lambda names: critical_difference(
        {name: 1.0 + place for place, name in enumerate(names)}, 1.5,
        [names[place : place + 3] for place in range(len(names) - 2)], title="ranks",
    ),
    "parameters": lambda names: parameter_figure(
        {f"data:rho={place},a=1": {name: runs(0.9, 3) for name in names[:4]} for place in range(5)},
        metric="acc", title="parameters", published={"data:rho=1,a=1": {names[0]: 0.95}},
    ),
    "trials": lambda names: trials_histogram(
        {names[0]: {name: runs(0.9) for name in names[:2]}, "other": {names[1]: runs(0.8)}},
        metric="acc", p_values={names[0]: 0.01572}, title="trials",
    ),
    "curves": lambda names: curve_figure(
        {name: [{1: 0.5, 2: 0.6 + 0.01 * place}, {1: 0.4, 2: 0.7}] for place, name in enumerate(names)},
        metric="acc", title="curves", order=names,
    ),
    "tuning": lambda names: tuning_figure(
        {name: Draws(runs(0.9, 16), default=0, chosen=3, runs=runs(0.9, 3)) for name in names},
        rule="worst_class", title="tuning",
    ),
}  # fmt: skip


# --- files


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_figure_is_a_pdf_and_a_png_one_column_wide_and_the_same_again(name, tmp_path):
    paths = save(EXAMPLES[name](METHODS[:4]), tmp_path / "folder" / "figure")
    assert [path.name for path in paths] == ["figure.pdf", "figure.png"]
    assert paths[0].read_bytes().startswith(b"%PDF")
    assert imread(paths[1]).shape[1] == round(200 * COLUMN)
    again = save(EXAMPLES[name](METHODS[:4]), tmp_path / "again" / "figure")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(
    "names", [METHODS[:2], METHODS, [LONG, LONG + ",seed=1", *METHODS[:3]]], ids=["2", "24", "long"]
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_text_lies_outside_the_figure(name, names):
    no_text_lies_outside(EXAMPLES[name](names))


def no_text_lies_outside(figure):
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    texts = figure.texts + [text for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        low, high = sorted(axis.get_ylim())
        texts += [tick.label1 for tick in axis.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        texts += [axis.title, axis._left_title, axis._right_title, axis.xaxis.label, *axis.texts]
    for text in texts:
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y0 >= -1, text
            assert box.y1 <= height + 1, text
    for axis in figure.axes:
        assert axis.get_window_extent().width > 0.25 * width / max(1, axis.get_gridspec().ncols)


NAMED = {
    "scores": lambda name: score_histogram({name: scores()}, title=name),
    "accuracies": lambda name: accuracy_figure({name: runs(0.9)}, metric="acc", title=name),
    "few accuracies": lambda name: accuracy_figure({name: runs(0.9, 1)}, metric="acc", title=name),
    "ranks": lambda name: critical_difference({name: 1.0, "other": 2.0}, 1.5, [], title=name),
    "parameters": lambda name: parameter_figure({name: {name: runs(0.9)}}, metric="acc", title=name),
    "trials": lambda name: trials_histogram({name: {name: runs(0.9)}}, metric="acc", title=name),
    "curves": lambda name: curve_figure({name: [{1: 0.5}]}, metric="acc", title=name),
    "tuning": lambda name: tuning_figure(
        {name: Draws(runs(0.9), default=None, chosen=0, runs=runs(0.9, 0))}, rule="val_acc", title=name
    ),
    "fisher": lambda name: fisher_figure(
        [{"dataset": name, "method": name, "net": "mlp", "damping": 0.1, "dimension": 9, "objective": 1, "uniform": 2}]
    ),
    "sheet": lambda name: contact_sheet(
        np.zeros((1, 1, 8, 8, 3), np.uint8), [name], Path("none"), rows=[name], title=name
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_names_with_dollars_are_no_formulas(name, monkeypatch):
    kept = []

    def keep(figure, *_, **__):
        kept.extend(figure.findobj(Text))
        figure.draw_without_rendering()  # a broken formula would end here

    monkeypatch.setattr(Figure, "savefig", keep)
    drawn = NAMED[name](r"$\frac{1}{$")
    if isinstance(drawn, Figure):
        keep(drawn)
    named = [text for text in kept if "frac" in text.get_text()]
    assert len(named) >= 2
    assert not any(text.get_parse_math() for text in named)


def test_a_contact_sheet_is_a_png(tmp_path):
    images = generator().integers(0, 255, (2, 3, 8, 8, 3)).astype(np.uint8)
    paths = contact_sheet(images, list("abc"), tmp_path / "deep" / "sheet-0.05-x", rows=["x", "y"], title="samples")
    assert [path.name for path in paths] == ["sheet-0.05-x.png"]
    assert imread(paths[0]).ndim == 3


# --- how a method looks


PAPER = ("vanilla", "lff", "jtt", "disen", "eiil", "cnc", "george", "bpa", "pgd")
# what protanopia and deuteranopia make of linear RGB: Machado, Oliveira and Fernandes (2009), severity 1
SIMULATED = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
)


def linear(colour):
    """Linear RGB (3,) of `#0072B2`."""
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """OKLab (3,) of linear RGB, after Ottosson (2020)."""
    cones = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]) @ rgb  # fmt: skip
    return np.array([
        [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]) @ np.cbrt(cones)  # fmt: skip


def test_colours_stand_out_from_white():
    for colour in (*PALETTE, *figures.TONES):
        luminance = linear(colour) @ (0.2126, 0.7152, 0.0722)
        assert 1.05 / (luminance + 0.05) >= 3, colour


def test_any_two_colours_differ_for_colour_blind_readers_too():
    for one, other in itertools.combinations(PALETTE, 2):
        for seen in (np.eye(3), *map(np.array, SIMULATED)):
            apart = oklab(np.clip(seen @ linear(one), 0, 1)) - oklab(np.clip(seen @ linear(other), 0, 1))
            assert np.linalg.norm(apart) > 0.06, (one, other)


@pytest.mark.parametrize("n", [1, 12, 13, 24, 96])
def test_as_many_as_there_are_colours_differ_in_colour_and_more_in_their_marks(n):
    known = list(registry.classes())
    labels = [*known, *(f"{number:02d}" for number in range(96))][:n]
    found = looks(labels).values()
    assert len({one.colour for one in found}) == min(n, len(PALETTE))
    assert len({(one.colour, one.marker) for one in found}) == n
    assert len({(one.colour, one.dashes) for one in found}) == n


def test_the_methods_of_the_paper_differ_and_look_the_same_in_every_report():
    everywhere = looks(registry.classes())
    assert len({everywhere[name].colour for name in PAPER}) == len(PAPER)
    for name in registry.classes():
        alone = looks([name])[name]
        assert name not in PAPER or alone == everywhere[name] == looks(["a", name, "zz"])[name]
        assert looks([*PAPER, "a"])["vanilla"] == everywhere["vanilla"]


@pytest.mark.parametrize(
    "some", [("vanilla", "jtt"), ("pgd", "bpa"), ("pgd", "dfr"), ("lff", "groupdro"), ("eiil", "rwg")]
)
def test_no_two_methods_of_a_figure_have_one_colour(some):
    """Neither where the report has no others nor where it has more than there are colours."""
    for order in (some, some[::-1], registry.classes()):
        for shown in (some, some[::-1]):
            found = looks(order, shown)
            assert found.keys() == set(some)
            assert len({one.colour for one in found.values()}) == 2
            assert found[some[0]] == looks(some, some)[some[0]]  # what comes first stays


def test_any_twelve_methods_of_any_report_differ():
    names = [*registry.classes(), "x", "y", "z"]
    for start in range(len(names) - len(PALETTE) + 1):
        found = looks(names, names[start : start + len(PALETTE)])
        assert len({one.colour for one in found.values()}) == len(PALETTE)


def test_a_mark_behind_a_title_changes_no_look():
    plain = looks(["groupdro", "PGD"])["groupdro"]
    assert looks(["GroupDRO‡", "PGD"])["GroupDRO‡"] == looks(["GroupDRO", "PGD"])["GroupDRO"] == plain


def test_the_look_of_a_variant_depends_on_the_alphabet_alone():
    assert looks(["a", "b", "c"])["b"] == looks(["c", "b", "a", "a"])["b"] == looks(dict.fromkeys("cab"))["b"]
    assert looks(["a"])["a"] != looks(["a", "b"])["b"]


def test_a_colour_has_its_own_marker_and_dashes():
    assert len(MARKERS) == len(DASHES) == 8
    first = [looks([name])[name] for name in PAPER]
    assert len({(one.marker, one.dashes) for one in first}) == 8  # of nine; the ninth has the fourth's


def test_histograms_of_accuracies_have_the_colours_of_the_report():
    order = METHODS[::-1]
    figure = accuracy_figure({METHODS[9]: runs(0.9), METHODS[2]: runs(0.8)}, metric="acc", order=order)  # fmt: skip
    colours = [to_hex(axis.patches[0].get_facecolor()).upper() for axis in figure.axes]
    assert colours == [looks(order)[METHODS[9]].colour, looks(order)[METHODS[2]].colour]


def test_few_runs_are_points_around_their_mean():
    order = METHODS[::-1]
    values = {METHODS[9]: np.array([0.9, 0.7, 0.9]), METHODS[2]: np.array([0.5]), METHODS[4]: runs(0.8, 9)}
    (axis,) = accuracy_figure(values, metric="acc", order=order).axes
    assert not axis.patches
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        f"{method} (n = {len(one)})" for method, one in values.items()
    ]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_color() for line in points] == [looks(order)[method].colour for method in values]
    means = [line for line in axis.lines if line.get_marker() == "None"]
    for row, (line, mean, one) in enumerate(zip(points, means, values.values(), strict=True)):
        assert line.get_xdata() == pytest.approx(100 * one)
        assert len(set(line.get_ydata())) == len(one)  # equal runs do not hide each other
        assert line.get_ydata().mean() == pytest.approx(row)
        assert abs(line.get_ydata() - row).max() < 0.36
        assert mean.get_xdata() == pytest.approx([100 * one.mean()] * 2)
    low, high = axis.get_ylim()
    assert low > high  # the first row is the upper one


@pytest.mark.parametrize(("n", "histogram"), [(9, False), (10, True)])
def test_ten_runs_of_one_method_make_histograms(n, histogram):
    figure = accuracy_figure({"a": runs(0.9, 3), "b": runs(0.8, n)}, metric="acc")
    assert len(figure.axes) == (2 if histogram else 1)
    assert all(bool(axis.patches) is histogram for axis in figure.axes)


# --- ranks


def test_draws_stand_above_the_runs_with_what_was_chosen():
    draws = {
        "a": Draws(np.array([0.5, 0.7, 0.7]), default=0, chosen=1, runs=np.array([0.6, 0.65])),
        "b": Draws(np.array([0.4]), default=None, chosen=0, runs=np.array([])),
    }
    figure = tuning_figure(draws, rule="worst_class", order=["a", "b"])
    (axis,) = figure.axes
    by_look = {}
    for line in axis.lines:
        look_of = (line.get_marker(), line.get_markerfacecolor() == "none")
        by_look.setdefault(look_of, []).append((list(line.get_xdata()), list(np.atleast_1d(line.get_ydata()))))
    all_draws = by_look["o", False]
    assert [x for x, _ in all_draws] == [[50, 70, 70], [40]]
    assert len(set(all_draws[0][1])) == 3  # equal draws are seen
    assert [x for x, _ in by_look["x", False]] == [[50]]
    assert [x for x, _ in by_look["o", True]] == [[70], [40]]  # rings: the earlier of equals
    assert by_look["o", True][0][1] == [all_draws[0][1][1]]
    (of_runs, _) = by_look["D", True]
    assert of_runs[0] == pytest.approx([60, 65])
    assert min(of_runs[1]) > max(all_draws[0][1])  # y goes down
    assert "worst_class on validation (%)" in axis.get_xlabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["draw", "defaults", "chosen", "run with it, a seed each"]
    alone = tuning_figure({"b": draws["b"]}, rule="val_loss", percent=False)
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["draw", "defaults", "chosen"]
    assert alone.axes[0].get_xlabel() == "val_loss on validation"


def test_ranks_are_rows_from_the_best_to_the_worst():
    figure = critical_difference({"b": 2.25, "c": 1.5, "a": 2.25}, 1.0, [], order=["0", "a", "b", "c"])
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["c  1.50", "a  2.25", "b  2.25"]
    shown = [line for line in axis.lines if line.get_marker() not in ("None", "|")]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in shown] == [(1.5, 0), (2.25, 1), (2.25, 2)]
    expected = [looks(["0", "a", "b", "c"])[name][:2] for name in "cab"]
    assert [(line.get_color(), line.get_marker()) for line in shown] == expected
    low, high = axis.get_ylim()
    assert low > high  # the first row is the upper one
    assert axis.get_xlim() == (1, 3)


def test_the_bar_is_as_long_as_the_critical_difference():
    (axis,) = critical_difference({"a": 1.5, "b": 1.75, "c": 2.75}, 1.25, []).axes
    (bar,) = [line for line in axis.lines if line.get_marker() == "|"]
    assert np.ptp(bar.get_xdata()) == pytest.approx(1.25)
    assert [text.get_text() for text in axis.texts] == ["critical difference 1.25"]


def test_without_a_test_there_are_ranks_and_no_bar():
    figure = critical_difference({"a": 1.5, "b": 1.5}, math.nan, [])
    (axis,) = figure.axes
    assert not [line for line in axis.lines if line.get_marker() == "|"]
    assert [text.get_text() for text in axis.texts] == []
    assert figure.get_supxlabel() == "average rank"


def test_cliques_join_their_rows_and_do_not_touch():
    ranks = dict(zip("edcba", (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    cliques = [["d", "e"], ["c", "d"], ["b", "a"]]
    (axis,) = critical_difference(ranks, 1.5, cliques).axes
    bars = [line for line in axis.lines if line.get_linewidth() > 2]
    spans = [tuple(np.round(line.get_ydata()).astype(int)) for line in bars]
    assert spans == [(0, 1), (1, 2), (3, 4)]
    places = [line.get_xdata()[0] for line in bars]
    assert places[0] == places[2] != places[1]  # the third is clear of the first and stands above it


@pytest.mark.parametrize("seed", range(5))
def test_intervals_on_one_level_never_touch(seed):
    intervals = [tuple(sorted(pair)) for pair in generator().integers(0, 30, (20, 2)) + seed]
    levels = figures._levels(intervals)
    for (one, level), (other, second) in itertools.combinations(zip(intervals, levels, strict=True), 2):
        assert level != second or one[1] < other[0] or other[1] < one[0]
    assert figures._levels([(0, 1), (2, 3), (4, 5)]) == [0, 0, 0]
    assert figures._levels([]) == []


# --- what the environment asks for

MINE = (
    "font.size: 30\ntext.usetex: True\nsavefig.bbox: tight\nsavefig.dpi: 30\naxes.facecolor: red\n"
    "font.family: Nowhere\ntext.parse_math: False\nbackend: TkAgg\n"
)


@pytest.mark.parametrize("name", [*EXAMPLES, "sheet"])
def test_a_figure_follows_no_settings_and_leaves_none(name, tmp_path, monkeypatch):
    """A matplotlibrc, a style and whatever a script or a notebook has set."""
    images = np.zeros((1, 1, 8, 8, 3), np.uint8)

    def draw(names, stem):
        if name == "sheet":
            return contact_sheet(images, ["one"], stem, rows=["cat"], title="sheet")
        return save(EXAMPLES[name](names), stem)

    paths = draw(METHODS[:3], tmp_path / "plain" / "figure")
    (tmp_path / "settings").write_text(MINE, encoding="utf-8")
    with matplotlib.rc_context(fname=tmp_path / "settings"):
        mine = dict(matplotlib.rcParams.copy())
        again = draw(METHODS[:3], tmp_path / "mine" / "figure")
        assert dict(matplotlib.rcParams.copy()) == mine
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from debiasbench.report.figures import score_histogram
from debiasbench.report.style import save
save(score_histogram({"a": (np.arange(9) / 9, np.arange(9) > 6)}), Path(sys.argv[1]))
sys.exit("matplotlib.pyplot" in sys.modules)
"""


def backend_of_a_notebook(folder):
    return {"MPLBACKEND": "module://nowhere"}


def settings_of_another_encoding_and_no_home(folder):
    (folder / "settings").write_bytes("größe: 30\n".encode("latin-1"))
    return {"MATPLOTLIBRC": str(folder / "settings"), "MPLCONFIGDIR": "/proc/none", "HOME": "/proc/none"}


def settings_and_a_damaged_style(folder):
    (folder / "stylelib").mkdir()
    (folder / "matplotlibrc").write_text(MINE, encoding="utf-8")
    (folder / "stylelib" / "damaged.mplstyle").write_bytes(b"axes.facecolor: \xff\xfe")
    return {"MPLCONFIGDIR": str(folder), "MPLBACKEND": "nonsense", "DISPLAY": ":99"}


@pytest.mark.parametrize(
    "made", [backend_of_a_notebook, settings_of_another_encoding_and_no_home, settings_and_a_damaged_style]
)
def test_a_figure_needs_nothing_of_the_environment(made, tmp_path):
    scores = {"a": (np.arange(9) / 9, np.arange(9) > 6)}
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | made(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "other"],
        capture_output=True, text=True, env=environment, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for path in save(score_histogram(scores), tmp_path / "figure"):
        assert path.with_stem("other").read_bytes() == path.read_bytes()


# --- labels of others

NASTY = [
    r"$\frac{1}{$",
    "$x$ a_b^c",
    "a\nb\x1b[31m\x00",
    "<script>",
    "漢字 中文",
    "x" * 250,
    "größe:" * 30,
    "\ud83d|\u202e",
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_labels_are_shown_as_they_are_in_every_figure(name):
    """As nothing but text, inside, and without a warning for each character that the font lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = EXAMPLES[name](NASTY)
    with plain_settings():
        no_text_lies_outside(figure)
    words = [text for text in figure.findobj(Text) if any(part in text.get_text() for part in (r"\frac", "a_b"))]
    assert words
    assert not any(text.get_parse_math() for text in words)
    shown = "".join(text.get_text() for text in figure.findobj(Text))
    assert not set(shown) & {"\x1b", "\x00", "\u202e", "\ud83d"}


@pytest.mark.parametrize("metric", [r"acc_$\frac{1}{$", "acc\x00\nb", "m" * 100], ids=ascii)
def test_names_of_metrics_are_text_too(metric):
    few = {name: runs(0.9, 3) for name in METHODS[:2]}
    accuracy_figure(few, metric=metric)
    accuracy_figure({name: runs(0.9) for name in METHODS[:2]}, metric=metric)
    parameter_figure({"data": few}, metric=metric)
    trials_histogram({"data": few}, metric=metric)


@pytest.fixture
def font(tmp_path):
    """A font with one Chinese character, as if it had been installed."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "middle"])
    builder.setupCharacterMap({ord("中"): "middle"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "middle": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "middle": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Tiny Han", "styleName": "Regular", "psName": "TinyHan-Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "tiny.ttf")
    installed = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.ttflist[:] = [
        font_manager.FontEntry(fname=one.fname, name=one.name) for one in installed if "dejavu" in one.fname.lower()
    ]
    drawing._fonts_for.cache_clear()
    yield lambda: font_manager.fontManager.addfont(tmp_path / "tiny.ttf")
    font_manager.fontManager.ttflist[:] = installed
    font_manager.fontManager._findfont_cached.cache_clear()
    drawing._fonts_for.cache_clear()


def test_another_installed_font_has_what_the_usual_one_lacks(font, tmp_path):
    def drawn(title):
        return save(score_histogram({"a": scores()}, title=title), tmp_path / "figure")[1].read_bytes()

    boxes = drawn("中")
    assert drawing.lacking(["中", "größe", "漢 λ"]) == "中漢"
    drawing._fonts_for.cache_clear()
    font()
    assert drawing.lacking(["中", "größe", "漢 λ"]) == "漢"
    assert drawn("中") != boxes
    assert b"TinyHan" in (tmp_path / "figure.pdf").read_bytes()
    usual = drawn("größe")
    assert b"TinyHan" not in (tmp_path / "figure.pdf").read_bytes()
    drawing._fonts_for.cache_clear()
    assert drawn("größe") == usual


# --- parameters


def test_variants_show_mean_sample_deviation_every_run_and_published_numbers():
    values = {
        "data": {"x": np.array([0.5, 0.6, math.nan, 0.7]), "y": np.array([0.4])},
        "other": {"y": np.array([0.2, 0.4])},
    }
    figure = parameter_figure(
        values, metric="acc", published={"data": {"y": 0.45}, "other": {"x": math.nan}}, order=["w", "y", "x"],
    )  # fmt: skip
    first, second = figure.axes
    bars = [container.lines for container in first.containers]
    assert [line.get_ydata()[0] for line, _, _ in bars] == pytest.approx([60, 40])
    assert [(line.get_color(), line.get_marker()) for line, _, _ in bars] == [looks("wyx")[name][:2] for name in "xy"]
    assert bars[0][2][0].get_segments()[0][:, 1] == pytest.approx([50, 70])
    assert bars[1][2] == ()  # one run has no spread
    dots = [line for line in first.lines if line.get_marker() == "."]
    assert [sorted(line.get_ydata()) for line in dots] == [pytest.approx([50, 60, 70]), pytest.approx([40])]
    open_markers = [line for line in first.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_ydata()[0] for line in open_markers] == pytest.approx([45])
    (only,) = [container.lines for container in second.containers]
    assert (only[0].get_xdata()[0], only[0].get_ydata()[0]) == pytest.approx((1, 30))
    assert only[2][0].get_segments()[0][:, 1] == pytest.approx([30 - 200**0.5, 30 + 200**0.5])
    assert not [line for line in second.lines if line.get_markerfacecolor() == "none"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["x", "y", "open: published"]


@pytest.mark.parametrize(("n", "n_columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 3)])
def test_every_dataset_has_a_panel_and_no_panel_is_empty(n, n_columns):
    values = {f"data{place}": {"x": runs(0.9, 3)} for place in range(n)}
    figure = parameter_figure(values, metric="acc")
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(values)
    assert figure.axes[0].get_gridspec().ncols == n_columns
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x"]


# --- trials


def test_trials_of_two_methods_lie_over_each_other_with_their_p():
    values = {
        "first": {"b": runs(0.9), "a": runs(0.8)},
        "second": {"b": runs(0.7, 24), "a": np.append(runs(0.6), math.nan)},
    }
    figure = trials_histogram(values, metric="acc", p_values={"first": 0.01572, "second": math.nan},
    )  # fmt: skip
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["first", "second"]
    assert [axis.get_title(loc="right") for axis in figure.axes] == ["p = .0157", ""]
    for axis, one in zip(figure.axes, values.values(), strict=True):
        ticks = [line for line in axis.lines if line.get_marker() == "|"]
        numbers = [100 * percent[~np.isnan(percent)] for percent in one.values()]
        assert [line.get_xdata().tolist() for line in ticks] == [pytest.approx(percent) for percent in numbers]
        assert all(line.get_ydata().max() < 0 for line in ticks)  # below the bars
        assert min(axis.get_yticks()) == 0
        means = [line.get_xdata()[0] for line in axis.lines if len(set(line.get_xdata())) == 1]
        assert means == pytest.approx([percent.mean() for percent in numbers])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["b (n = 24 to 25)", "a (n = 25)"]


def test_a_method_without_numbers_is_left_out_of_a_panel():
    values = {"first": {"a": runs(0.9), "b": np.full(3, math.nan)}, "second": {"a": runs(0.9), "b": runs(0.8, 3)}}
    figure = trials_histogram(values, metric="acc")
    assert [len([line for line in axis.lines if line.get_marker() == "|"]) for axis in figure.axes] == [1, 2]


@pytest.mark.parametrize(
    ("p", "text"), [(0.2937, "p = .2937"), (0.00001, "p < .0001"), (1.0, "p = 1.0000"), (0.0, "p < .0001")]
)
def test_p_is_written_as_in_the_tables(p, text):
    figure = trials_histogram({"data": {"a": runs(0.9), "b": runs(0.8)}}, metric="acc", p_values={"data": p},
    )  # fmt: skip
    assert figure.axes[0].get_title(loc="right") == text


# --- texts


@pytest.mark.parametrize(
    ("label", "lines"),
    [("short", "short"), ("a:b=1,c=2", "a:b=1,c=2"),
     ("name:rho=0.005", "name:\nrho=0.005"), ("unbreakable-name", "unbreakable-name"),
     ("x" * 25, "x" * 24 + "\nx"), ("a\nb\x00", "a b\\x00"),
     ("name with spaces (n = 3)", "name with\nspaces (n =\n3)"),
     ("name:one=1,two=2,three=3", "name:one=1,\ntwo=2,\nthree=3")],
)  # fmt: skip
def test_labels_are_broken_behind_colons_and_commas(label, lines):
    assert figures.in_lines(label, 12) == lines


@pytest.mark.parametrize(("runs", "marks"), [([{1: 0.5}, {1: 0.7}], ".."), ([{1: 0.5, 2: 0.6}, {1: 0.7}], " ."),
                                             ([{1: 0.5, 2: 0.6}, {1: 0.7, 2: 0.8}], "  ")])  # fmt: skip
def test_a_run_of_one_epoch_is_seen_as_a_point(runs, marks):
    (axis,) = curve_figure({"x": runs}, metric="acc").axes
    thin = [line for line in axis.lines if line.get_linewidth() < 1]
    assert [line.get_marker().replace("None", " ") or " " for line in thin] == list(marks)
