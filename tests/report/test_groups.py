"""The table of accuracies by group, against the values of the records."""

import statistics

import pytest
from made_records import made_record, stored

from debiasbench.grid import expand
from debiasbench.records import MOST_GROUPS, EpochFacts, GroupFacts
from debiasbench.report import make as report
from debiasbench.report import results
from debiasbench.report.groups import groups_tables
from debiasbench.report.results import shortened
from debiasbench.report.tables import markdown

METRICS = {"acc_unbiased": 0.5, "acc_avg": 0.5, "loss": 1.0}
NAMES = {"class_names": ("dark", "blond"), "bias_values": (("female", "male"),)}


def made(groups, method="vanilla", seed=0, dataset="cmnist2", data=None, data_seed=0):
    """A record with these groups of test."""
    cells = expand([method], [dataset], seeds=[seed], data_seeds=2).cells
    cell = next(one for one in cells if results.data_seed(one) == data_seed)
    epochs = [EpochFacts(1, METRICS, METRICS)]
    return made_record(cell, epochs, {"last": 0}, data=data, groups={"test": tuple(groups)})


def four(accuracies, sizes=(50, 40, 30, 11)):
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    return [GroupFacts(n, acc, y, b) for (y, b), n, acc in zip(places, sizes, accuracies, strict=True)]


def test_means_and_spreads_are_those_of_the_runs():
    values = {
        ("vanilla", 0): (0.9, 0.8, 0.7, 0.1),
        ("vanilla", 1): (0.8, 0.8, 0.5, 0.3),
        ("pgd", 0): (0.6, 0.5, 0.4, 1),
    }
    records = [made(four(of_run), method, seed, data=NAMES) for (method, seed), of_run in values.items()]
    (table,) = groups_tables(records)
    assert [column.heading for column in table.columns] == [
        "method", "dark / female (n 50)", "dark / male (n 40)", "blond / female (n 30)", "blond / male (n 11)",
    ]  # fmt: skip
    assert [row[0].value for row in table.rows] == ["vanilla", "pgd"]
    for index, entry in enumerate(table.rows[0][1:]):
        pair = [values["vanilla", seed][index] for seed in (0, 1)]
        assert entry.value == pytest.approx(statistics.mean(pair))
        assert entry.std == pytest.approx(statistics.stdev(pair))
    assert [entry.text for entry in table.rows[1][1:]] == ["60.00", "50.00", "40.00", "100.00"]


def test_numbers_stand_where_a_record_does_not_tell_names():
    (table,) = groups_tables([made(four((1, 1, 0, 0)))])
    assert [column.key for column in table.columns][1:] == ["0 / 0", "0 / 1", "1 / 0", "1 / 1"]


@pytest.mark.parametrize(
    ("data", "headings"),
    [
        (NAMES, ["dark / female", "dark / male", "blond / female", "blond / male"]),
        ({"class_names": ("dark", "blond")}, ["dark / 0", "dark / 1", "blond / 0", "blond / 1"]),
        ({"bias_values": (("female", "male"),)}, ["0 / female", "0 / male", "1 / female", "1 / male"]),
    ],
)
def test_names_of_one_record_hold_for_those_that_do_not_tell(data, headings):
    told, untold = made(four((1, 1, 0, 0)), data=data), made(four((1, 1, 0, 0)), method="pgd")
    for records in ([told, untold], [untold, told]):
        (table,) = groups_tables(records)
        assert [column.key for column in table.columns][1:] == headings


@pytest.mark.parametrize(
    ("class_names", "values"),
    [
        (("dark", "dark"), ("female", "male")),
        (("dark / female", "dark"), ("male", "female / male")),
        (("dark blond", "dark\nblond"), ("female", "male")),
        (("1",), ("female", "male")),
        (("", ""), ("", "")),
    ],
)
def test_groups_that_would_be_called_alike_have_their_numbers_as_well(class_names, values):
    (table,) = groups_tables([made(four((1, 1, 0, 0)), data={"class_names": class_names, "bias_values": (values,)})])
    keys = [column.key for column in table.columns]
    assert len(set(keys)) == 5
    assert keys[1].endswith(" [0 / 0]")
    assert keys[4].endswith(" [1 / 1]")
    assert not any("\n" in key for key in keys)


def test_overlapping_groups_that_would_be_called_alike_are_told_apart():
    (table,) = groups_tables([made([GroupFacts(7, 0.5, group=name) for name in ("a b", "c", "a\tb")])])
    assert [column.key for column in table.columns][1:] == ["a b [0]", "c", "a b [2]"]


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_columns_are_in_the_order_of_the_groups_whichever_a_method_lacks(empty):
    lacking = [GroupFacts(5, 0.5, 0, value) if value != empty else GroupFacts(0, None, 0, value) for value in range(3)]
    full = [GroupFacts(5, 0.5, 0, value) for value in range(3)]
    (table,) = groups_tables([made(lacking), made(full, method="pgd")])
    assert [column.key for column in table.columns][1:] == ["0 / 0", "0 / 1", "0 / 2"]


