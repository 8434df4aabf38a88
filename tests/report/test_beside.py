"""Published numbers of others beside ours: marked, never bold or tested, and bad files told with their lines."""

import csv
from pathlib import Path

import pytest
from made_records import made_record, stored

from debiasbench import cli
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report import make as report
from debiasbench.report import published

HEAD = "method,dataset,generator,metric,mean,std,n,source"
GOOD = f"""{HEAD}
LfF,cmnist:rho=0.005,pgd,acc_unbiased,91.35,1.83,3,"PGD, Table 1"
LfF,cmnist,lff,acc_unbiased,63,,,"DeNetDM, Table 1"
LC,cmnist,lff,acc_unbiased,63.5,1.1,5,LC
pgd,cmnist,pgd,acc_avg,99.99,,,"PGD, Table 1"
CNC,celeba,natural,acc_worst,88.8,0.9,3,CNC
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods on two generators' Colored MNIST."""
    folder = tmp_path_factory.mktemp("results")
    for cell in expand(["vanilla", "pgd"], ["cmnist", "mbmnist"], seeds=2).cells:
        value = {"vanilla": 0.6, "pgd": 0.9}[cell.method] + 0.01 * cell.seed
        rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_avg": value, "acc_unbiased": value})]
        stored(folder, made_record(cell, rows, {"last": 0, "val_acc": 0}))
    return folder


def written(folder, content):
    file = folder / "others.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def made(folder, file, **shown):
    return report.make(folder, figures=False, order=["vanilla", "pgd"], shown=report.Shown(beside=file, **shown))


def test_published_numbers_are_rows_below_ours_that_are_marked(folder, tmp_path):
    comparison = made(folder, written(tmp_path, GOOD), datasets=("cmnist",)).table("comparison")
    assert [[entry.shown for entry in row] for row in comparison.rows[2:]] == [
        ["LfF, published [1]", "91.35 ± 1.83", "3"],
        ["LfF, published [2]", "lff: 63.00", "-"],
        ["LC, published [3]", "lff: 63.50 ± 1.10", "-"],
    ]
    value = comparison.rows[2][1]
    assert (value.value, value.std) == pytest.approx((0.9135, 0.0183))
    assert comparison.rows[3][1].value is None  # of other data: no number in a CSV
    notes = " ".join(comparison.notes)
    assert "published: not measured here" in notes
    assert "[1] PGD, Table 1; [2] DeNetDM, Table 1; [3] LC." in notes
    assert "different data under one name, and must not be compared" in notes
    assert "2 of 5 published numbers are for other columns than these." in notes


def test_they_are_never_the_best_and_change_no_rank_and_no_test(folder, tmp_path):
    """99.99 is above all of ours."""
    content = f"{HEAD}\npgd,cmnist,pgd,acc_unbiased,99.99,0.01,3,somewhere\n"
    plain = report.make(folder, figures=False, order=["vanilla", "pgd"])
    beside = made(folder, written(tmp_path, content))
    assert [one.key for one in beside.tables] == [one.key for one in plain.tables]
    assert beside.tables[1:] == plain.tables[1:]
    ours, theirs = plain.table("comparison"), beside.table("comparison")
    assert theirs.rows[: len(ours.rows)] == ours.rows
    (row,) = theirs.rows[len(ours.rows) :]
    assert not any(entry.best or entry.tied for entry in row)


