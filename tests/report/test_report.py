"""What the report shows as asked: columns, ranks, pages, LaTeX, and the paper's numbers beside ours."""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import changed, made_record, stored
from safetensors.torch import save as to_bytes
from scipy import stats

from debiasbench.cell import Cell
from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.experiments import Experiment, names, read_experiment, write_grid
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, StageFacts, arrays_path, read_records, record_path, write_record
from debiasbench.report import figures, outcomes, phrases, published, tables
from debiasbench.report import make as report
from debiasbench.report.results import Measure, load_results, ranks
from debiasbench.running.plan import plan
from debiasbench.weights import weights_path

ROOT = Path(__file__).parent.parent.parent
SEEDS = range(5)
MEANS = {"vanilla": 0.40, "pgd": 0.83, "lff": 0.80, "disen": 0.64}
SPREAD = {"vanilla": 0.01, "pgd": 0.02, "lff": 0.05, "disen": 0.03}


def value_of(method, seed, shift=0.0):
    """A made-up accuracy."""
    name = method.partition(":")[0]
    noise = np.random.default_rng([seed, len(method), round(1000 * MEANS[name])]).normal()
    return float(MEANS[name] + SPREAD[name] * noise + shift)


def record(cell, value, *, official=True, **result):
    """A record by hand: two epochs that end at `value`."""
    rows = [
        EpochFacts(
            epoch,
            {"loss": loss, "acc_avg": 0.9, "acc_conflict": 0.5, "acc_aligned": 0.9, "n_conflict": 20.0},
            {
                "loss": 0.5, "acc_avg": test, "acc_unbiased": test, "acc_conflict": test - 0.1, "acc_aligned": 0.95,
                "acc_worst": test / 2, "n_worst": 10.0,
            },
        )
        for epoch, loss, test in ((1, 0.1, value - 0.2), (2, 0.2, value))
    ]  # fmt: skip
    end = {"net": {"test": {"acc_unbiased": value / 4}}}
    stages = (StageFacts(2, 1, evaluated=False, end=end), StageFacts(5, 2, evaluated=True))
    selection = {"last": 1, "val_loss": 0, "val_acc": 1, "group_val": 1, "test_oracle": 1}
    return made_record(cell, rows, selection, data={"official": official}, stages=stages, **result)


