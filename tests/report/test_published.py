"""The paper's numbers in experiments/paper/ and the experiments that regenerate them."""

import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from debiasbench.grid import expand

ROOT = Path(__file__).parent.parent.parent
COLUMNS = ["table", "row", "column", "method", "dataset", "generator", "metric", "mean", "std", "n", "note"]
METRICS = {
    "acc_unbiased", "acc_avg", "acc_worst", "acc_groupmean", "acc_overlapavg", "first.acc_unbiased", "seconds",
    "n_aligned", "n_conflicting", "p_welch",
}  # fmt: skip
# dataset -> who made what the paper's numbers are of: its appendix A
GENERATORS = {
    "cmnist": "pgd", "mbmnist": "unreleased", "ccifar": "disen", "bffhq": "disen", "bar": "lff", "celeba": "natural",
    "civilcomments": "natural", "cifar10": "natural",
}  # fmt: skip
SHOWN = {"accuracy", "cost", "bins", "fisher", "norms", "trials"}
PAPERS = {path.stem: path for path in sorted((ROOT / "experiments" / "paper").glob("*.csv"))}
EXPERIMENTS = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "experiments").glob("*.toml"))
    if path.stem != "demo"
}
TYPO = "98.35 in Tables 1, 10 and 13, 97.35 in Tables 7, 8 and 9"


def read(stem):
    return pd.read_csv(PAPERS[stem], dtype=str, keep_default_na=False)


def number(stem, row, column, metric="acc_unbiased"):
    """(mean, std) as printed."""
    found = read(stem)
    (line,) = found[(found.row == row) & (found.column == column) & (found.metric == metric)].to_dict("records")
    return line["mean"], line["std"]


def cells(methods, datasets):
    """(method label, dataset label) -> what identifies the cell; what an absent package declines has no cell."""
    grid = expand(methods, datasets, seeds=1)
    declined = {(skip.method_title, skip.dataset_title): skip.reason for skip in grid.skips}
    return {(cell.method_title, cell.dataset_title): cell.hash for cell in grid.cells} | declined


def test_every_table_and_figure_is_there():
    tables = {f"table{n}" for n in (1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15)}
    assert set(PAPERS) == tables | {"figure10"}
    assert set(EXPERIMENTS) == tables | {"figure2", "figure3", "figure9", "figure10"}
    assert {experiment["paper"] for experiment in EXPERIMENTS.values() if "paper" in experiment} == set(PAPERS)


@pytest.mark.parametrize("stem", PAPERS)
def test_every_line_is_complete(stem):
    found = read(stem)
    assert list(found.columns) == COLUMNS
    assert set(found.table) == {stem}
    assert set(found.metric) <= METRICS
    assert found.generator.tolist() == [GENERATORS[dataset.partition(":")[0]] for dataset in found.dataset]
    assert not found.duplicated(["row", "column", "metric"]).any()
    assert (found[["row", "column"]] != "").all(axis=None)
    assert found["mean"].str.fullmatch(r"\d+(\.\d+)?").all()
    assert found["std"].str.fullmatch(r"(\d+\.\d+)?").all()
    assert found.n.str.fullmatch(r"(\d+)?").all()  # empty where the paper does not say
    assert PAPERS[stem].read_text(encoding="utf-8").isascii()


