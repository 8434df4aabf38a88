"""What goes into a paper as it is: display titles, captions and labels, order and grouping."""

import json
import re
from dataclasses import replace

import pytest
from made_records import made_record, stored

from debiasbench.cli import main
from debiasbench.datasets import registry as datasets
from debiasbench.experiments import Experiment, write_grid
from debiasbench.grid import expand
from debiasbench.records import EpochFacts
from debiasbench.report import figures, page, tables
from debiasbench.report import make as report
from debiasbench.report.phrases import Phrase, display_titles, displayed, joined
from debiasbench.report.style import looks

METHODS = ["vanilla", "pgd:norm=l1", "dpr", "groupdro"]
DATASETS = ["cmnist:rho=0.01", "cmnist5k"]
MEANS = {"vanilla": 0.4, "pgd": 0.8, "groupdro": 0.9, "lff": 0.6}


def record(cell, **facts):
    """A finished record by hand."""
    value = MEANS.get(cell.method, 0.5) + 0.01 * (cell.seed % 4) - 0.1 * ("disagreement" in cell.method_title)
    test = {"acc_avg": value, "acc_unbiased": value, "acc_worst": value / 2}
    rows = [EpochFacts(epoch, {"loss": 0.1 * epoch, "acc_avg": 0.9}, test) for epoch in (1, 2)]
    rules = {"last": 1, "val_loss": 0, "val_acc": 1, "group_val": 1, "test_oracle": 1}
    made_on = {"device_kind": "cpu", "precision": "fp32", "code": cell.code() if cell.method in MEANS else {}}
    return made_record(cell, rows, rules, provenance=made_on, data=facts)


