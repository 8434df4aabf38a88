"""The numbers in docs/reproduction.md follow from the committed records and from the paper's table."""

import importlib.util
import json
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from debiasbench.datasets import registry as datasets
from debiasbench.grid import expand
from debiasbench.methods import registry as methods
from debiasbench.plugins import is_shipped
from debiasbench.records import find_record, read_records, record_path
from debiasbench.report.results import Measure, ranks, to_frame

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reproduction" / "records"
RECORDS, COMPLAINTS = read_records(FOLDER)
DOCUMENT = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    """The rows of the first table below a heading, as lists of texts."""
    part = re.split(r"\n##+ ", re.split(rf"##+ {re.escape(title)}\n", DOCUMENT)[1])[0]
    lines = [line.strip().strip("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("*") for cell in line.split("|")] for line in lines[2:]]


def runs(dataset):
    """One row a finished record: method, seed, accuracy in per cent, and the biased network's where there is one."""
    rows = []
    for record in records_below(dataset.replace(":", "+")):
        if record.done:
            biased = [end["test"]["acc_unbiased"] for stage in record.result.stages for end in stage.end.values()]
            rows.append(
                {
                    "method": record.cell.method_title,
                    "seed": record.cell.seed,
                    "accuracy": 100 * last_test(record)["acc_unbiased"],
                    "biased": 100 * biased[0] if biased else float("nan"),
                    "mass": record.result.identification.get("score", {}).get("conflict_mass", float("nan")),
                }
            )
    return pd.DataFrame(rows)


def records_below(name):
    """Those of a folder, or of an archive."""
    return [one for one in RECORDS if one.path.relative_to(FOLDER).parts[0].removesuffix(".zip") == name]


AS_PUBLISHED = records_below("as-published-before") + records_below("as-published-after")


def texts():
    """The text of each record, from files and archives."""
    found = [path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.json")]
    for path in FOLDER.rglob("*.zip"):
        with zipfile.ZipFile(path) as packed:
            found += [packed.read(name).decode() for name in packed.namelist() if name.endswith(".json")]
    return found


def last_test(record):
    return record.result.selected("last").test


def written(values):
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


@pytest.mark.parametrize(
    ("dataset", "conflicts"), [("cmnist", "0.5"), ("cmnist:rho=0.01", "1"), ("cmnist:rho=0.05", "5")]
)
def test_full_colored_mnist_follows_from_the_records(dataset, conflicts):
    found = runs(dataset)
    paper = of_the_paper(dataset)
    rows = section(f"Colored MNIST, {conflicts} per cent conflicts")
    (n_conflicting,) = {
        one.result.data.splits["train"].n_conflict["bias"] for one in RECORDS if one.cell.dataset_title == dataset
    }
    assert re.search(rf"\b{n_conflicting:,} of (the 54,000 training images|them) conflict", DOCUMENT)
    assert {row[0] for row in rows} == set(found.method)
    for method, ours, n, published, difference, agree in rows:
        values = found[found.method == method].accuracy
        theirs = paper.loc[method.partition(":")[0]]
        spreads = values.std() + theirs["std"]  # nan with one run
        assert agree == ("-" if len(values) == 1 else "yes" if abs(values.mean() - theirs["mean"]) <= spreads else "no")
        assert ours == written(values), method
        assert int(n) == len(values), method
        assert published == f"{theirs['mean']:.2f} ± {theirs['std']:.2f}", method
        assert difference == f"{values.mean() - theirs['mean']:+.2f}", method


def of_the_paper(dataset):
    """The rows of the paper's Table 1 for a dataset, by method."""
    paper = pd.read_csv(ROOT / "experiments" / "paper" / "table1.csv")
    return paper[paper.dataset == dataset].set_index("method")


FULL = {"0.5 %": "cmnist", "1 %": "cmnist:rho=0.01", "5 %": "cmnist:rho=0.05"}
COMPARED = ("vanilla", "lff", "jtt", "disen", "pgd")


def full_runs(dataset, method):
    return [one for one in records_below(dataset.replace(":", "+")) if one.cell.method_title == method]


def test_the_summary_of_colored_mnist_follows_from_the_tables():
    groups = {"agree": [], "higher": [], "lower": []}
    for conflicts in FULL:
        for method, *_, difference, agree in section(f"Colored MNIST, {conflicts[:-2]} per cent conflicts")[:5]:
            group = "agree" if agree == "yes" else "higher" if float(difference) > 0 else "lower"
            groups[group].append(f"{method} at {conflicts} ({difference})")
    summary = TEXT.partition("## Colored MNIST in short")[2].partition("What limits")[0]
    told = {
        group: summary.partition(f"**{len(members)} {group}**")[2].partition(" - ")[0]
        for group, members in groups.items()
    }
    assert told["agree"]
    assert re.findall(r"\w+ at [\d.]+ % \([-+][\d.]+\)", told["higher"]) == groups["higher"]
    assert re.findall(r"\w+ at [\d.]+ % \([-+][\d.]+\)", told["lower"]) == groups["lower"]


def test_how_well_conflicting_samples_are_found_follows_from_the_records():
    def mean(part, key, form):
        values = [one.result.identification[part][key] for one in found if part in one.result.identification]
        assert len(values) in (0, len(found))
        return form.format(sum(values) / len(found)) if values else "-"

    expected = []
    for conflicts, dataset in FULL.items():
        for method in COMPARED[1:]:
            found = full_runs(dataset, method)
            ends = [end["test"] for one in found for stage in one.result.stages for end in stage.end.values()]
            scores = [mean("score", "auroc", "{:.3f}"), mean("score", "conflict_mass", "{:.2f}")]
            selected = [mean("selected", key, "{:.2f}") for key in ("precision", "recall")]
            biased = f"{sum(100 * end['acc_unbiased'] for end in ends) / len(ends):.1f}" if ends else "-"
            expected.append([conflicts, method, *scores, *selected, biased])
    assert section("How well the methods find the conflicting samples") == expected
    low, middle, high = (row[-1] for row in expected if row[1] == "pgd")
    assert f"its means over seeds are {low}, {middle} and {high}" in TEXT


def test_error_sets_of_jtt_follow_from_the_records():
    rows = section("JTT's error set as its code collects it")
    records = {record.cell.method_title: record for record in records_below("jtt-error-set")}
    assert [row[0].strip("`") for row in rows] == sorted(records) == ["jtt", "jtt:preset=official"]
    for method, *values in rows:
        record = records[method.strip("`")]
        found = record.result.identification["selected"]
        shares = [f"{found[key]:.2f}" for key in ("precision", "recall")]
        assert values == [f"{found['n_selected']:.0f}", *shares, accuracy(last_test(record))]
        assert (len(record.result.epochs), record.cell.seed, record.cell.dataset_title) == (20, 0, "cmnist:epochs=20")


def test_the_choice_of_the_epoch_follows_from_the_records():
    expected = []
    for conflicts, dataset in FULL.items():
        paper = of_the_paper(dataset)
        for method in COMPARED:
            found = full_runs(dataset, method)
            by_rule = {
                rule: [one.result.selected(rule) for one in found] for rule in ("last", "val_loss", "test_oracle")
            }
            for record, last, best in zip(found, by_rule["last"], by_rule["test_oracle"], strict=True):
                accuracies = [epoch.test["acc_unbiased"] for epoch in record.result.epochs]
                assert (last.test["acc_unbiased"], best.test["acc_unbiased"]) == (accuracies[-1], max(accuracies))
            last, by_loss, highest = (
                written(pd.Series([100 * epoch.test["acc_unbiased"] for epoch in epochs]))
                for epochs in by_rule.values()
            )
            epochs = ", ".join(str(number) for number in sorted(epoch.epoch for epoch in by_rule["val_loss"]))
            published = f"{paper.loc[method]['mean']:.2f} ± {paper.loc[method]['std']:.2f}"
            expected.append([conflicts, method, last, by_loss, epochs, highest, published])
    assert section("Does the choice of the epoch explain the differences?") == expected
    epochs = {
        dataset_and_method: [[100 * epoch.test["acc_unbiased"] for epoch in one.result.epochs] for one in found]
        for dataset_and_method in (("cmnist", "jtt"), ("cmnist", "lff"), ("cmnist:rho=0.05", "pgd"))
        for found in [full_runs(*dataset_and_method)]
    }
    assert min(map(min, epochs["cmnist", "jtt"])) > 90.4
    assert min(min(run[40:]) for run in epochs["cmnist", "lff"]) > 92.4
    assert all(min(run[:40]) < 91.35 for run in epochs["cmnist", "lff"])
    assert max(map(max, epochs["cmnist:rho=0.05", "pgd"])) < 97.4


def test_the_biased_network_and_the_conflict_mass_follow_from_the_records():
    found = runs("cmnist")
    scored = found[found.method.str.startswith("pgd")].sort_values(["method", "seed"])
    rows = section("PGD's biased network")
    assert [row[:2] for row in rows] == [[run.method, str(run.seed)] for run in scored.itertuples()]
    for row, (_, run) in zip(rows, scored.iterrows(), strict=True):
        assert row[2:] == [f"{run.biased:.2f}", f"{run.mass:.3f}", f"{run.accuracy:.2f}"]


def accuracy(metrics):
    return f"{100 * metrics['acc_unbiased']:.2f}"


BIASED = records_below("biased-network")
TEXT = " ".join(DOCUMENT.split())  # without line breaks


def test_biased_networks_after_few_epochs_follow_from_the_records():
    """Those of the paper's Table 7 stand beside them."""
    ours, all_six = {}, {}
    for record in BIASED:
        values = record.cell.method_parameters
        if record.cell.recipe["epochs"] == 6:
            assert (record.cell.method, values["gce_form"]) == ("gce", "official")
            epochs = record.result.epochs[:3]
            assert [epoch.learning_rate for epoch in epochs] == [0.02] * 3
            network = record.cell.dataset_parameters["rho"], values["alpha"]
            ours[network] = [accuracy(epoch.test) for epoch in epochs]
            all_six[network] = min(100 * epoch.test["acc_unbiased"] for epoch in record.result.epochs)
    rows = section("How biased the biased network is, by epoch")
    assert len(ours) == 12
    assert len(rows) == 3 * 4
    above, lowest = [], []
    for first in range(0, len(rows), 4):
        *epochs, published = rows[first : first + 4]
        rho = float(published[0].removesuffix(" %")) / 100
        for index, row in enumerate(epochs):
            accuracies = [ours[rho, alpha][index] for alpha in (0.3, 0.5, 0.7, 0.9)]
            assert row == [published[0], f"epoch {index + 1}", *accuracies]
        pairs = zip(epochs[2][2:], published[2:], strict=True)
        above += [float(text) - float(paper.split()[0]) for text, paper in pairs]
        if rho < 0.05:
            pairs = zip((0.3, 0.5, 0.7, 0.9), published[2:], strict=True)
            lowest += [all_six[rho, alpha] - float(paper.split()[0]) for alpha, paper in pairs]
    assert f"the lowest of each are {min(lowest):.1f} to {max(lowest):.1f} points above the table" in TEXT
    assert f"all twelve values are {min(above):.1f} to {max(above):.1f} points above it" in TEXT


def test_a_plain_loop_and_the_suite_after_four_epochs_follow_from_their_files():
    plain = pd.read_csv(ROOT / "docs" / "reproduction" / "plain-loop.csv").query("epoch == 4")
    by_suite = plain[plain.images == "suite"].accuracy
    (own,) = plain[plain.images == "own"].accuracy
    official = {"gce_form": "official", "alpha": 0.7}
    suite = [one for one in BIASED if one.cell.method_parameters == official and one.cell.recipe["epochs"] > 6]
    fourth, twentieth = (
        pd.Series([100 * one.result.epochs[epoch - 1].test["acc_unbiased"] for one in suite]) for epoch in (4, 20)
    )
    assert (len(by_suite), len(fourth)) == (7, 4)
    assert f"{by_suite.mean():.1f} ± {by_suite.std():.1f} % over seven seeds" in TEXT
    assert f"the suite has {fourth.mean():.1f} ± {fourth.std():.1f} % over four runs" in TEXT
    plain = pd.read_csv(ROOT / "docs" / "reproduction" / "plain-loop.csv").query("images == 'own' and epoch == 20")
    (later,) = plain.accuracy
    assert f"it has {own:.1f} % after four epochs (one run), and {later:.1f} % after 20" in TEXT
    assert f"four runs of the suite have {twentieth.min():.1f} to {twentieth.max():.1f} %" in TEXT


def test_what_a_short_first_stage_changes_follows_from_the_records():
    of_pgd = [one for one in records_below("cmnist+rho=0.05") if one.cell.method_title == "pgd"]
    (whole,) = [one for one in of_pgd if one.cell.seed == 0]  # as the others
    rows = section("What a short first stage changes at 5 per cent")
    records = [whole, *(one for name in ("short-pgd", "early-scores") for one in BIASED if one.cell.method == name)]
    for row, record in zip(rows[:3], records, strict=True):
        score = record.result.identification["score"]
        assert row[0] == f"`{record.cell.method_title}`"
        assert row[3:] == [f"{score['auroc']:.3f}", f"{score['conflict_mass']:.3f}", accuracy(last_test(record))]
    (plain,) = [one for one in BIASED if one.cell.method == "gce" and one.cell.recipe["epochs"] == 100]
    best = plain.result.selected("val_loss")
    assert f"{accuracy(last_test(plain))} % at the end and {accuracy(best.test)} % after epoch {best.epoch}" in TEXT


def test_multi_bias_mnist_follows_from_the_records():
    paper = pd.read_csv(ROOT / "experiments" / "paper" / "table1.csv").set_index(["dataset", "method"])
    rows = section("Multi-bias MNIST, shortened to 2 epochs a stage")
    records = [record for record in RECORDS if record.cell.dataset == "mbmnist"]
    assert len(records) == 2 * len(rows)
    for conflicts, *ours, paper_vanilla, paper_pgd in rows:
        rho = float(conflicts.split()[0]) / 100
        for method, text, published in (("vanilla", ours[0], paper_vanilla), ("pgd", ours[1], paper_pgd)):
            (record,) = [
                record
                for record in records
                if record.cell.method_title == method and record.cell.dataset_parameters["rho"] == rho
            ]
            assert (record.cell.recipe["epochs"], record.result.selected("last").epoch) == (2, 2)
            assert text == f"{100 * last_test(record)['acc_unbiased']:.2f}"
            row = paper.loc[("mbmnist" if rho == 0.1 else f"mbmnist:rho={rho:g}", method)]
            assert published == f"{row['mean']:.2f} ± {row['std']:.2f}"


def test_two_epochs_on_each_image_dataset_follow_from_the_records():
    rows = section("Two epochs on each image dataset")
    records = records_below("short")
    images = [record for record in records if datasets.get(record.cell.dataset)[0].input == "images"]
    assert len(images) == 2 * len(rows)
    for label, _, metric, *accuracies in rows:
        for method, text in zip(("vanilla", "pgd"), accuracies, strict=True):
            (record,) = [
                record
                for record in images
                if (record.cell.dataset_title, record.cell.method_title) == (label.strip("`"), method)
            ]
            assert metric == datasets.get(record.cell.dataset)[0].headline[0]
            assert (record.result.selected("last").epoch, record.result.data.official) == (2, False)
            assert text == f"{100 * last_test(record)[metric]:.2f}"


def test_celeba_by_features_follows_from_the_records():
    """And from one embedding, of a part of the data."""
    by_method = {}
    for one in records_below("features-celeba"):
        by_method.setdefault(one.cell.method_title, []).append(one)
    rows = section("CelebA by features of EfficientNet-Lite0")
    assert {row[0].strip("`") for row in rows} == set(by_method)
    assert [float(row[1].split()[0]) for row in rows] == sorted(
        (float(row[1].split()[0]) for row in rows), reverse=True
    )
    for label, *accuracies, seconds in rows:
        runs_of = by_method[label.strip("`")]
        assert {one.cell.seed for one in runs_of} == {0, 1, 2}
        tests = [last_test(one) for one in runs_of]
        names = ("acc_worst", "acc_avg", "acc_groupmean")
        assert accuracies == [written(100 * pd.Series([test[name] for test in tests])) for name in names]
        assert seconds == f"{sum(one.provenance.seconds.total for one in runs_of) / 3:.0f}"
        for one in runs_of:
            assert not one.result.data.official
            assert (
                "file:lite0.py (weights 7f22105182f93e44) from celeba (data 560f7413f2a35e78)" in one.result.data.note
            )
            assert [part.n_conflict for part in one.result.data.splits.values()] == [
                {"male": 58}, {"male": 12}, {"male": 11},
            ]  # fmt: skip


def test_the_stand_in_of_civilcomments_follows_from_the_records():
    rows = section("CivilComments: three methods on a stand-in, 300 steps")
    records = records_below("short")
    texts = {record.cell.method_title: record for record in records if record.cell.dataset == "civilcomments"}
    assert {row[0].strip("`") for row in rows} == set(texts)
    assert len(texts) == 3
    for label, *numbers in rows:
        record = texts[label.strip("`")]
        test = last_test(record)
        assert numbers == [f"{100 * test[name]:.2f}" for name in ("acc_worst", "acc_avg", "acc_groupmean")]
        assert (record.cell.recipe["steps"], record.result.data.official) == (300, False)
        assert test["n_groups"] == 16


def tune_runs(method, setting):
    """One row a run on the tune split: the setting, accuracy in per cent, and what was selected."""
    rows = []
    for record in records_below("tune") + records_below("tune-bam"):
        if record.cell.method == method:
            selected = record.result.identification.get("selected", {})
            rows.append(
                {
                    "setting": setting(record.cell),
                    "seed": record.cell.seed,
                    "accuracy": 100 * record.result.tune["acc_avg"],
                    **{name: selected.get(name) for name in ("n_selected", "precision", "recall")},
                }
            )
    frame = pd.DataFrame(rows)
    assert (frame.seed >= 1000).all()
    return frame


def test_sensitivity_of_jtt_follows_from_the_records():
    found = tune_runs("jtt", lambda cell: cell.method_parameters["T"])
    rows = section("JTT's T on cmnist5k")
    assert [int(row[0]) for row in rows] == sorted(set(found.setting))
    for setting, accuracy, n, errors, precision, recall in rows:
        some = found[found.setting == int(setting)]
        assert accuracy == f"{some.accuracy.mean():.1f} ± {some.accuracy.std():.1f}"
        assert int(n) == len(some) == len(set(some.seed))
        assert errors == f"{some.n_selected.mean():.0f}"
        assert (precision, recall) == (f"{some.precision.mean():.2f}", f"{some.recall.mean():.2f}")
    best = found.groupby("setting").accuracy.mean().idxmax()
    assert methods.get("jtt")[0].by_dataset["cmnist5k"]["T"] == best


def test_sensitivity_of_lff_follows_from_the_records():
    found = tune_runs("lff", lambda cell: cell.recipe["learning_rate"])
    rows = section("LfF's learning rate on cmnist5k")
    assert [float(row[0]) for row in rows] == sorted(set(found.setting))
    for setting, accuracy, n in rows:
        some = found[found.setting == float(setting)]
        assert accuracy == f"{some.accuracy.mean():.1f} ± {some.accuracy.std():.1f}"
        assert int(n) == len(some) == len(set(some.seed))
    best = found.groupby("setting").accuracy.mean().idxmax()
    assert methods.get("lff")[0].recipes["cmnist5k"]["learning_rate"] == best


def test_records_are_of_one_protocol_and_one_drawing_of_the_data():
    assert RECORDS
    assert not COMPLAINTS
    assert {record.provenance.protocol for record in RECORDS} == {1}
    for dataset in {record.cell.dataset_title for record in RECORDS}:
        prints = {one.result.data.fingerprint for one in RECORDS if one.cell.dataset_title == dataset}
        assert len(prints) == 1, dataset


def test_the_records_of_a_grid_are_in_an_archive_that_debiasbench_archive_wrote():
    archives = sorted(FOLDER.glob("*.zip"))
    assert len(archives) == 22
    assert {one.path.relative_to(FOLDER).parts[0] for one in RECORDS} == {one.name for one in archives}
    for archive in archives:
        assert not archive.with_suffix("").exists()
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
        assert packed.namelist() == sorted(packed.namelist())
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}  # equal records, equal bytes


def test_no_record_names_a_place_on_a_machine():
    found = texts()
    assert len(found) == len(RECORDS)
    assert not [text for text in found if re.search(r"\"/|\b(root|home|tmp)/", text)]
    assert {json.loads(text)["schema"] for text in found} == {1, 2}


def test_all_methods_on_the_embedded_data_follow_from_the_records():
    """Accuracies, margins over vanilla and whether they were met, and how scores find the conflicting samples."""
    records = records_below("all")
    by_method = {}
    for record in records:
        by_method.setdefault(record.cell.method_title, []).append(record)
    rows = section("All methods on cmnist5k")
    assert {row[0] for row in rows} == set(by_method)
    assert all({one.cell.seed for one in found} == {0, 1, 2} for found in by_method.values())
    conflicting = {
        method: 100 * pd.Series([last_test(one)["acc_conflict"] for one in found])
        for method, found in by_method.items()
    }
    table = to_frame(records)
    rank = ranks(table, [Measure("cmnist5k", "acc_unbiased")]).iloc[:, 0]
    for method, accuracy, conflict, margin, expected, met, shared, *found in rows:
        runs_of = by_method[method]
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in runs_of]))
        assert conflict == written(conflicting[method])
        gap = conflicting[method].mean() - conflicting["vanilla"].mean()
        if method != "vanilla":
            assert margin == f"{gap:+.1f}"
            assert met == ("yes" if gap >= float(expected) else "no")
        assert int(shared) == rank[method]
        values = [one.result.identification for one in runs_of]
        for text, column, name, digits in zip(
            found, ("score", "score", "selected"), ("auroc", "conflict_mass", "precision"), (3, 2, 2), strict=True
        ):
            numbers = [one[column][name] for one in values if column in one]
            if text != "-":
                assert text == f"{sum(numbers) / 3:.{digits}f}"