def fill(folder, methods, datasets, *, seeds=SEEDS, epochs=None, shift=0.0):
    """Made-up records of a grid."""
    for place, dataset in enumerate(datasets):
        for cell in expand(methods, [dataset], seeds=list(seeds), epochs=epochs).cells:
            value = value_of(cell.method_title, cell.seed, shift + 0.01 * place)
            generator = torch.Generator().manual_seed(cell.seed)
            arrays = {
                "score": torch.rand(100, generator=generator),
                "train_conflict": torch.rand(100, 1, generator=generator) < 0.2,
            }  # fmt: skip
            stored(folder, record(cell, value), arrays)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four methods on two datasets, five seeds."""
    return fill(tmp_path_factory.mktemp("results"), list(MEANS), ["cmnist5k", "cmnist5k:rho=0.05"])


# ---- the comparison ------------------------------------------------------------------------------------------


def test_columns_are_chosen_on_the_command_line(folder, capsys):
    words = ["--metrics", "acc_unbiased", "acc_worst", "--select", "last", "val_loss", "--methods", "vanilla", "pgd"]
    assert main(["report", str(folder), *words, "--datasets", "cmnist5k"]) == 0
    found = report.make(
        folder,
        figures=False,
        order=["vanilla", "pgd"],
        shown=report.Shown(
            ("vanilla", "pgd"), ("cmnist5k:rho=0.05",), ("acc_unbiased", "acc_worst"), ("last", "val_loss")
        ),
    )
    comparison = found.table("comparison")
    assert [column.heading for column in comparison.columns[1::2]] == [
        f"cmnist5k:rho=0.05 {metric}{rule} (%)"
        for metric in ("acc_unbiased", "acc_worst")
        for rule in ("", ", val_loss")
    ]
    assert [row[0].value for row in comparison.rows] == ["vanilla", "pgd"]
    expected = [value_of("pgd", seed, 0.01) for seed in SEEDS]
    for entry, shift, half in zip(comparison.rows[1][1::2], (0, 0.2, 0, 0.2), (1, 1, 2, 2), strict=True):
        mean, std = (np.mean(expected) - shift) / half, np.std(expected, ddof=1) / half
        assert entry.text == f"{100 * mean:.2f} ± {100 * std:.2f}"
        assert (entry.value, entry.std) == pytest.approx((mean, std))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "acc_wurst"], "Did you mean 'acc_worst'"),
        (["--select", "lost"], "Did you mean 'last'"),
        (["--methods", "pdg"], "Did you mean 'pgd'"),
        (["--datasets", "cmnist5"], "Did you mean 'cmnist5k'"),
    ],
)
def test_what_is_not_there_is_told(folder, capsys, words, message):
    assert main(["report", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_label_with_two_meanings_is_refused(tmp_path):
    """As when a default changed between versions: T = 1 in old records, 5 in new ones, on different seeds."""
    fill(tmp_path, ["pgd"], ["cmnist5k"], seeds=[0, 1])
    (cell,) = expand(["pgd"], ["cmnist5k"], seeds=[2]).cells
    values = cell.to_json()
    values["method_parameters"]["alpha"] = 0.5
    write_record(record_path(tmp_path, cell), record(Cell.from_json(values), 0.8))
    with pytest.raises(
        BenchmarkError, match=r"'pgd' on cmnist5k stands for runs with different settings.*alpha 0.5 and 0.7"
    ):
        report.make(tmp_path, figures=False)


def test_an_older_record_without_a_parameter_goes_with_new_ones(tmp_path):
    fill(tmp_path, ["pgd"], ["cmnist5k"], seeds=[0, 1])
    (cell,) = expand(["pgd"], ["cmnist5k"], seeds=[2]).cells
    values = cell.to_json()
    del values["method_parameters"]["restart_lr"]
    write_record(record_path(tmp_path, cell), record(Cell.from_json(values), 0.8))
    comparison = report.make(tmp_path, figures=False).table("comparison")
    assert comparison.rows[0][2].value == 3


def test_the_tables_follow_from_the_raw_numbers(folder):
    """By a few lines of pandas and scipy, and Holm by a second implementation."""
    made = report.make(folder, reference="vanilla", figures=False)
    raw = pd.read_csv(folder / "tables" / "results.csv")
    raw = raw[(raw["split"] == "test") & (raw["select"] == "last")]
    grouped = raw.groupby(["dataset", "method"]).acc_unbiased
    comparison = made.table("comparison")
    for row in comparison.rows:
        method = row[0].value
        for index, dataset in enumerate(("cmnist5k", "cmnist5k:rho=0.05")):
            mean, std = grouped.mean()[dataset, method], grouped.std(ddof=1)[dataset, method]
            assert row[1 + 2 * index].text == f"{100 * mean:.2f} ± {100 * std:.2f}"
    tests = pd.read_csv(folder / "tables" / "tests.csv").set_index(["dataset", "method"])
    p = {}
    for dataset, method in tests.index:
        x, y = (raw[(raw.dataset == dataset) & (raw.method == one)].acc_unbiased for one in (method, "vanilla"))
        p[dataset, method] = stats.ttest_ind(x, y, equal_var=False, alternative="greater").pvalue
        assert tests.welch[dataset, method] == pytest.approx(p[dataset, method], rel=1e-6)
        assert tests.paired[dataset, method] == pytest.approx(
            stats.ttest_rel(x, y, alternative="greater").pvalue, rel=1e-6
        )
    ordered, running = sorted(p, key=p.get), 0.0
    for place, key in enumerate(ordered):
        running = max(running, min(1.0, p[key] * (len(ordered) - place)))
        assert tests.welch_holm[key] == pytest.approx(running, rel=1e-6)


def test_ranks_share_places_that_no_test_separates(folder):
    table = to_frame_of(folder)
    columns = [Measure("cmnist5k", "acc_unbiased"), Measure("cmnist5k:rho=0.05", "acc_unbiased")]
    found = ranks(table, columns)
    pairs, p = [], []
    for column in columns:
        for a in MEANS:
            for b in MEANS:
                if a != b:
                    x, y = (values(table, column.dataset, one) for one in (a, b))
                    pairs.append((column, a, b))
                    p.append(stats.ttest_ind(x, y, equal_var=False, alternative="greater").pvalue)
    order, running, better = np.argsort(p), 0.0, set()
    for rank, place in enumerate(order):
        running = max(running, min(1.0, p[place] * (len(p) - rank)))
        if running < 0.05:
            better.add(pairs[place])
    for column in columns:
        for method in MEANS:
            n_better = sum((column, other, method) in better for other in MEANS)
            assert found.loc[method, column] == 1 + n_better
    assert found.loc["pgd"].tolist() == found.loc["lff"].tolist() == [1, 1]
    assert (found.loc["vanilla"] > found.loc["pgd"]).all()


def to_frame_of(folder):
    return load_results(folder)


def values(table, dataset, method):
    chosen = table[(table.dataset == dataset) & (table.method == method)]
    return chosen[(chosen["split"] == "test") & (chosen["select"] == "last")].acc_unbiased


def test_ranks_over_enough_datasets_are_tested_and_drawn(tmp_path, monkeypatch):
    for other in ("score_histogram", "accuracy_figure"):  # which take their time
        monkeypatch.setattr(figures, other, lambda *_, **__: None)
    datasets = [f"cmnist5k:rho={rho}" for rho in (0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4)]
    fill(tmp_path, list(MEANS), datasets, seeds=range(2))
    made = report.make(tmp_path)
    table = made.table("ranks")
    assert "Nemenyi" in " ".join(table.notes)
    assert table.columns[-1].heading == "average"
    means = (
        to_frame_of(tmp_path)
        .query("split == 'test' and select == 'last'")
        .pivot_table(index="dataset", columns="method", values="acc_unbiased")
    )
    expected = means.rank(axis=1, ascending=False).mean()
    averages = {row[0].value: row[-1] for row in table.rows}
    assert {name: entry.value for name, entry in averages.items()} == pytest.approx(expected.to_dict())
    assert {name: entry.text for name, entry in averages.items()} == {name: f"{n:.2f}" for name, n in expected.items()}
    assert (tmp_path / "figures" / "ranks.pdf").is_file()


def test_ranks_over_few_datasets_are_not_tested(folder):
    table = report.make(folder, figures=False).table("ranks")
    assert "Not tested: a test needs" in " ".join(table.notes)


def test_methods_that_know_the_bias_are_marked_and_never_the_best(tmp_path):
    cells = expand(["vanilla", "pgd", "groupdro"], ["cmnist5k"], seeds=3).cells
    for cell in cells:
        value = {"vanilla": 0.4, "pgd": 0.8, "groupdro": 0.9}[cell.method] + 0.01 * cell.seed
        stored(tmp_path, record(cell, value))
    made = report.make(tmp_path, figures=False, order=["vanilla", "pgd", "groupdro"])
    for one in made.tables:
        names = {entry.shown for row in one.rows for entry in row[:2]}
        assert "groupdro" not in names
        assert "groupdro‡" in names or one.key == "identification"
    comparison = made.table("comparison")
    assert [row[1].best for row in comparison.rows] == [False, True, False]
    assert "~" not in comparison.rows[2][1].shown
    assert "‡ groupdro trains with bias labels" in " ".join(comparison.notes)
    alone = report.make(tmp_path, figures=False, shown=report.Shown(methods=("groupdro",)))
    assert alone.table("comparison").rows[0][1].best  # among themselves


# ---- files ---------------------------------------------------------------------------------------------------


def test_the_page_is_written_beside_the_tables(folder, monkeypatch):
    made = report.make(folder)
    (path,) = made.paths["report"]
    text = path.read_text(encoding="utf-8").replace("<wbr>", "")
    assert path == folder / "report.html"
    displays = phrases.display_titles(one.cell for one in read_records(folder)[0])
    for one in made.tables:
        assert f">{phrases.displayed(one.title, displays)}</h3>" in text
    assert text.count('class="panels"') == text.count('<figure class="runs"') == 2
    assert text.count('<div class="panel"') == 2 * len(MEANS)
    assert text.count("data:image/png;base64") == len([path for path in made.paths["figures"] if path.suffix == ".png"])


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_latex_compiles_as_it_stands(folder, tmp_path):
    made = report.make(folder, figures=False)
    texts = [r"[brackets] & % _ ^ ~ \ { } # $", "λ ≥ ρ ≤ α ≠ × ± † ‡ §", "é ö ñ", "漢字 ☃", "<script>|*"]
    texts += [r"$\frac{1}{$", r"\input{/etc/passwd}", "a\n\nb\x00", "ą ħ – €", "--a ,,b'' ``c ?`"]
    columns = [tables.Column(text, text) for text in texts]
    strange = tables.Table("strange", "\n\n".join(texts), columns, [tables.words(*texts)] * 2, texts)
    records, _ = read_records(folder)
    displays = phrases.display_titles(one.cell for one in records)
    in_paper = [tables.with_display_titles(one, displays) for one in made.tables]
    for shown in (in_paper, [*in_paper, strange, strange]):
        (tmp_path / "comparison.tex").write_text(tables.latex_file(shown), encoding="utf-8")
        (tmp_path / "document.tex").write_text(tables.latex_document(shown, "comparison"), encoding="utf-8")
        if shown is in_paper:
            for name in ("document.tex", "comparison.tex"):  # what the report wrote
                assert (tmp_path / name).read_bytes() == (folder / "tables" / name).read_bytes()
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull \\hbox" not in done.stdout
        assert "multiply defined" not in done.stdout
        assert (tmp_path / "document.pdf").stat().st_size > 10_000


def test_the_comparison_as_csv_has_numbers_in_columns_of_their_own(folder):
    report.make(folder, figures=False, order=list(MEANS))
    path = folder / "tables" / "comparison.csv"
    for one in path.parent.glob("*.csv"):
        assert one.read_bytes().startswith(b"\xef\xbb\xbf"), one.name  # so that Excel reads it as UTF-8
    found = pd.read_csv(path).set_index("method")
    names = [f"{dataset} acc_unbiased{what}" for dataset in ("cmnist5k", "cmnist5k:rho=0.05") for what in ("", " n")]
    keys = [name for key in names for name in ([key] if key.endswith(" n") else [f"{key} mean", f"{key} std"])]
    assert list(found.columns) == keys
    assert list(found.index) == list(MEANS)
    for method in MEANS:
        for dataset, shift in (("cmnist5k", 0.0), ("cmnist5k:rho=0.05", 0.01)):
            values = [value_of(method, seed, shift) for seed in SEEDS]
            expected = [np.mean(values), np.std(values, ddof=1), 5]
            assert found.loc[method].filter(like=f"{dataset} acc").tolist() == pytest.approx(expected, rel=1e-12)


def test_a_single_run_and_no_run_leave_fields_of_a_csv_empty(tmp_path):
    fill(tmp_path, ["vanilla"], ["cmnist5k"], seeds=[0])
    fill(tmp_path, ["pgd"], ["cmnist5k:rho=0.05"], seeds=[0, 1])
    report.make(tmp_path, figures=False, order=["vanilla", "pgd"])
    lines = (tmp_path / "tables" / "comparison.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[1] == f"vanilla,{value_of('vanilla', 0)},,1,,,0"
    assert re.fullmatch(r"pgd,,,0,0\.\d+,0\.\d+,2", lines[2])


# ---- what is damaged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "it cannot be read as arrays"),
        (b"", "it cannot be read as arrays"),
        (b"\xff" * 8 + b"{}", "it cannot be read as arrays"),  # a header of 2^64 bytes
        (
            {"score": torch.tensor([math.inf, 1.0]), "train_conflict": torch.zeros(2, 1)},
            "its scores are not finite",
        ),
        (
            {"score": torch.zeros(0), "train_conflict": torch.zeros(0, 1)},
            "its scores are not finite",
        ),
        ({"score": torch.ones(3), "train_conflict": torch.zeros(2, 1)}, "its columns differ in length"),
    ],
)
def test_damaged_arrays_are_one_complaint(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.setattr(figures, "accuracy_figure", lambda *_, **__: None)  # it takes its time
    content = content if isinstance(content, bytes) else to_bytes(content)
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k"], seeds=[0])
    path = arrays_path(next(tmp_path.glob("records/cmnist5k/pgd/s0-*.json")))
    path.write_bytes(content)
    assert main(["report", str(tmp_path)]) == 0
    (told,) = "".join(capsys.readouterr().out.split()).split("leftout:")[1:]
    assert told.startswith(f"{path}:{''.join(message.split())}")
    assert message in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "scores-cmnist5k.png").is_file()  # of the other method
    bins = Experiment("b", ["vanilla", "pgd"], ["cmnist5k"], show="bins", seeds=1)
    made = report.make(tmp_path, figures=False, experiment=bins)
    assert [message in one and str(path) in one for one in made.complaints] == [True]
    assert len(made.table("b").rows) == 2
    beside = Experiment("b", ["pgd"], ["cmnist:target=colour"], paper="table14", seeds=1)
    (cell,) = published.cells(beside, beside.methods, beside.datasets)
    arrays_path(stored(tmp_path, record(cell, 0.5))).write_bytes(content)
    made = report.make(tmp_path, figures=False, experiment=beside)
    assert len(made.complaints) == 1
    assert {entry.value for row in made.table("b").rows for entry in row[1:]} == {None}


def test_a_damaged_record_of_an_experiment_is_one_complaint(tmp_path, monkeypatch):
    for other in ("score_histogram", "accuracy_figure"):  # which take their time
        monkeypatch.setattr(figures, other, lambda *_, **__: None)
    trials = Experiment("t", ["vanilla", "pgd"], ["cmnist5k"], paper="table1", show="trials", seeds=2)
    fill(tmp_path, trials.methods, trials.datasets, seeds=range(2))
    path = next(tmp_path.glob("records/cmnist5k/pgd/s1-*.json"))
    path.write_text(path.read_text(encoding="utf-8").replace('"finished"', '"done_at"'), encoding="utf-8")
    made = report.make(tmp_path, experiment=trials)
    (complaint,) = made.complaints
    assert complaint.startswith(str(path))
    assert "provenance.finished is missing" in complaint
    assert [row[2].value for row in made.table("comparison").rows] == [1, 2]
    assert {one.name for one in made.paths["figures"]} >= {"t.png"}


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory):
    """A folder of two methods without grid.json, and its tables."""
    folder = fill(tmp_path_factory.mktemp("results"), ["vanilla", "pgd"], ["cmnist5k"], seeds=range(2))
    return folder, report.make(folder, figures=False).tables


GRID = {"reference": "pgd", "order": ["pgd", "vanilla"], "experiment": None}
EXPERIMENT = {"name": "t", "methods": ["vanilla"], "datasets": ["cmnist5k"], "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must be an object"),
        (None, "must be an object"),
        (GRID | {"order": "pgd"}, "order must be a list"),
        (GRID | {"order": ["pgd", 1]}, "order[1] must be text"),
        (GRID | {"reference": 1}, "reference must be text"),
        (GRID | {"experiment": []}, "experiment must be an object"),
        (GRID | {"experiment": {"name": "t"}}, "experiment has unknown or missing fields: methods, datasets"),
        (GRID | {"experiment": EXPERIMENT | {"colour": 1}}, "experiment has unknown or missing fields: colour"),
        (GRID | {"experiment": EXPERIMENT | {"seeds": "three"}}, "experiment.seeds must be a whole number"),
        (GRID | {"experiment": EXPERIMENT | {"methods": [1]}}, "experiment.methods[0] must be text"),
        ("garbage", "Expecting value"),
        ("[" * 200_000, "nested too deeply"),
        (" " * 2**21, "too large"),
        (b"\xff\xfe", "can't decode"),
        (os.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
)
def test_a_damaged_grid_is_as_if_it_were_not_there(two_methods, content, message):
    folder, without = two_methods
    path = folder / "grid.json"
    if callable(content):
        content(path)
    elif isinstance(content, str | bytes):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    try:
        found = report.make(folder, figures=False)
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
    assert found.tables == without
    (complaint,) = found.complaints
    assert complaint.startswith(str(path))
    assert message in complaint


@pytest.mark.parametrize("change", [{"paper": "table99"}, {"methods": ["no-such"]}, {"show": "cake"}, {"seeds": -1}])
def test_an_experiment_of_another_version_costs_nothing_else(two_methods, change):
    folder, _ = two_methods
    (folder / "grid.json").write_text(json.dumps(GRID | {"experiment": EXPERIMENT | change}), encoding="utf-8")
    found = report.make(folder, figures=False)
    (folder / "grid.json").unlink()
    assert [row[0].value for row in found.table("comparison").rows] == ["pgd", "vanilla"]
    assert len(found.complaints) == (0 if "show" in change else 1)
    assert all("t could not be drawn" in complaint for complaint in found.complaints)


def test_figures_that_cannot_be_drawn_cost_nothing_else(tmp_path, monkeypatch):
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k"], seeds=range(2))

    def fail(*_, **__):
        raise RuntimeError("no ink")

    monkeypatch.setattr(figures, "score_histogram", fail)
    made = report.make(tmp_path)
    assert made.complaints == ["scores-cmnist5k could not be drawn: RuntimeError: no ink"]
    assert {path.name for path in made.paths["figures"]} == {"accuracies-cmnist5k.pdf", "accuracies-cmnist5k.png"}


def test_a_headline_without_any_value_is_a_dash(tmp_path):
    """As the worst group's accuracy where a group is empty: the metric is in no record."""
    for cell in expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2).cells:
        one = record(cell, 0.5)
        for row in one.result.epochs:
            del row.test["acc_unbiased"]
        stored(tmp_path, one)
    made = report.make(tmp_path)
    assert not made.complaints
    assert [[entry.shown for entry in row[1:]] for row in made.table("comparison").rows] == [["-", "0"]] * 2
    assert "tests" not in [table.key for table in made.tables]


