"""Tables on terminals: nothing is cut within a number, a word or an option, at any width."""

import io
import itertools

import pytest
from rich.cells import cell_len

from debiasbench.console import PlainConsole
from debiasbench.report.tables import KNOWS, NOTHING, Column, Entry, Table, count, number, percent, words
from debiasbench.report.terminal import shown_in

TITLES = [
    "vanilla",
    "pgd:gce_form=official,norm=l1",
    "pgd:alpha=0.3,gce_form=official,score=loss,norm=linf",
    "groupdro",
]
DATA = ["cmnist5k", "cmnist5k:rho=0.05,epochs=5,learning_rate=0.0005", "imagefolder:title=Vögel am See,size=64"]


def comparison():
    columns = [Column("method", "method", numeric=False)]
    for title in DATA:
        columns += [Column(title, f"{title} acc_avg (%)"), Column(f"{title} n", "n", counts_runs=True)]
    rows = []
    for index, title in enumerate(TITLES):
        row = [Entry(title, title, mark=KNOWS if title == "groupdro" else "")]
        for place in range(len(DATA)):
            row += [percent(0.1 * index + 0.013 * place, 0.0123, 3), count(3)]
        rows.append(row)
    return Table("comparison", "Comparison", columns, rows, [])


def of_tests():
    names = ["n", "gap", "95 % interval", "p Welch", "Holm", "p paired", "Holm ", "p Wilcoxon", "p sign flip", "g"]
    columns = [Column("dataset", "dataset", numeric=False), Column("method", "method", numeric=False)]
    columns += [Column(name, name) for name in names]
    rows = [
        [*words(dataset, method), Entry(3, "3 / 3"), number(0.63, "{:+.2f}".format), Entry(1.0, "-49.7 .. -34.5"),
         *[number(0.1 + index / 1000, "{:.4f}".format) for index in range(4)], NOTHING, NOTHING, Entry(1.0, "-14.4")]
        for dataset, method in itertools.product(DATA, TITLES)
    ]  # fmt: skip
    return Table("tests", "Tests against the reference", columns, rows, [])


def inspection():
    columns = [Column("split", "split", numeric=False), Column("n", "n"), Column("bias", "bias", numeric=False),
               Column("smallest", "smallest group")]  # fmt: skip
    rows = [[*words(split), count(4795), *words("background"), Entry(1, "56 (waterbird / land; 0 empty)")]
            for split in ("train", "valid", "test")]  # fmt: skip
    return Table("inspection", "birds: 2 classes (landbird, waterbird)", columns, rows, [])