def test_every_method_in_one_run_follows_from_the_records():
    found = records_below("field")
    rank = ranks(to_frame(found), [Measure("cmnist5k", "acc_unbiased")]).iloc[:, 0]
    rows = section("Every method in one run")
    assert {row[0] for row in rows} == {one.cell.method_title for one in found}
    assert len(found) == 3 * len(rows)
    for method, accuracy, conflicting, shared, seconds in rows:
        runs_of = [one for one in found if one.cell.method_title == method]
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in runs_of]))
        assert conflicting == written(100 * pd.Series([last_test(one)["acc_conflict"] for one in runs_of]))
        assert int(shared) == rank[method]
        assert seconds == f"{sum(one.provenance.seconds.total for one in runs_of) / 3:.0f}"


def test_tuned_beside_untuned_follows_from_the_records():
    found = records_below("tuned")
    counts = re.findall(
        r"(\w+) (\d+)(?:,| have)", DOCUMENT.partition("of 16 draws each, ")[2].partition("highest value")[0]
    )
    for method, chosen, default, value, before, after, change in section("Tuned beside untuned on cmnist5k"):
        name = method.strip("`")
        draws = [one for one in found if one.cell.method == name and one.cell.draw]
        values = {one.cell.draw.number: one.result.criterion("worst_class", "acc_unbiased") for one in draws}
        assert sorted(values) == list(range(16))
        assert {one.cell.seed for one in draws} == {1000}
        tuned = [one for one in found if one.cell.method == name and one.cell.tuned]
        assert [(one.cell.seed, one.cell.tuned.draw) for one in tuned] == [(seed, int(chosen)) for seed in range(3)]
        assert int(chosen) == min(number for number, one in values.items() if one == max(values.values()))
        assert (default, value) == (f"{100 * values[0]:.0f}", f"{100 * values[int(chosen)]:.0f}")
        untuned = [one for one in records_below("field") if one.cell.method_title == name]
        sides = [100 * pd.Series([last_test(one)["acc_unbiased"] for one in side]) for side in (untuned, tuned)]
        assert (before, after) == tuple(map(written, sides))
        assert change == f"{sides[1].mean() - sides[0].mean():+.2f}"
        assert (name, str(sum(one == max(values.values()) for one in values.values()))) in counts