def test_tables_are_found_by_their_keys(folder):
    made = report.make(folder, figures=False)
    keys = ["comparison", "selection-cmnist5k", "selection-cmnist5k:rho=0.05", "ranks", "tests"]
    assert [table.key for table in made.tables] == keys
    for table in made.tables:
        assert len({column.key for column in table.columns}) == len(table.columns)
        for row in table.rows:
            for column, entry in zip(table.columns, row, strict=True):
                assert entry.value is None or isinstance(entry.value, str) != column.numeric


# ---- experiments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_every_experiment_can_be_read(name):
    experiment = read_experiment(name)
    assert experiment.name == name
    assert not experiment.smoke
    if name != "demo":
        short = read_experiment(name, smoke=True)
        assert short.smoke
        assert short.epochs == 2
        assert all(dataset.startswith("cmnist5k") for dataset in short.datasets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods = ['vanilla']", "lacks datasets"),
        ("methods = ['vanilla']\ndatasets = ['cmnist5k']\nseed = 3", "unknown key 'seed'. Did you mean 'seeds'"),
        ("methods = 'vanilla'\ndatasets = ['cmnist5k']", "'methods' must be a list of names. Got 'vanilla'."),
        ("methods = ['vanilla']\ndatasets = ['cmnist5k']\nshow = 'cake'", "'show' must be one of accuracy"),
        ("methods = [", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError) as told:
        read_experiment(str(path))
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("smoke", "message"),
    [
        ("", "has no [smoke] variant"),
        ("[smoke]\nepoch = 2", "unknown key 'smoke.epoch'. Did you mean 'epochs'"),
        ("[smoke.instead]\ncmnist = 'cmnist5k'", "names cmnist, which is not one of its datasets"),
    ],
)
def test_a_wrong_smoke_variant_is_told(tmp_path, smoke, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"methods = ['vanilla']\ndatasets = ['cmnist5k']\n{smoke}", encoding="utf-8")
    with pytest.raises(BenchmarkError) as told:
        read_experiment(str(path), smoke=True)
    assert message in str(told.value)