def drawn(table, width):
    """Each part of a table: a list of its rows, heading first, each of its cells a list of lines."""
    console = PlainConsole(width=width, file=io.StringIO(), highlight=False)
    for part in shown_in(table, console):
        console.print(part)
    text = console.file.getvalue()
    assert all(cell_len(line.rstrip()) <= width for line in text.splitlines())
    parts = []
    for line in text.splitlines():
        if line.startswith("┏"):
            parts.append([])
        if line[:1] in "┃│" and line[:1]:
            parts[-1].append([cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")])
    return parts, text


TABLES = [comparison, of_tests, inspection]


@pytest.mark.parametrize("width", [62, 80, 100, 170, 400])
@pytest.mark.parametrize("made", TABLES)
def test_numbers_and_options_stay_whole(made, width):
    table = made()
    parts, _ = drawn(table, width)
    cells = {cell for part in parts for line in part for cell in line}
    for row in table.rows:
        for column, entry in zip(table.columns, row, strict=True):
            if column.numeric:
                assert entry.shown in cells
    pieces = {piece for cell in cells for piece in cell.replace(",", ", ").replace(":", ": ").split()}
    for title in (row[index].text for row in table.rows for index in range(2) if not table.columns[index].numeric):
        assert set(title.replace(",", ", ").replace(":", ": ").split()) <= {one.rstrip(KNOWS) for one in pieces}


@pytest.mark.parametrize("width", [50, 80, 120])
@pytest.mark.parametrize("made", TABLES)
def test_a_table_that_is_too_wide_stands_in_parts_with_all_of_it(made, width):
    """Every column is in one part, and every part names its rows."""
    table = made()
    parts, _ = drawn(table, width)
    n_titles = 2 if made is of_tests else 1
    heads = []
    for part in parts:
        columns = list(zip(*part, strict=True))
        whole = ["".join(one).replace(" ", "") for one in columns]
        heads += whole[n_titles:]
        for index in range(n_titles):
            expected = table.columns[index].heading + "".join(row[index].shown for row in table.rows)
            assert whole[index] == expected.replace(" ", "")
    expected = [
        (column.heading + "".join(row[index].shown for row in table.rows)).replace(" ", "")
        for index, column in enumerate(table.columns)
    ]
    assert heads == expected[n_titles:]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_number_of_runs_stays_beside_its_value(width):
    parts, _ = drawn(comparison(), width)
    assert all(len(line) % 2 for part in parts for line in part)


@pytest.mark.parametrize("made", TABLES)
def test_a_wide_terminal_shows_a_table_as_one_without_wrapping(made):
    table = made()
    parts, text = drawn(table, 400)
    assert len(parts) == 1
    assert len(parts[0]) == 1 + len(table.rows)
    assert text.lstrip().startswith(table.title)
    assert text.count(table.title) == 1


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (39, ["pgd:alpha=0.3,", "gce_form=official,", "score=loss,", "norm=linf"]),
        (47, ["pgd:alpha=0.3,", "gce_form=official,", "score=loss,norm=linf"]),
        (60, ["pgd:alpha=0.3,gce_form=official,", "score=loss,norm=linf"]),
        (90, ["pgd:alpha=0.3,gce_form=official,score=loss,norm=linf"]),
    ],
)
def test_titles_wrap_between_options(width, lines):
    columns = [Column("method", "method", numeric=False), Column("v", "value")]
    table = Table("x", "x", columns, [[*words(TITLES[2]), percent(0.5, 0.1, 3)]], [])
    ((_, *rows),), _ = drawn(table, width)
    assert [row[0] for row in rows] == lines


@pytest.mark.parametrize("n", ["1,050", "12,345", "1,234,567", "1,050 to 12,345"])
@pytest.mark.parametrize("name", ["ab / cd", "landbird / water", "a name, in:two parts"])
def test_numbers_in_headings_stay_whole(name, n):
    columns = [Column("method", "method", numeric=False), Column("v", f"{name} (n {n})")]
    for width in range(28, 60):
        _, text = drawn(Table("x", "x", columns, [[*words("pgd"), percent(0.5, 0.1, 3)]], []), width)
        assert all(part in text for part in n.split())


@pytest.mark.parametrize("text", ["x" * 100, "漢字" * 40, "a,b" * 60, "a: , ,:b", "::,,", "pgd:root=/" + "long/" * 30])
@pytest.mark.parametrize("width", [20, 33, 80])
def test_no_text_is_too_long_or_too_odd(text, width):
    table = Table("x", "x", [Column("method", "method", numeric=False), Column("v", "value")],
                  [[*words(text), Entry(1.0, "1.0")]], [])  # fmt: skip
    parts, _ = drawn(table, width)
    assert "".join(line[0] for line in parts[0]).replace(" ", "") == f"method{text}".replace(" ", "")


def test_a_table_without_rows_or_numbers_is_drawn():
    heads = [Column("method", "method", numeric=False), Column("why", "why it was left out", numeric=False)]
    assert drawn(Table("x", "x", heads, [], []), 80)[0] == [[["method", "why it was left out"]]]
    rows = [words("pgd", "it needs a bias")]
    assert drawn(Table("x", "x", heads, rows, []), 80)[0][0][1] == ["pgd", "it needs a bias"]