def test_the_table_of_the_readme_follows_from_the_records():
    """Every method of the suite has a row, and those that are told the bias are marked and come last."""
    rows = re.findall(r"(?m)^\| `([\w-]+)`( ‡)? \| [^|]+ \| ([\d.]+ ± [\d.]+) \| ([\d.]+ ± [\d.]+) \|$", README)
    assert sorted(row[0] for row in rows) == sorted(name for name, cls in methods.classes().items() if is_shipped(cls))
    found = [
        *records_below("field"),
        *(one for one in records_below("cnc-george") if one.cell.method_title == "george"),
    ]
    for method, mark, accuracy, conflicting in rows:
        runs_of = [one for one in found if one.cell.method_title == method and one.cell.dataset_title == "cmnist5k"]
        assert sorted(one.cell.seed for one in runs_of) == [0, 1, 2]
        version = str(methods.get(method)[0].version)  # with its parent's behind it
        assert {str(one.cell.method_version).partition(",")[0] for one in runs_of} == {version}
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in runs_of]))
        assert conflicting == written(100 * pd.Series([last_test(one)["acc_conflict"] for one in runs_of]))
        assert bool(mark) == methods.get(method)[0].needs_bias_labels
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for method, _, accuracy, _ in rows:
        assert re.search(rf"(?m)^\| `{method}` \|.* \| {re.escape(accuracy)} \|", page), method
    order = [(bool(mark), -float(accuracy.split()[0])) for _, mark, accuracy, _ in rows]
    assert order == sorted(order)