def test_the_document_lists_every_experiment_with_its_time():
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\w+) \| (\d+) s \|$", text, re.MULTILINE)
    assert {name for name, *_ in rows} == set(names()) - {"demo"}
    for name, title, show, _ in rows:
        assert (read_experiment(name).title, read_experiment(name).show) == (title, show)
    assert "@@" not in text


def test_options_that_replace_what_a_file_says_are_seen_in_its_table(tmp_path):
    """Shared recipes, other data seeds and methods spelt otherwise: the table shows what the grid ran, and no other."""
    asked = replace(
        read_experiment("table10", smoke=True), methods=["lff", "pgd:alpha=0.7"], epochs=1, seeds=1, shared_recipes=True
    )
    for cell in published.cells(asked, asked.methods, asked.datasets):
        stored(tmp_path, record(cell, 0.5))
    own = replace(asked, shared_recipes=False)
    for cell in published.cells(own, ["lff"], asked.datasets):
        stored(tmp_path, record(cell, 0.9))
    lines = published.beside(asked, tmp_path)
    there = lines[(lines.ran != "") & lines.method.isin(["lff", "pgd"])]
    assert there["mean"].tolist() == pytest.approx([50.0] * len(there))
    assert (lines[~lines.method.isin(["lff", "pgd"])].n == 0).all()