def fill(folder, methods=METHODS, data=DATASETS, seeds=range(3), **facts):
    for cell in expand(list(methods), list(data), seeds=list(seeds)).cells:
        stored(folder, record(cell, **facts))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four methods on two datasets, three seeds, in the order of a run."""
    made = fill(tmp_path_factory.mktemp("results"))
    titles = list(dict.fromkeys(cell.method_title for cell in expand(METHODS, DATASETS, seeds=1).cells))
    write_grid(made, Experiment("", METHODS, DATASETS, seeds=[0, 1, 2]), titles)
    return made


def latex_of(folder, **options):
    """(the report, its LaTeX)."""
    made = report.make(folder, figures=False, **options)
    return made, (folder / "tables" / "comparison.tex").read_text(encoding="utf-8")


# ---- display titles --------------------------------------------------------------------------------------------------


def test_a_phrase_is_text_that_can_be_said_with_other_titles():
    inner = Phrase("{method} ({})", "{braces} %", method="pgd")
    phrase = Phrase("{dataset}: {}", joined("; ", [inner, "plain", inner]), dataset="bar")
    assert phrase == "bar: pgd ({braces} %); plain; pgd ({braces} %)"
    assert displayed(phrase, {"method": {"pgd": "P{G}D"}}) == "bar: P{G}D ({braces} %); plain; P{G}D ({braces} %)"
    assert displayed("pgd", {"method": {"pgd": "PGD"}}) == "pgd"  # a word like any other
    assert joined(", ", []) == ""


def test_display_titles_are_looked_up_and_no_part_of_a_cell():
    cells = expand(METHODS, DATASETS, seeds=1, data_seeds=2).cells
    assert display_titles(cells) == {
        "method": {
            "vanilla": "Vanilla", "pgd:norm=l1": "PGD, norm=l1", "pgd:score=disagreement": "DPR", "groupdro": "GroupDRO"
        },
        "dataset": {
            "cmnist5k": "Colored MNIST (5,000), 2 %", "cmnist:rho=0.01": "Colored MNIST, 1 %",
            "cmnist5k:data_seed=1": "Colored MNIST (5,000), 2 %, data_seed=1",
            "cmnist:data_seed=1,rho=0.01": "Colored MNIST, 1 %, data_seed=1",
        },
        "dataset_name": {"cmnist5k": "Colored MNIST (5,000)", "cmnist": "Colored MNIST"},
    }  # fmt: skip
    assert not any("display" in key or "PGD" in str(value) for key, value in cells[1].to_json().items())


def test_what_is_not_known_here_keeps_its_title():
    (cell,) = expand(["pgd"], ["cmnist5k"], seeds=1).cells
    strange = [
        replace(cell, method="theirs", method_title="theirs:x=1", dataset="far", dataset_title="far:y=2"),
        replace(cell, method_title="renamed"),  # of a known method, under another name
        replace(cell, dataset_title="cmnist5k:rho=0.7", dataset_parameters={"no": "such"}),
        replace(cell, method_title="pgd:not a title"),
    ]
    found = display_titles(strange)
    assert found["method"] == {name: name for name in ("theirs:x=1", "renamed", "pgd", "pgd:not a title")} | {
        "pgd": "PGD"
    }
    assert found["dataset"]["far:y=2"] == "far:y=2"
    assert found["dataset"]["cmnist5k:rho=0.7"] == "cmnist5k:rho=0.7"
    assert found["dataset_name"]["far"] == "far"


@pytest.mark.parametrize("broken", [lambda _: 1 / 0, lambda _: {"rho": 3}, lambda _: None])
def test_a_dataset_that_cannot_say_its_parameters_keeps_its_title(monkeypatch, broken):
    monkeypatch.setattr(datasets.get("cmnist5k")[0], "in_words", broken)
    assert display_titles(expand(["pgd"], ["cmnist5k"], seeds=1).cells)["dataset"] == {"cmnist5k": "cmnist5k"}


def test_no_two_titles_become_one():
    (cell,) = expand(["pgd"], ["cmnist5k"], seeds=1).cells
    cells = [cell, replace(cell, method="PGD", method_title="PGD")]  # theirs, which is not known here
    assert display_titles(cells)["method"] == {"pgd": "pgd", "PGD": "PGD"}


def test_a_method_looks_the_same_under_both_titles():
    for name, display in (("pgd", "PGD"), ("lff", "LfF"), ("selecmix-lff", "SelecMix + LfF")):
        assert looks([name])[name] == looks([display, "DPR"])[display]
    assert len({one.colour for one in looks(["DPR", "PGD"]).values()}) == 2


# ---- LaTeX -----------------------------------------------------------------------------------------------------------


def test_latex_has_display_titles_and_what_is_typed_stays_elsewhere(folder, capsys):
    made, latex = latex_of(folder)
    words = "pgd:norm=l1", "pgd:score=disagreement", "cmnist:rho=0.01", "cmnist5k"
    body = "\n".join(line for line in latex.splitlines() if r"\label" not in line)
    assert not [word for word in words if word in body]
    for text in (
        "PGD, norm=l1",
        "DPR",
        "GroupDRO",
        r"Colored MNIST, 1 \%",
        r"Selection rules on Colored MNIST (5,000)",
    ):
        assert text in body
    assert r"$\ddagger$ GroupDRO trains with bias labels" in body
    assert "Is the method better than Vanilla?" in body
    assert [row[0].text for row in made.table("comparison").rows] == [
        *METHODS[:2],
        "pgd:score=disagreement",
        "groupdro",
    ]
    for name in ("comparison.md", "comparison.csv", "tests.csv", "results.csv"):
        text = (folder / "tables" / name).read_text(encoding="utf-8")
        assert "pgd:norm=l1" in text
        assert "PGD" not in text
    assert main(["report", str(folder), "--methods", "vanilla", "--datasets", "cmnist5k"]) == 0
    assert "Colored" not in capsys.readouterr().out


def test_the_caption_says_what_the_table_shows(folder):
    _, latex = latex_of(folder)
    caption = next(line for line in latex.splitlines() if r"\caption[Comparison]" in line)
    for text in (
        "Test split, last epoch", r"sample standard deviation (n - 1) over n = 3 runs", "best in bold", r"$\sim$",
        "one-sided Welch test", "Holm's correction", r"$\ddagger$: trains with bias labels",
    ):  # fmt: skip
        assert text in caption
    assert r"$\dagger$" not in caption
    captions = re.findall(r"\\caption\[.*\n  \\label\{tab:(.*)\}", latex)
    assert captions == ["comparison", "selection-cmnist-rho-0.01", "selection-cmnist5k", "ranks", "tests"]
    selection = next(line for line in latex.splitlines() if r"\caption[Selection rules" in line)
    assert "sample standard deviation (n - 1) over n = 3 runs" in selection


@pytest.mark.parametrize("key", ["cmnist:rho=0.1", r"\input{x}", "漢字", "a_b%c", "--", "größe", "$x"])
def test_labels_are_of_safe_characters(key):
    table = tables.Table(f"selection-{key}", "T", [tables.Column("a", "a")], [tables.words("x")], [])
    text = tables.latex_file([table, table, replace(table, key=f"selection-{key}-2")])
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert len(set(labels)) == len(labels) == 3
    assert all(re.fullmatch(r"tab:selection[A-Za-z0-9.-]*", label) for label in labels)


def test_n_stands_in_the_table_where_it_is_not_the_same(tmp_path):
    fill(tmp_path, ["vanilla", "pgd"])
    fill(tmp_path, ["lff"], seeds=range(5))
    _, latex = latex_of(tmp_path)
    assert "over n runs; best" in latex
    rows = re.findall(r"    (?:Vanilla|LfF) .* & (\d) & .* & (\d) \\\\", latex)
    assert sorted(rows) == [("3", "3"), ("5", "5")]


def heads(latex):
    """The lines of headings of the first table."""
    part = latex.partition(r"\toprule")[2].partition(r"\midrule")[0]
    return [line.strip() for line in part.strip().splitlines()]


def test_columns_stand_together_by_dataset_or_by_metric(folder):
    metrics = ("acc_unbiased", "acc_worst")
    made, latex = latex_of(folder, shown=report.Shown(metrics=metrics))
    above = [r" & \multicolumn{2}{c}{Colored MNIST, 1 \%} & \multicolumn{2}{c}{Colored MNIST (5,000), 2 \%} \\"]
    below = r"method & acc\_unbiased (\%) & acc\_worst (\%) & acc\_unbiased (\%) & acc\_worst (\%) \\"
    assert heads(latex) == [above[0].strip(), r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}", below]
    by_metric, latex = latex_of(folder, shown=report.Shown(metrics=metrics, by="metric"))
    assert heads(latex)[0].startswith(r"& \multicolumn{2}{c}{acc\_unbiased (\%)} & \multicolumn{2}{c}{acc\_worst (\%)}")
    assert (
        heads(latex)[2]
        == r"method & " + r" & ".join([r"Colored MNIST, 1 \% & Colored MNIST (5,000), 2 \%"] * 2) + r" \\"
    )
    first, second = ([column.key for column in one.table("comparison").columns][1::2] for one in (made, by_metric))
    assert first == [f"{data} {metric}" for data in DATASETS for metric in metrics]
    assert second == [f"{data} {metric}" for metric in metrics for data in DATASETS]


# ---- order -----------------------------------------------------------------------------------------------------------

TITLES = ["vanilla", "pgd:norm=l1", "pgd:score=disagreement", "groupdro"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, TITLES), ({"order": "score"}, ["groupdro", "pgd:norm=l1", "pgd:score=disagreement", "vanilla"]),
        ({"order": "name"}, sorted(TITLES)), ({"methods": ("groupdro", "pgd")}, ["groupdro", *TITLES[1:3]]),
        ({"methods": ("pgd:score=disagreement", "pgd", "vanilla")}, [TITLES[2], TITLES[1], "vanilla"]),
        ({"methods": ("vanilla", "pgd"), "order": "score"}, [*TITLES[1:3], "vanilla"]),
    ],
)  # fmt: skip
def test_methods_stand_in_the_order_that_is_asked_for(folder, shown, expected):
    made, _ = latex_of(folder, shown=report.Shown(**shown))
    assert [row[0].value for row in made.table("comparison").rows] == expected
    assert [row[0].value for row in made.table("selection-cmnist5k").rows] == expected


def test_datasets_stand_in_the_order_of_their_names(folder):
    for names in (DATASETS, DATASETS[::-1]):
        made, _ = latex_of(folder, shown=report.Shown(datasets=tuple(names)))
        keys = [column.key for column in made.table("comparison").columns][1::2]
        assert keys == [f"{name} acc_unbiased" for name in names]


def test_a_method_without_a_run_in_the_first_column_comes_last_by_score(tmp_path):
    fill(tmp_path, ["vanilla", "pgd"])
    fill(tmp_path, ["groupdro"], ["cmnist5k"])
    made, _ = latex_of(tmp_path, shown=report.Shown(order="score"))
    comparison = made.table("comparison")
    assert comparison.columns[1].key == "cmnist:rho=0.01 acc_unbiased"
    assert [(row[0].value, row[1].text == "-") for row in comparison.rows] == [
        ("pgd", False), ("vanilla", False), ("groupdro", True)
    ]  # fmt: skip


def test_order_changes_no_reference(folder):
    for order in ("given", "score", "name"):
        made, _ = latex_of(folder, shown=report.Shown(order=order))
        assert "vanilla" not in {row[1].value for row in made.table("tests").rows}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """What passes the gate of --strict."""
    return fill(tmp_path_factory.mktemp("sound"), ["vanilla", "pgd"], seeds=range(8))


@pytest.mark.parametrize(
    "shown",
    [
        {}, {"order": "score"}, {"order": "name"}, {"by": "metric"}, {"datasets": tuple(DATASETS)},
        {"datasets": tuple(DATASETS[::-1]), "by": "metric", "order": "score"}, {"methods": ("vanilla", "pgd")},
    ],
)  # fmt: skip
def test_a_sealed_report_verifies_in_every_order(sound, shown):
    metrics = ("acc_unbiased", "acc_worst")
    assert report.make(sound, figures=False, strict=True, shown=report.Shown(metrics=metrics, **shown)).passed
    file = sound / "tables" / "strict.json"
    assert report.verify(file)[0], report.verify(file)[1]
    assert json.loads(file.read_text(encoding="utf-8")).get("by") == shown.get("by")  # where it is not the usual


# ---- figures and the page --------------------------------------------------------------------------------------------


def test_figures_show_display_titles_and_their_files_are_named_as_before(folder, monkeypatch):
    seen = {}

    def accuracy_figure(values, *, metric, title, order):
        return list(values), title, order

    monkeypatch.setattr(figures, "accuracy_figure", accuracy_figure)
    monkeypatch.setattr(figures, "score_histogram", lambda *_, **__: None)
    monkeypatch.setattr(report, "save", lambda figure, stem: seen.update({stem.name: figure}) or [])
    report.make(folder)
    names = ["Vanilla", "PGD, norm=l1", "DPR", "GroupDRO‡"]
    assert seen == {
        "accuracies-cmnist5k": (names, "Colored MNIST (5,000), 2 %", names),
        "accuracies-cmnist+rho=0.01": (names, "Colored MNIST, 1 %", names),
    }


def test_headings_of_the_page_say_both_titles_and_curves_are_called_as_in_figures(folder, monkeypatch):
    seen = []
    draw = page.learning_curves
    monkeypatch.setattr(
        page, "learning_curves", lambda test, *rest, **more: seen.append(list(test)) or draw(test, *rest, **more)
    )
    made = report.make(folder, figures=False)
    text = made.paths["report"][0].read_text(encoding="utf-8").replace("<wbr>", "")
    headings = re.findall(r"<h3[^>]*>(.*?)</h3>", text)
    assert headings[-2:] == ["Colored MNIST, 1 % (cmnist:rho=0.01)", "Colored MNIST (5,000), 2 % (cmnist5k)"]
    assert seen == [["Vanilla", "PGD, norm=l1", "DPR", "GroupDRO‡"]] * 2


@pytest.mark.parametrize("words", [["--order", "best"], ["--by", "rows"], ["--verify", "x.json", "--by", "metric"]])
def test_options_that_mean_nothing_are_refused(folder, words, capsys):
    try:
        code = main(["report", *([] if "--verify" in words else [str(folder)]), *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert words[-2] in capsys.readouterr().err