def test_full_colored_mnist_in_the_readme_is_that_of_the_document():
    rows = re.findall(r"(?m)^\| `(\w+)` \| ([\d.]+ ± [\d.]+) \| (\d+) \| ([\d.]+ ± [\d.]+) \|$", README)
    document = {row[0]: tuple(row[1:4]) for row in section("Colored MNIST, 0.5 per cent conflicts")}
    assert {method: document[method] for method, *_ in rows} == {method: tuple(rest) for method, *rest in rows}
    assert {method for method, *_ in rows} == {"vanilla", "lff", "jtt", "disen", "pgd"}


def test_methods_as_published_follow_from_the_records():
    """Both versions of each method, run side by side."""
    found = AS_PUBLISHED
    rows = section("Methods as published, before and after")
    expected = {method: margin for method, margin, _ in section("What was expected of the changed methods")}
    assert {row[0]: row[6] for row in rows} == expected
    vanilla = [last_test(one)["acc_conflict"] for one in records_below("all") if one.cell.method_title == "vanilla"]
    for method, *accuracies, margin, least, met in rows:
        ours = [one for one in found if one.cell.method_title == method]
        sides = {version: [one for one in ours if one.cell.method_version == version] for version in (1, 2)}
        assert {one.cell.seed for one in sides[2]} == {0, 1, 2}
        assert {one.cell.seed for one in sides[1]} in ({0, 1, 2}, set())
        texts_of = [
            written(100 * pd.Series([last_test(one)[name] for one in side])) if side else "-"
            for name in ("acc_unbiased", "acc_conflict")
            for side in sides.values()
        ]
        assert accuracies == texts_of
        gap = 100 * (pd.Series([last_test(one)["acc_conflict"] for one in sides[2]]).mean() - sum(vanilla) / 3)
        assert margin == f"{gap:+.1f}"
        assert met == ("yes" if gap >= float(least) else "no")