def test_a_rule_without_values_leaves_the_tests_out(tmp_path):
    """As group_val, where fewer than ten validation samples conflict."""
    for cell in expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2).cells:
        one = record(cell, 0.5)
        stored(tmp_path, changed(one, selection=one.result.selection | {"group_val": None}))
    made = report.make(tmp_path, shown=report.Shown(select=("group_val",)))
    assert "tests" not in [table.key for table in made.tables]
    assert made.paths["report"]


def test_columns_asked_for_twice_are_shown_once(folder):
    shown = report.Shown(metrics=("acc_unbiased", "acc_unbiased"), select=("last", "last"))
    comparison = report.make(folder, figures=False, shown=shown).table("comparison")
    assert len(comparison.columns) == 1 + 2 * 2


def test_several_columns_of_one_dataset_are_no_datasets(tmp_path, monkeypatch):
    for other in ("score_histogram", "accuracy_figure"):  # which take their time
        monkeypatch.setattr(figures, other, lambda *_, **__: None)
    fill(tmp_path, list(MEANS), ["cmnist5k"])
    metrics = ("acc_unbiased", "acc_conflict", "acc_aligned", "acc_worst")
    made = report.make(tmp_path, shown=report.Shown(metrics=metrics, select=("last", "val_loss")))
    table = made.table("ranks")
    assert table.columns[-1].key != "average"
    assert "Nemenyi" not in " ".join(table.notes)
    assert not (tmp_path / "figures" / "ranks.pdf").exists()


def test_an_experiment_that_cannot_be_drawn_costs_nothing_else(tmp_path):
    """Figure 3 of records without weights; trials of which one side failed."""
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k"], seeds=range(2))
    fisher = Experiment("f", ["vanilla", "pgd"], ["cmnist5k"], show="fisher", seeds=2)
    made = report.make(tmp_path, figures=False, experiment=fisher, data_dir=tmp_path)
    assert "f could not be drawn: BenchmarkError" in made.complaints[0]
    assert "none of its records has any" in made.complaints[0]
    assert made.tables
    trials = Experiment("t", ["vanilla", "disen"], ["cmnist5k"], show="trials", seeds=2)
    assert report.make(tmp_path, figures=False, experiment=trials).paths["figures"]
    shown = report.Shown(methods=("pgd",))
    assert report.make(tmp_path, figures=False, experiment=trials, shown=shown).paths["figures"]


def test_cells_without_weights_run_again_where_weights_are_asked_for(tmp_path):
    grid = expand(["vanilla"], ["cmnist5k"], seeds=1)
    (cell,) = grid.cells
    made = record(cell, 0.5)
    fingerprint = cell.build_dataset().build(tmp_path).fingerprint()
    made = changed(made, data=replace(made.result.data, fingerprint=fingerprint))
    path = stored(tmp_path, made)
    places = {"data_dir": tmp_path, "results_dir": tmp_path}
    assert plan(grid, **places).to_run == []
    assert plan(grid, weights=True, **places).to_run == [cell]
    weights_path(path).write_bytes(b"of an earlier run, of which this record knows nothing")
    assert plan(grid, weights=True, **places).to_run == [cell]
    stored(tmp_path, changed(made, weights={"nets": {}, "net": "net"}))
    assert plan(grid, weights=True, **places).to_run == []