@pytest.mark.parametrize("groups", [[], [GroupFacts(5, 0.5, 0, value) for value in range(MOST_GROUPS + 1)]])
def test_a_method_whose_records_tell_of_no_groups_has_dashes(groups):
    records = [made(groups), made(four((1, 1, 0, 0)), method="pgd")]
    (table,) = groups_tables(records)
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["vanilla", "-", "-", "-", "-"], ["pgd", "100.00", "100.00", "0.00", "0.00"],
    ]  # fmt: skip
    assert groups_tables([shortened(record) for record in records]) == [table]


@pytest.mark.parametrize(("n_pgd", "told"), [(1, "over n = 1 run;"), (2, "over n runs;")], ids=["equal", "different"])
def test_the_number_of_runs_is_told_where_it_is_the_same_everywhere(n_pgd, told):
    runs = [made(four((1, 1, 0, 0))), *(made(four((1, 1, 0, 0)), "pgd", seed) for seed in range(n_pgd))]
    (table,) = groups_tables(runs)
    assert told in table.notes[0]


def test_an_empty_group_has_no_column_and_one_that_a_run_lacks_has_a_dash():
    records = [
        made(four((1, None, 0, None), sizes=(5, 0, 5, 0))),
        made(four((1, None, 0, 0.5), sizes=(5, 0, 5, 2)), method="pgd"),
    ]
    (table,) = groups_tables(records)
    assert [column.heading for column in table.columns] == ["method", "0 / 0 (n 5)", "1 / 0 (n 5)", "1 / 1 (n 2)"]
    assert [row[3].text for row in table.rows] == ["-", "50.00"]
    assert groups_tables([made(four((None,) * 4, sizes=(0,) * 4))]) == []


def test_sizes_that_differ_between_draws_of_the_data_are_a_range():
    records = [
        made(four((1, 1, 1, 1))),
        made(four((1, 1, 1, 1), (50, 44, 30, 9)), data_seed=1, data={"fingerprint": "b"}),
    ]
    (table,) = groups_tables(records)
    assert [column.heading for column in table.columns][2:] == [
        "0 / 1 (n 40 to 44)",
        "1 / 0 (n 30)",
        "1 / 1 (n 9 to 11)",
    ]


def test_a_run_on_equal_data_counts_once():
    same = {"fingerprint": "same"}
    one, again = (made(four((1, 1, 1, 1)), data_seed=seed, data=same) for seed in (0, 1))
    other = made(four((0, 0, 0, 0)), seed=1, data=same)
    (table,) = groups_tables([one, again, other])
    assert table.rows[0][1].value == pytest.approx(0.5)


def test_groups_that_overlap_have_names():
    (table,) = groups_tables(
        [made([GroupFacts(7, 0.5, group="male, toxic"), GroupFacts(9, 1.0, group="black, toxic")])]
    )
    assert [column.heading for column in table.columns][1:] == ["male, toxic (n 7)", "black, toxic (n 9)"]
    assert "label / bias" not in table.notes[0]


@pytest.mark.parametrize("n", [MOST_GROUPS, MOST_GROUPS + 1])
def test_more_groups_than_columns_have_no_table_also_in_brief(n):
    record = made([GroupFacts(5, 0.5, 0, bias) for bias in range(n)])
    found = groups_tables([record])
    assert len(found) == (n == MOST_GROUPS)
    assert groups_tables([shortened(record)]) == found


def test_a_report_has_the_table_in_all_formats_with_marks(tmp_path):
    for method in ("vanilla", "groupdro"):
        for dataset in ("cmnist2", "cmnist5k"):
            stored(tmp_path, made(four((0.9, 0.8, 0.7, 0.1)), method, dataset=dataset, data=NAMES))
    found = report.make(tmp_path, figures=False)
    table = found.table("groups-cmnist2")
    assert found.table("groups-cmnist5k").rows == table.rows
    assert [row[0].shown for row in table.rows] == ["groupdro‡", "vanilla"]
    assert markdown(table) in (tmp_path / "tables" / "comparison.md").read_text(encoding="utf-8")
    assert r"blond / male (n 11)" in (tmp_path / "tables" / "comparison.tex").read_text(encoding="utf-8")
    assert "blond / male (n 11)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert found.paths["groups"] == [tmp_path / "tables" / f"groups-{name}.csv" for name in ("cmnist2", "cmnist5k")]
    lines = found.paths["groups"][0].read_text(encoding="utf-8-sig").splitlines()
    assert lines[0].endswith("blond / male mean,blond / male std")
    assert lines[1].startswith("groupdro,0.9,,")
