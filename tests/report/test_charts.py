"""Where the page's curves and points lie."""

import itertools

import pytest

from debiasbench.report.charts import FRAME, learning_curves, round_ticks, rows_of_runs
from debiasbench.report.style import looks

LEFT, RIGHT, TOP, BOTTOM = (FRAME[side] for side in ("left", "right", "top", "bottom"))


def points(path):
    """The points of each line of a path."""
    lines = path.replace("h0", "").removesuffix("z").split("M")[1:]
    numbers = [list(map(float, line.split())) for line in lines]
    return [list(zip(line[::2], line[1::2], strict=True)) for line in numbers]


def test_curves_are_means_runs_and_validation():
    test = {"x": [{2: 0.5, 4: 0.6, 6: 0.7}, {2: 0.3, 4: 0.8}], "y": [{2: 0.25, 4: 0.5}]}
    curves = learning_curves(test, {"x": [{2: 0.5, 4: 0.6}, {2: 0.7, 4: 1.0}]}, order="xyz")
    x, y = curves.panels
    assert curves.epochs == (2, 6)
    assert [label for _, label in curves.ticks] == ["20", "30", "40", "50", "60", "70", "80"]
    assert (curves.ticks[0][0], curves.ticks[-1][0]) == (BOTTOM, TOP)
    middle = (LEFT + RIGHT) / 2

    def at(percent):
        return pytest.approx(BOTTOM + (percent - 20) / 60 * (TOP - BOTTOM), abs=0.06)

    assert points(x.runs) == [[(LEFT, at(50)), (middle, at(60)), (RIGHT, at(70))], [(LEFT, at(30)), (middle, at(80))]]
    assert points(x.mean) == [[(LEFT, at(40)), (middle, at(70))]]  # the epochs that both have
    assert points(x.validation) == [[(LEFT, at(60)), (middle, at(80))]]
    assert points(y.mean) == [[(LEFT, at(25)), (middle, at(50))]]
    assert (y.runs, y.validation, x.band, y.band) == ("", "", "", "")  # one run is its own mean
    assert [one.colour for one in curves.panels] == [looks("xyz")[method].colour for method in "xy"]
    assert x.last == (pytest.approx(middle), at(70), "70.0")
    assert x.told == "x: 40.0 % at epoch 2, 70.0 % at epoch 4"


def test_of_more_than_twenty_runs_there_is_a_band():
    runs = [{1: 0.2 + 0.01 * seed, 2: 0.5} for seed in range(21)]
    (few,), (many,) = (learning_curves({"x": some}, {}, order="x").panels for some in (runs[:20], runs))
    assert (len(points(few.runs)), few.band) == (20, "")
    assert (many.runs, many.band[-1]) == ("", "z")
    ((low, _, _, high),) = points(many.band)
    assert (low[0], high[0]) == (LEFT, LEFT)
    assert low[1] > high[1]  # y goes down
    assert len(points(many.mean)[0]) == 2


@pytest.mark.parametrize(
    ("runs", "limits"),
    [([{1: 0.5}], (49, 51)), ([{1: 1.0, 2: 1.0}], (99, 100)), ([{1: 0.0, 2: 0.0}], (0, 1)), ([{}], (0, 100)),
     ([], (0, 100)), ([{1: 0.2}, {2: 0.4}], (20, 40))],
)  # fmt: skip
def test_curves_of_little(runs, limits):
    curves = learning_curves({"x": runs}, {"x": [{}]}, order="x")
    labels = [float(label) for _, label in curves.ticks]
    assert (labels[0], labels[-1]) == pytest.approx(limits)
    assert curves.epochs == (1, 2)
    (panel,) = curves.panels
    assert (panel.last is None) == (not panel.mean)
    for path in (panel.mean, panel.runs):
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for line in points(path) for x, y in line)
    if len(runs) == 1 and len(runs[0]) == 1:
        assert panel.mean.endswith("h0")  # a dot: a line of one point shows nothing
    if not panel.mean:
        assert panel.told == "x: no epoch that all runs have"


def test_rows_of_runs_are_dots_about_their_mean():
    rows = rows_of_runs({"x": [0.5, 0.5, 0.8], "y": [], "z": [0.6]}, order="xyz")
    assert [(x, label) for x, label in rows.ticks][:: len(rows.ticks) - 1] == [(0, "50"), (100, "80")]
    x, y, z = rows.rows
    dots = [line[0] for line in points(x.runs)]
    assert [place for place, _ in dots] == [0, 0, 100]
    assert len({height for _, height in dots}) == 3  # equal runs do not hide each other
    assert x.mean == pytest.approx(100 / 3, abs=0.01)
    assert x.told == "x: mean 60.00 %, n = 3: 50.00, 50.00, 80.00"
    assert (y.runs, y.mean, y.told) == ("", None, "y: no run")
    assert points(z.runs) == [[(33.3, 10)]]
    assert z.told == "z: mean 60.00 %, n = 1"


def test_many_runs_are_a_line_and_its_middle_half():
    (row,) = rows_of_runs({"x": [0.01 * seed for seed in range(41)]}, order="x").rows
    assert points(row.runs) == [[(0, 10), (100, 10)]]
    assert points(row.middle) == [[(25, 10), (75, 10)]]
    assert row.told == "x: mean 20.00 %, n = 41, from 0.00 to 40.00"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], [0, 20, 40, 60, 80, 100]), ([20, 80], [20, 30, 40, 50, 60, 70, 80]), ([97.1, 97.9], None),
        ([33.3, 91.2], [20, 40, 60, 80, 100]), ([-3, 5], [-4, -2, 0, 2, 4, 6]), ([1234, 9999], None), ([101], None),
        ([0.1, 100], [0, 20, 40, 60, 80, 100]), ([1e-7, 3e-7], None),
    ],
)  # fmt: skip
def test_ticks_are_few_and_round_and_reach_over_all_values(values, expected):
    found = round_ticks(values)
    assert expected is None or found == expected
    assert 2 <= len(found) <= 7
    assert not values or found[0] <= min(values) <= max(values) <= found[-1]
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:.0e}"[0] in "125"