@pytest.mark.parametrize(
    ("told", "precision", "notice"),
    [
        ({}, "fp32", None),
        ({"device": ""}, "fp32", None),  # a record that does not tell
        ({"device": "NVIDIA H100"}, "fp32", "run on cuda in fp32, and this run is on cpu in fp32"),
        ({"device": "NVIDIA H100"}, "auto", "run on cuda in bf16, and this run is on cpu in fp32"),
        ({"device_kind": "cpu", "precision": "bf16"}, "auto", "run on cpu in bf16, and this run is on cpu in fp32"),
    ],
)
def test_cells_of_another_device_count_as_finished_with_a_notice(tmp_path, told, precision, notice):
    grid = expand(["vanilla"], [f"cmnist5k:precision={precision}"], seeds=2)
    fingerprint = grid.cells[0].build_dataset().build(tmp_path).fingerprint()
    for cell in grid.cells:
        made = record(cell, 0.5)
        made = changed(made, data=replace(made.result.data, fingerprint=fingerprint))
        stored(tmp_path, replace(made, provenance=replace(made.provenance, **told)))
    places = {"data_dir": tmp_path, "results_dir": tmp_path}
    planned = plan(grid, **places, device_kind="cpu")
    assert (planned.to_run, len(planned.finished)) == ([], 2)
    notices = [one for one in planned.grid.notices if one not in grid.notices]
    assert len(notices) == (notice is not None)
    assert notice is None or f"2 finished cells were {notice}: counted as finished" in notices[0]
    assert plan(grid, **places).grid.notices == grid.notices


def test_smoke_belongs_to_an_experiment(capsys):
    assert main(["run", "--methods", "vanilla", "--datasets", "cmnist5k", "--smoke"]) == 2
    assert "--smoke belongs to --experiment" in capsys.readouterr().err


def test_ours_stands_beside_the_paper(tmp_path):
    """Table 1 in its own shape: mean, spread, the paper's mean, the difference, and whether it is within the spread."""
    experiment = read_experiment("table1")
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist"], seeds=range(3), shift=0.1)
    lines = published.beside(experiment, tmp_path)
    numbers = pd.read_csv(ROOT / "experiments" / "paper" / "table1.csv")
    assert len(lines) == len(numbers)
    for method in ("vanilla", "pgd"):
        line = lines[(lines.method == method) & (lines.dataset == "cmnist")].iloc[0]
        theirs = numbers[(numbers.method == method) & (numbers.dataset == "cmnist")].iloc[0]
        ours = [100 * value_of(method, seed, 0.1) for seed in range(3)]
        assert line["mean"] == pytest.approx(np.mean(ours))
        assert line["std"] == pytest.approx(np.std(ours, ddof=1))
        assert (line["n"], line["paper_mean"], line["paper_std"]) == (3, theirs["mean"], theirs["std"])
        assert line["difference"] == pytest.approx(np.mean(ours) - theirs["mean"])
        assert line["within"] == (abs(line["difference"]) <= line["std"] + theirs["std"])
    assert not lines[lines.method == "vanilla"].iloc[0]["within"]  # 50 beside 60.94
    table = published.table(experiment, lines)
    entry = next(entry for row in table.rows for entry in row if entry.shown.startswith(f"{np.mean(ours):.2f}"))
    assert (entry.value, entry.std) == (line["mean"], line["std"])
    assert entry.shown == f"{line['mean']:.2f} ± {line['std']:.2f} (96.88, {line['difference']:+.2f} =)"
    assert {row[0].value for row in table.rows} == set(numbers.row)
    assert [column.heading for column in table.columns[1:]] == list(dict.fromkeys(numbers.column))
    missing = sum(line.n == 0 for line in lines.itertuples())
    assert f"{missing} of {len(lines)} entries have no run of ours" in " ".join(table.notes)
    assert "98.35" in " ".join(table.notes)  # the typo


def test_data_and_lengths_that_are_not_the_papers_are_told(tmp_path):
    asked = replace(read_experiment("table1"), epochs=2, seeds=1)
    for cell in published.cells(asked, ["vanilla"], ["cmnist", "mbmnist"]):
        stored(tmp_path, record(cell, 0.5, official=cell.dataset == "cmnist"))
    table = published.table(asked, published.beside(asked, tmp_path))
    ours = [entry.shown for row in table.rows for entry in row if entry.shown.startswith("50.00")]
    assert sorted(text.partition(" ")[0] for text in ours) == ["50.00", "50.00†"]
    assert "Ours with 2 epochs per stage, which is not the paper's setting." in table.notes
    assert any(note.startswith("†: not on the published data") for note in table.notes)


def test_the_generator_of_the_papers_data_is_told_where_ours_is_another(tmp_path, monkeypatch):
    asked = replace(read_experiment("table1"), seeds=1)
    for cell in published.cells(asked, ["vanilla"], ["cmnist", "mbmnist", "ccifar", "ccifar:rho=0.01"]):
        note = "Generated by LfF's protocol at level 5." if cell.dataset_title == "ccifar" else ""
        made = record(cell, 0.5)
        stored(tmp_path, changed(made, data=replace(made.result.data, note=note)))
    lines = published.beside(asked, tmp_path)
    ran = lines[lines.n > 0].set_index("dataset")
    assert ran.generator.tolist() == ["pgd", "unreleased", "disen", "disen"]
    assert ran.same_generator.to_dict() == {
        "cmnist": True, "mbmnist": False, "ccifar": False, "ccifar:rho=0.01": True,
    }  # fmt: skip

    def texts(lines):
        table = published.table(asked, lines)
        return [entry.shown for row in table.rows for entry in row if entry.shown.startswith("50.00")], table.notes

    shown, notes = texts(lines)
    assert shown == [
        "50.00 (60.94, -10.94)", "50.00 (unreleased: 25.23, +24.77)", "50.00 (disen: 23.06, +26.94)",
        "50.00 (25.94, +24.06)",
    ]  # fmt: skip
    assert any("A word before the paper's number names the generator of its data" in note for note in notes)
    numbers = published.numbers("table1")
    monkeypatch.setattr(published, "numbers", lambda _: numbers.assign(generator="lff"))
    shown, _ = texts(published.beside(asked, tmp_path))
    assert shown[0] == "50.00 (lff: 60.94, -10.94)"  # ours is by the generator that the dataset's parameter names
    monkeypatch.setattr(published, "numbers", lambda _: numbers[numbers.dataset == "cmnist"])
    assert not any("generator" in note for note in texts(published.beside(asked, tmp_path))[1])