def test_every_format_says_that_they_were_not_measured_here(folder, tmp_path):
    made(folder, written(tmp_path, GOOD))
    tables = folder / "tables"
    rows = list(csv.reader((tables / "comparison.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row[0] for row in rows[3:]] == ["LfF, published [1]", "LfF, published [2]", "LC, published [3]"]
    for name in ("comparison.md", "comparison.tex", "../report.html"):
        text = (tables / name).read_text(encoding="utf-8")
        assert "published" in text
        assert "not measured here" in text
    assert r"| LfF, published \[1\] |" in (tables / "comparison.md").read_text(encoding="utf-8")
    assert "LfF, published {[}1{]} &" in (tables / "comparison.tex").read_text(encoding="utf-8")


def test_text_of_others_is_escaped(folder, tmp_path):
    content = f'{HEAD}\n"=1+1|*x*",cmnist,"a_b$",acc_unbiased,50,,,"<b>$x$ & \\y\n| z"\n'
    made(folder, written(tmp_path, content))
    tables = folder / "tables"
    assert r"=1+1\|\*x\*, published" in (tables / "comparison.md").read_text(encoding="utf-8")
    assert r"a\_b\$: 50.00" in (tables / "comparison.tex").read_text(encoding="utf-8")
    assert r"$<$b$>$\$x\$ \& \textbackslash{}y $|$ z" in (tables / "comparison.tex").read_text(encoding="utf-8")
    assert "'=1+1|*x*, published" in (tables / "comparison.csv").read_text(encoding="utf-8-sig")
    assert (
        "<b>" not in (folder / "report.html").read_text(encoding="utf-8").partition("published")[2].partition("</p>")[0]
    )


def test_with_several_rules_they_stand_in_the_first_column_alone(folder, tmp_path):
    comparison = made(
        folder, written(tmp_path, GOOD), datasets=("cmnist",), select=("last", "val_acc"), metrics=("acc_unbiased",)
    ).table("comparison")
    assert [entry.shown for entry in comparison.rows[2]] == ["LfF, published [1]", "91.35 ± 1.83", "3", "-", "-"]


def test_two_generators_of_one_source_share_a_place_and_ours_comes_first(folder, tmp_path):
    content = f"{HEAD}\nLfF,cmnist,lff,acc_unbiased,63,,,a\nLfF,cmnist,pgd,acc_unbiased,91,,,a\n"
    comparison = made(folder, written(tmp_path, content), datasets=("cmnist",)).table("comparison")
    assert comparison.rows[2][1].shown == "91.00; lff: 63.00"
    assert comparison.rows[2][1].value == pytest.approx(0.91)


def test_data_that_only_others_have_are_never_the_same(folder, tmp_path):
    content = f"{HEAD}\nLfF,mbmnist,unreleased,acc_unbiased,63,,,a\n"
    comparison = made(folder, written(tmp_path, content), datasets=("mbmnist",)).table("comparison")
    assert comparison.rows[2][1].shown == "unreleased: 63.00"


def test_a_file_of_nothing_that_is_shown_is_a_complaint(folder, tmp_path):
    content = f"{HEAD}\nCNC,celeba,natural,acc_worst,88.8,0.9,3,CNC\nX,a-set-of-mine,x,acc_avg,88.8,,,X\n"
    found = made(folder, written(tmp_path, content), datasets=("cmnist",))
    (complaint,) = found.complaints
    assert "none of its numbers is for a dataset and metric shown here: cmnist acc_unbiased." in complaint
    assert len(found.table("comparison").rows) == 2


def test_a_byte_order_mark_blank_lines_other_columns_and_another_order_are_fine(folder, tmp_path):
    head = "\ufeffsource,note,mean,std,n,metric,generator,dataset,method"
    content = f"{head}\r\n\r\nLC,mine,63.5,,,acc_unbiased,pgd,cmnist,LC\r\n"
    comparison = made(folder, written(tmp_path, content), datasets=("cmnist",)).table("comparison")
    assert [entry.shown for entry in comparison.rows[2]] == ["LC, published [1]", "63.50", "-"]


LINE = "LfF,cmnist,pgd,acc_unbiased,91,1,3,PGD"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header lacks method, dataset, generator, metric, mean, std, n, source. It must have"),
        ("method;dataset;mean\na;b;1\n", "the header lacks method, dataset"),
        (HEAD.replace(",std", "") + "\n", "line 1: the header lacks std."),
        (f"{HEAD},mean\n", "line 1: the header names a column twice"),
        (f"{HEAD}\n{LINE},more\n", "line 2: it has 9 fields, and the header 8"),
        (f"{HEAD}\n{LINE}\n\nLfF,cmnist,pgd\n", "line 4: it has 3 fields"),
        (f"{HEAD}\n" + LINE.replace("unbiased", "wurst"), "line 2: no metric 'acc_wurst'. Did you mean 'acc_worst'?"),
        (f"{HEAD}\n" + LINE.replace("91", "ninety"), "line 2: mean must be a number, but is 'ninety'."),
        (f"{HEAD}\n" + LINE.replace("91", "nan"), "line 2: mean must be a number, but is 'nan'."),
        (f"{HEAD}\n" + LINE.replace("91", "91 %"), "line 2: mean must be a number, but is '91 %'."),
        (f"{HEAD}\n" + LINE.replace("91", "191"), "line 2: mean must be per cent, from 0 to 100, but is '191'."),
        (f"{HEAD}\n" + LINE.replace("91", ""), "line 2: mean is empty."),
        (f"{HEAD}\n" + LINE.replace(",1,", ",-1,"), "line 2: std must be per cent, from 0 to 100, but is '-1'."),
        (f"{HEAD}\n" + LINE.replace(",1,", ",inf,"), "line 2: std must be a number"),
        (f"{HEAD}\n" + LINE.replace(",3,", ",0,"), "line 2: n must be a whole number of at least 1, but is '0'."),
        (f"{HEAD}\n" + LINE.replace(",3,", ",2.5,"), "line 2: n must be a whole number"),
        (f"{HEAD}\n" + LINE.replace(",pgd,", ",,"), "line 2: generator is empty."),
        (f"{HEAD}\n" + LINE.replace(",PGD", ","), "line 2: source is empty."),
        (f"{HEAD}\n{LINE}\n{LINE}\n", "line 3: the same method, dataset, generator, metric, source as in line 2."),
        (f"{HEAD}\n" + LINE.replace(",91,", ",0.91,"), "accuracies must be in per cent, and the highest is 0.91."),
        (f"{HEAD}\n" + LINE.replace("cmnist", "cmnist:rha=1"), "line 2: Unknown parameter 'rha' of cmnist."),
        (f"{HEAD}\n" + LINE.replace("cmnist", "cmnist:rho=.1|.2"), "line 2: One dataset is needed here"),
        (f'{HEAD}\n"LfF,cmnist\n', "it is not CSV"),
        (f"{HEAD}\n".encode() + b"\xff\xfe,", "is not UTF-8 text (byte"),
        (None, "cannot be read: No such file"),
        (Path.mkdir, "it is not a regular file, or too large"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_error_with_its_line(folder, tmp_path, capsys, content, said):
    file = tmp_path / "others.csv"
    if callable(content):
        content(file)
    elif content is not None:
        written(tmp_path, content)
    (folder / "tables" / "comparison.md").unlink(missing_ok=True)
    assert cli.main(["report", str(folder), "--beside", str(file)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: {file}")
    assert said in told.err
    assert "Traceback" not in told.err
    assert not (folder / "tables" / "comparison.md").exists()


def test_all_bad_lines_are_told_at_once(tmp_path):
    lines = [LINE.replace("91", f"x{n}").replace("LfF", f"m{n}") for n in range(14)]
    with pytest.raises(BenchmarkError) as caught:
        published.read_numbers(
            written(tmp_path, "\n".join([HEAD, *lines])), HEAD.split(","), unique=("method",), metrics=["acc_unbiased"]
        )
    assert str(caught.value).count("must be a number") == 10
    assert str(caught.value).endswith("4 more.")


def test_the_papers_own_files_are_read_by_the_same_door():
    lines = published.numbers("table1")
    assert list(lines.columns) == list(published.OF_THE_PAPER)
    first = lines.iloc[0]
    assert (first["mean"], first["std"], first["n"], first["note"]) == (60.94, 0.97, 3, "")