def test_jtt_of_whole_copies_is_as_it_was():
    """Bit for bit, by the code before and after, in one environment."""
    before, after = (one for one in AS_PUBLISHED if one.cell.method_title == "jtt")
    assert before.result == after.result
    assert before.cell.method_version == after.cell.method_version == 1
    assert before.provenance.code != after.provenance.code


def test_records_of_unchanged_methods_still_count_as_finished(tmp_path):
    """Also where a method has got parameters, or versions that follow from values, since."""
    by_hash = {json.loads(text)["hash"]: text for text in texts()}
    for name in ("jtt", "eiil", "vanilla", "pgd"):
        for cell in expand([name], ["cmnist5k"], seeds=3).cells:
            (record,) = [
                one for one in records_below("all") if (one.cell.method_title, one.cell.seed) == (name, cell.seed)
            ]
            path = record_path(tmp_path, record.cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(by_hash[record.cell.hash], encoding="utf-8")
            assert find_record(tmp_path, cell) == path


def test_what_was_expected_is_what_the_table_says():
    expected = {method: margin for method, margin, _ in section("What was expected on cmnist5k")}
    assert expected == {row[0]: row[4] for row in section("All methods on cmnist5k") if row[0] != "vanilla"}


def test_methods_that_score_put_more_weight_on_conflicting_samples():
    """Two samples of a hundred conflict: each score gives them a larger share; each selection is richer in them."""
    for record in records_below("all"):
        found = record.result.identification
        method = record.cell.method_title
        if method == "george":  # its clusters hardly follow the bias, which its section says
            continue
        if "score" in found:
            assert found["score"]["auroc"] > 0.7, method
        if "selected" in found:
            assert found["selected"]["precision"] > 0.1, method
        if "score" in found and method != "eiil":  # whose score has a sign
            assert found["score"]["conflict_mass"] > 0.1, method


def test_the_first_version_of_cnc_failed():
    found = [last_test(record)["acc_conflict"] for record in records_below("cnc-version-1")]
    assert len(found) == 3
    assert f"{100 * sum(found) / 3:.1f} % on conflicting samples, 8.0 points *below* vanilla" in DOCUMENT


def test_cnc_and_george_before_and_after_follow_from_the_records():
    """Accuracies of both versions, margins over vanilla, and whether the new ones were as expected."""
    by_version = {}
    for one in records_below("cnc-george"):
        by_version.setdefault((one.cell.method_title, str(one.cell.method_version)), []).append(one)
    rows = section("CNC and GEORGE nearer to what was published, on cmnist5k")
    assert [(row[0].strip("`"), row[1]) for row in rows] == sorted(
        by_version, key=lambda one: (one[0] != "vanilla", *one)
    )
    assert all({one.cell.seed for one in found} == {0, 1, 2} for found in by_version.values())
    assert all(len(found) == 3 for found in by_version.values())
    conflicting = {key: 100 * pd.Series([last_test(one)["acc_conflict"] for one in found]) for key, found in
                   by_version.items()}  # fmt: skip
    margins = {method: margin for method, margin, _ in section("What was expected of CNC and GEORGE")}
    for label, version, accuracy, conflict, margin, expected, met in rows:
        key = (label.strip("`"), version)
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in by_version[key]]))
        assert conflict == written(conflicting[key])
        gap = conflicting[key].mean() - conflicting["vanilla", "1"].mean()
        assert margin == ("-" if key[0] == "vanilla" else f"{gap:+.1f}")
        new = key[0] in margins and int(version) == max(int(one) for method, one in by_version if method == key[0])
        assert (expected, met) == ((margins[key[0]], "yes" if gap >= float(expected) else "no") if new else ("-", "-"))