def test_a_stand_in_is_never_set_beside_the_papers_number(tmp_path):
    experiment = read_experiment("table9", smoke=True)
    fill(tmp_path, experiment.methods, experiment.datasets, seeds=range(2), epochs=2)
    lines = published.beside(experiment, tmp_path)
    assert lines[["paper_mean", "difference"]].isna().all(axis=None)
    assert (lines[lines.ran != ""].n > 0).all()
    table = published.table(experiment, lines)
    assert not any("(" in entry.shown for row in table.rows for entry in row[1:])
    assert "A smoke run, shortened and on stand-in data" in table.notes[0]
    assert "cmnist: cmnist5k" in table.notes[0]


def test_other_numbers_than_accuracies(tmp_path):
    """The biased network's accuracy, seconds by step, counts by bin, and a p-value."""
    biased = Experiment("t", ["pgd:alpha=0.3", "pgd"], ["cmnist"], paper="table7", seeds=2)
    fill(tmp_path, biased.methods, ["cmnist"], seeds=range(2))
    lines = published.beside(biased, tmp_path)
    first = lines[(lines.metric == "first.acc_unbiased") & (lines.method == "pgd") & (lines.dataset == "cmnist")].iloc[
        0
    ]
    assert first["mean"] == pytest.approx(np.mean([25 * value_of("pgd", seed) for seed in range(2)]))
    cost = Experiment("t", ["pgd"], ["cmnist"], paper="table11", show="cost", seeds=2)
    lines = published.beside(cost, tmp_path).query("method == 'pgd'").set_index("column")
    assert lines["mean"].to_dict() == {"Computation time": 95.0, "Step 1": 40.0, "Step 2": 5.0, "Step 3": 50.0}
    table = published.table(cost, published.beside(cost, tmp_path))
    assert "1m 35s (33m 31s)" in [entry.shown for row in table.rows for entry in row]
    fill(tmp_path, ["pgd"], ["cmnist:target=colour"], seeds=[0])
    counts = published.beside(Experiment("t", ["pgd"], ["cmnist:target=colour"], paper="table14", seeds=1), tmp_path)
    generator = torch.Generator().manual_seed(0)
    score, conflict = torch.rand(100, generator=generator), torch.rand(100, generator=generator) < 0.2
    share = (score / score.max()).numpy()
    for metric, members in (("n_aligned", ~conflict), ("n_conflicting", conflict)):
        expected = np.histogram(share[members.numpy()], np.linspace(0, 1, 11))[0]
        assert counts[counts.metric == metric]["mean"].tolist() == expected.tolist()
    fill(tmp_path, ["disen"], ["cmnist"], seeds=range(2))
    trials = Experiment("t", ["disen", "pgd"], ["cmnist"], paper="figure10", show="trials", seeds=2, reference="disen")
    p = published.beside(trials, tmp_path).query("dataset == 'cmnist'").iloc[0]["mean"]
    sides = [[value_of(method, seed) for seed in range(2)] for method in ("pgd", "disen")]
    assert p == pytest.approx(stats.ttest_ind(*sides, equal_var=False, alternative="greater").pvalue)


@pytest.mark.parametrize(("show", "figure"), [("norms", "t.pdf"), ("trials", "t.pdf"), ("bins", None)])
def test_what_an_experiment_draws(tmp_path, show, figure):
    experiment = Experiment("t", ["disen", "pgd"], ["cmnist5k", "cmnist5k:rho=0.05"], show=show, seeds=3)
    fill(tmp_path, experiment.methods, experiment.datasets, seeds=range(3))
    found = outcomes.outcome(experiment, tmp_path, None, order=["disen", "pgd"])
    assert [path.name for path in found.figures if path.suffix == ".pdf"] == ([figure] if figure else [])
    if show == "bins":
        (table,) = found.tables
        assert len(table.rows) == 2 * 12
        assert sum(entry.value for row in table.rows[:2] for entry in row[2:]) == 100


def test_the_report_remembers_the_experiment(tmp_path):
    experiment = read_experiment("table9", smoke=True)
    fill(tmp_path, experiment.methods, experiment.datasets, seeds=range(2), epochs=2)
    write_grid(tmp_path, experiment, experiment.methods)
    assert Experiment(**json.loads((tmp_path / "grid.json").read_text(encoding="utf-8"))["experiment"]) == experiment
    made = report.make(tmp_path, figures=False)
    assert made.tables[0] == made.table("table9")
    assert made.tables[0].title == f"table9: {experiment.title}"
    lines = pd.read_csv(tmp_path / "tables" / "table9.csv")
    assert lines["mean"].notna().any()
    assert math.isnan(lines["paper_mean"].iloc[0])