@pytest.mark.parametrize("stem", PAPERS)
def test_every_line_can_be_run_and_is_in_its_experiment(stem):
    (experiment,) = [experiment for experiment in EXPERIMENTS.values() if experiment.get("paper") == stem]
    grid = cells(experiment["methods"], experiment["datasets"])
    for method, dataset in dict.fromkeys(zip(read(stem).method, read(stem).dataset, strict=True)):
        ((labels, answer),) = cells([method], [dataset]).items()
        assert re.fullmatch("[0-9a-f]{64}", answer) or "needs the package" in answer, answer
        assert grid[labels] == answer
        assert labels[1] == dataset  # one spelling everywhere: the one of records and tables


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_it_is(name):
    experiment = EXPERIMENTS[name]
    known = {"title", "paper", "show", "methods", "datasets", "seeds", "reference", "smoke"}
    assert {"title", "methods", "datasets", "seeds", "smoke"} <= set(experiment) <= known
    assert experiment.get("paper", name) == name
    assert experiment.get("show", "accuracy") in SHOWN
    assert experiment.get("reference", experiment["methods"][0]) in experiment["methods"]
    first = (ROOT / "experiments" / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    kind, place = re.fullmatch(r"(table|figure)(\d+)", name).groups()
    assert first.startswith(f"# {kind.capitalize()} {place}: ")
    assert experiment["seeds"] == {"figure10": 25, "table14": 1, "figure9": 1}.get(name, 3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_smoke_run_is_small_and_needs_no_files(name):
    experiment = EXPERIMENTS[name]
    smoke = experiment["smoke"]
    assert set(smoke) <= {"methods", "seeds", "epochs", "instead"}
    assert set(smoke.get("methods", [])) <= set(experiment["methods"])
    assert set(smoke["instead"]) <= set(experiment["datasets"])
    stand_ins = list(smoke["instead"].values())
    assert {spec.partition(":")[0] for spec in stand_ins} == {"cmnist5k"}
    grid = expand(smoke.get("methods", experiment["methods"]), stand_ins, seeds=smoke["seeds"], epochs=smoke["epochs"])
    assert not grid.notices  # two stand-ins that are equal
    assert all("needs the package" in skip.reason for skip in grid.skips)
    assert 1 <= len(grid.cells) <= 20
    assert smoke["epochs"] == 2


def test_full_experiments_leave_out_only_jtt_on_bar():
    declined = set()
    for experiment in EXPERIMENTS.values():
        grid = expand(experiment["methods"], experiment["datasets"], seeds=1)
        assert not grid.notices
        declined |= {
            (skip.method_title, skip.dataset_title) for skip in grid.skips if "needs the package" not in skip.reason
        }
    assert declined == {("jtt", "bar")}


def test_numbers_of_table_1_give_the_gaps_in_the_text():
    def gap(stem, row, one, other):
        return round(float(number(stem, row, one)[0]) - float(number(stem, row, other)[0]), 2)

    assert len(read("table1")) == 45
    assert number("table1", "CMNIST, 0.5%", "PGD (Ours)") == ("96.88", "0.28")
    assert gap("table1", "CMNIST, 0.5%", "PGD (Ours)", "Vanilla") == 35.94
    assert gap("table1", "CMNIST, 0.5%", "PGD (Ours)", "Disen") == 2.32
    assert gap("table1", "MBMNIST, 10%", "PGD (Ours)", "Vanilla") == 36.15
    assert gap("table1", "MBMNIST, 10%", "PGD (Ours)", "Disen") == 35.63
    assert gap("table2", "BFFHQ", "PGD (Ours)", "Disen") == 1.43


def test_numbers_checked_by_hand():
    assert number("table3", "CelebA, Worst", "CNC", "acc_worst") == ("88.8", "")
    assert number("table3", "CivilComments, Avg.", "CNC", "acc_overlapavg") == ("81.7", "")
    assert number("table4", "GCE, augmentation", "MB-MNIST (10%)") == ("61.38", "4.41")
    assert number("table7", "Biased model, 5%", "alpha = 0.7", "first.acc_unbiased") == ("43.97", "1.75")
    assert number("table9", "0.5%", "Reweighting") == ("94.70", "0.4")
    assert number("table10", "LfF+Gradient", "1%") == ("97.55", "0.24")
    assert number("table12", "Natural CIFAR10", "Ours", "acc_avg") == ("94.79", "0.02")
    assert number("table13", "0.5%", "PGD (Color)") == ("98.92", "")
    assert number("table15", "CelebA, Avg.", "Vanilla", "acc_groupmean") == ("80.52", "")
    assert list(read("figure10")["mean"]) == ["0.01572", "0.01239", "0.29370"]


def test_times_add_up():
    def seconds(stem, row, column):
        return int(number(stem, row, column, "seconds")[0])

    assert seconds("table8", "0.5%", "Training time, Single-stage") == 2 * 3600 + 53 * 60 + 40
    assert seconds("table11", "Vanilla", "Computation time") == 14 * 60 + 59
    steps = [seconds("table11", "ours", f"Step {step}") for step in (1, 2, 3)]
    assert sum(steps) == seconds("table11", "ours", "Computation time")
    assert steps[2] - steps[0] == 87  # 1m 27s in the text
    assert round(100 * steps[1] / sum(steps), 1) == 4.3


def test_bins_of_table_14_hold_the_54000_training_samples():
    found = read("table14")
    counts = found["mean"].astype(int).groupby(found.metric).sum()
    assert counts.to_dict() == {"n_aligned": 53_729, "n_conflicting": 271}
    assert "54,000" in found.note[0]


def test_contradictions_are_noted():
    tables = {}
    for stem in PAPERS:
        found = read(stem)
        same = (found.method == "pgd") & (found.dataset == "cmnist:rho=0.01") & (found.metric == "acc_unbiased")
        assert found[same].note.str.startswith(TYPO).all()
        for mean in found[same]["mean"]:
            tables.setdefault(mean, set()).add(stem)
    assert tables == {"98.35": {"table1", "table10", "table13"}, "97.35": {"table7", "table8", "table9"}}
    for stem, std in (("table1", "1.83"), ("table10", "1.35")):
        found = read(stem)
        (line,) = found[(found.method == "lff") & (found.dataset == "cmnist")].to_dict("records")
        assert line["std"] == std
        assert "contradiction" in line["note"]
    for stem, source in (("table3", "CNC"), ("table15", "BPA")):
        found = read(stem)
        copied = found.note.str.startswith(f"copied from the {source} paper")
        assert (copied == (found.method != "pgd")).all()
    found = read("table15")
    assert found[found.metric == "acc_groupmean"].note.str.contains("mean over the four groups").all()


def test_what_is_repeated_is_equal():
    """Where a table repeats a cell of Table 1, it says the same, but for the two known contradictions."""
    first = read("table1").set_index(["method", "dataset"])
    for stem in ("table4", "table7", "table8", "table9", "table10", "table13"):
        for line in read(stem).to_dict("records"):
            if line["metric"] == "acc_unbiased" and line["n"] == "3":
                known = first.loc[(line["method"], line["dataset"])]
                assert line["mean"] == known["mean"] or line["mean"] == "97.35"
                assert not line["std"] or float(line["std"]) == float(known["std"]) or line["std"] == "1.35"