def test_last_layers_xrm_biasensemble_and_selecmix_follow_from_the_records():
    """Accuracies, margins over vanilla beside what was expected, and how conflicting samples weigh or are selected."""
    by_method = {}
    for record in records_below("llr-xrm-be-selecmix"):
        by_method.setdefault(record.cell.method_title, []).append(record)
    rows = section("Last layers, XRM, BiasEnsemble and SelecMix on cmnist5k")
    expected = {
        method: margin
        for method, margin, _ in section("What was expected of last layers, XRM, BiasEnsemble and SelecMix")
    }
    assert [row[0] for row in rows] == ["vanilla", "lff", "disen", *expected]
    assert {row[0] for row in rows} == set(by_method)
    assert all({one.cell.seed for one in found} == {0, 1, 2} for found in by_method.values())
    test = {
        name: {method: 100 * pd.Series([last_test(one)[name] for one in some]) for method, some in by_method.items()}
        for name in ("acc_unbiased", "acc_conflict")
    }
    for method, accuracy, conflict, margin, least, met, *found in rows:
        assert accuracy == written(test["acc_unbiased"][method])
        assert conflict == written(test["acc_conflict"][method])
        gap = test["acc_conflict"][method].mean() - test["acc_conflict"]["vanilla"].mean()
        assert margin == ("-" if method == "vanilla" else f"{gap:+.1f}")
        new = method in expected  # the others are there to compare with
        assert (least, met) == ((expected[method], "yes" if gap >= float(least) else "no") if new else ("-", "-"))
        values = [one.result.identification for one in by_method[method]]
        columns = [("score", "conflict_mass"), ("selected", "precision"), ("selected", "recall")]
        for text, (column, name) in zip(found, columns, strict=True):
            numbers = [one[column][name] for one in values if column in one]
            assert text == (f"{sum(numbers) / 3:.2f}" if numbers else "-")