# The others' smoke runs take a minute or two each: their times are in docs/experiments.md
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "table14" else pytest.mark.slow) for name in names() if name != "demo"],
)
def test_the_smoke_run_of_an_experiment(tmp_path, capsys, name):
    words = ["--device", "cpu", "--workers", "0", "--results-dir", str(tmp_path)]
    assert main(["run", "--experiment", name, "--smoke", *words]) == 0
    shown = capsys.readouterr().out
    experiment = read_experiment(name, smoke=True)
    assert f"{name}: {experiment.title}" in shown or not (experiment.paper or experiment.show in ("bins", "fisher"))
    if experiment.paper:
        lines = pd.read_csv(tmp_path / "tables" / f"{name}.csv", keep_default_na=False)
        ran = lines[(lines.ran != "") & lines.method.isin(experiment.methods)]
        ran = ran[ran.metric != "acc_overlapavg"]  # only data whose groups overlap have it
        assert len(ran)
        assert (ran.n > 0).all()
    assert (tmp_path / "report.html").is_file()


# ---- headlines ----------------------------------------------------------------------------------------------------


def of_dataset(cell, dataset, *, known):
    """A record as of another dataset, whose test split has biases that are known, or not."""
    one = record(replace(cell, dataset=dataset, dataset_title=dataset), value_of(cell.method_title, cell.seed))
    if known:
        return one
    rows = [  # on validation they are
        replace(
            row,
            valid={**row.valid, "acc_worst": 0.5},
            test={name: value for name, value in row.test.items() if name in ("loss", "acc_avg")},
        )
        for row in one.result.epochs
    ]
    return changed(one, epochs=tuple(rows))


@pytest.mark.parametrize(
    ("dataset", "known", "metrics"),
    [
        ("imagefolder", True, ["acc_avg", "acc_worst"]), ("imagefolder", False, ["acc_avg"]),
        ("features", True, ["acc_avg", "acc_worst"]), ("features", False, ["acc_avg"]),
        ("celeba", True, ["acc_worst", "acc_avg"]), ("waterbirds", True, ["acc_worst"]),  # what these records have
        ("civilcomments", True, ["acc_worst", "acc_avg"]), ("bar", False, ["acc_avg"]),
        ("cmnist2", True, ["acc_avg", "acc_worst"]), ("cmnist", True, ["acc_unbiased"]),
        ("nobodys", True, ["acc_avg", "acc_worst"]), ("nobodys", False, ["acc_avg"]),
    ],
)  # fmt: skip
def test_the_comparison_shows_the_headline_metrics_that_there_are(tmp_path, dataset, known, metrics):
    for cell in expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2).cells:
        stored(tmp_path, of_dataset(cell, dataset, known=known))
    made = report.make(tmp_path, figures=False)
    columns = [column.heading for column in made.table("comparison").columns[1::2]]
    assert columns == [f"{dataset} {metric} (%)" for metric in metrics]
    assert len(made.verdicts) == len(metrics)


def drawn_metrics(monkeypatch):
    """What accuracies are drawn of from now on."""
    drawn = []
    draw = figures.accuracy_figure

    def of(values, *, metric, title, order):
        drawn.append((title, metric, {name: runs.tolist() for name, runs in values.items()}))
        return draw(values, metric=metric, title=title, order=order)

    monkeypatch.setattr(figures, "accuracy_figure", of)
    return drawn


@pytest.mark.parametrize(
    ("metrics", "select", "shown"),
    [
        ((), ("last",), "acc_unbiased"), (("acc_worst",), ("last",), "acc_worst"),
        (("acc_conflict", "acc_unbiased"), ("last",), "acc_conflict"), (("acc_worst",), ("val_loss",), "acc_worst"),
    ],
)  # fmt: skip
def test_figures_of_a_dataset_show_what_its_first_column_shows(tmp_path, monkeypatch, metrics, select, shown):
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k"], seeds=range(3))
    drawn = drawn_metrics(monkeypatch)
    made = report.make(tmp_path, shown=report.Shown(metrics=metrics, select=select))
    ((_, metric, values),) = drawn
    assert metric == shown + ("" if select == ("last",) else f", {select[0]}")  # the rule is told where it is no last
    column = [row[1] for row in made.table("comparison").rows]
    assert [entry.value for entry in column] == pytest.approx([np.mean(runs) for runs in values.values()])
    assert f"Test {shown} (%) at the last epoch" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_figures_of_each_dataset_show_its_own_first_column(tmp_path, monkeypatch):
    for cell in expand(["vanilla", "pgd"], ["cmnist5k"], seeds=2).cells:
        for dataset, known in (("imagefolder", True), ("features", False)):
            stored(tmp_path, of_dataset(cell, dataset, known=known))
    drawn = drawn_metrics(monkeypatch)
    report.make(tmp_path, shown=report.Shown(metrics=("acc_worst", "acc_avg")))
    assert {title: metric for title, metric, _ in drawn} == {
        "imagefolder, 2 %": "acc_worst", "features, 2 %": "acc_avg",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metrics", "select", "named"),
    [
        ((), ("last",), None), (("acc_worst",), ("last",), None), (("acc_avg",), ("val_loss",), None),
        (("acc_avg", "acc_worst"), ("last",), ["acc_avg", "acc_avg", "acc_worst", "acc_worst"]),
        (("acc_avg",), ("last", "val_loss"), ["acc_avg", "acc_avg", "acc_avg, val_loss", "acc_avg, val_loss"]),
    ],
)  # fmt: skip
def test_tests_name_their_metric_where_a_dataset_has_several(folder, metrics, select, named):
    shown = report.Shown(("vanilla", "pgd", "lff"), ("cmnist5k:rho=0.05",), metrics, select)
    made = report.make(folder, figures=False, shown=shown, reference="vanilla").table("tests")
    keys = [column.key for column in made.columns]
    if named is None:
        assert "metric" not in keys
    else:
        assert keys[:3] == ["dataset", "metric", "method"]
        assert [row[1].text for row in made.rows] == named
    methods = [row[keys.index("method")].value for row in made.rows]
    assert methods == ["pgd", "lff"] * (len(methods) // 2)