def test_the_ablations_follow_from_the_records():
    by_method = {}
    for record in [*records_below("ablations"), *records_below("all")]:
        by_method.setdefault(record.cell.method_title, []).append(record)
    rows = section("Ablations on cmnist5k")
    assert {one.cell.method_title for one in records_below("ablations")} <= {row[0].strip("`") for row in rows}
    for label, _, accuracy, conflicting, mass in rows:
        found = by_method[label.strip("`")]
        assert {one.cell.seed for one in found} == {0, 1, 2}
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in found]))
        assert conflicting == written(100 * pd.Series([last_test(one)["acc_conflict"] for one in found]))
        scores = [one.result.identification.get("score", {}).get("conflict_mass") for one in found]
        assert mass == ("-" if None in scores else f"{sum(scores) / 3:.2f}")


def test_the_trials_follow_from_the_records():
    records = records_below("trials")
    accuracy = {}
    for record in records:
        accuracy.setdefault(record.cell.method_title, {})[record.cell.seed] = last_test(record)["acc_unbiased"]
    assert all(sorted(runs_of) == list(range(25)) for runs_of in accuracy.values())
    rows = section("25 trials on cmnist5k (Figure 10)")
    assert {row[0] for row in rows} == set(accuracy)
    for method, text, n, p in rows:
        values = pd.Series(accuracy[method].values())
        assert (text, int(n)) == (written(100 * values), len(values))
        if method != "disen":
            sides = [list(accuracy[one].values()) for one in (method, "disen")]
            assert p == f"{stats.ttest_ind(*sides, equal_var=False, alternative='greater').pvalue:.4f}"


def test_the_traces_follow_from_what_was_computed():
    runs_of = json.loads((ROOT / "docs" / "reproduction" / "fisher.json").read_text(encoding="utf-8"))
    assert {(one["method"], one["seed"], one["dimension"]) for one in runs_of} == {
        (method, seed, 585) for method in ("vanilla", "pgd") for seed in range(3)
    }
    columns = [
        ("vanilla", "objective"), ("pgd", "objective"), ("vanilla", "objective_in_rank"), ("pgd", "objective_in_rank"),
        ("pgd", "uniform"),
    ]  # fmt: skip
    for place, (damping, *texts) in enumerate(
        section("The trace of the inverse Fisher information on cmnist5k (Figure 3)")
    ):
        assert {one["sensitivity"]["damping"][place] for one in runs_of} == {float(damping)}
        for text, (method, name) in zip(texts, columns, strict=True):
            values = pd.Series([one["sensitivity"][name][place] for one in runs_of if one["method"] == method])
            assert text == f"{values.mean():.2e}"


def test_sensitivity_of_cnc_follows_from_the_records():
    found = tune_runs("cnc", lambda cell: cell.method_parameters["sets"])
    rows = section("CNC's sets in a step on cmnist5k")
    assert [int(row[0]) for row in rows] == sorted(set(found.setting))
    for setting, accuracy, n in rows:
        some = found[found.setting == int(setting)]
        assert accuracy == f"{some.accuracy.mean():.1f} ± {some.accuracy.std():.1f}"
        assert int(n) == len(some) == len(set(some.seed))
    best = found.groupby("setting").accuracy.mean().idxmax()
    assert methods.get("cnc")[0].by_dataset["cmnist5k"]["sets"] == best


def test_the_page_of_all_methods_is_what_its_generator_writes():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == generate.page(), "python docs/generate.py"


def test_dpr_lc_bam_and_simple_baselines_follow_from_the_records():
    """Accuracies, margins over vanilla, whether they were met, and what scores and selections find."""
    by_method = {}
    for one in records_below("dpr-lc-bam-simple"):
        by_method.setdefault(one.cell.method_title, []).append(one)
    rows = section("DPR, LC, BAM and simple baselines on cmnist5k")
    assert {row[0].strip("`") for row in rows} == set(by_method)
    assert all({one.cell.seed for one in found} == {0, 1, 2} for found in by_method.values())
    conflicting = {
        method: 100 * pd.Series([last_test(one)["acc_conflict"] for one in found])
        for method, found in by_method.items()
    }
    expected = {
        method.strip("`"): margin
        for method, margin, _ in section("What was expected of DPR, LC, BAM and the simple baselines")
    }
    assert expected.keys() == by_method.keys() - {"vanilla"}
    for label, accuracy, conflict, margin, least, met, *found in rows:
        method = label.strip("`")
        assert accuracy == written(100 * pd.Series([last_test(one)["acc_unbiased"] for one in by_method[method]]))
        assert conflict == written(conflicting[method])
        gap = conflicting[method].mean() - conflicting["vanilla"].mean()
        if method != "vanilla":
            assert (margin, least) == (f"{gap:+.1f}", expected[method])
            assert met == ("yes" if gap >= float(least) else "no")
        values = [one.result.identification for one in by_method[method]]
        for text, column, name, digits in zip(
            found, ("score", "score", "selected", "selected"), ("auroc", "conflict_mass", "precision", "recall"),
            (3, 2, 2, 2), strict=True,
        ):  # fmt: skip
            numbers = [one[column][name] for one in values if column in one]
            assert text == (f"{sum(numbers) / 3:.{digits}f}" if numbers else "-")


def test_sensitivity_of_bam_follows_from_the_records():
    found = tune_runs("bam", lambda cell: cell.method_parameters["amplification"])
    rows = section("BAM's amplification on cmnist5k")
    assert [float(row[0]) for row in rows] == sorted(set(found.setting))
    for setting, accuracy, n, errors, precision, recall in rows:
        some = found[found.setting == float(setting)]
        assert accuracy == f"{some.accuracy.mean():.1f} ± {some.accuracy.std():.1f}"
        assert int(n) == len(some) == len(set(some.seed))
        assert errors == f"{some.n_selected.mean():.0f}"
        assert (precision, recall) == (f"{some.precision.mean():.2f}", f"{some.recall.mean():.2f}")
    assert methods.get("bam")[0]().amplification in set(found.setting)
    means = found.groupby("setting").accuracy.mean()
    assert means.max() - means.min() < found.groupby("setting").accuracy.std().min()  # nothing to choose by
