"""How hard a benchmark is, from made-up records of several conflict ratios."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from made_records import made_record, stored
from scipy import stats

from debiasbench import cli
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, read_records
from debiasbench.report import figures, profile
from debiasbench.report import make as report
from debiasbench.report.statistics import mean_interval
from debiasbench.report.style import save

MEANS = {"vanilla": 0.30, "pgd": 0.85, "lff": 0.84, "groupdro": 0.92}
RATIOS = [0.005, 0.02, 0.1, 0.3]
SEEDS = range(4)


def value_of(method, ratio, seed):
    """Made up: vanilla rises with the ratio up to where nothing is left to win."""
    noise = np.random.default_rng([seed, len(method), round(1000 * ratio)]).normal()
    return float(MEANS[method] + (0.94 - MEANS[method]) * ratio / 0.3 + 0.01 * noise)


def aligned_of(ratio, seed):
    return float(0.95 + 0.01 * np.random.default_rng([seed, round(1000 * ratio)]).normal())


def fill(folder, methods, datasets, *, seeds=SEEDS, aligned=("acc_aligned",)):
    for cell in expand(methods, datasets, seeds=list(seeds)).cells:
        ratio = cell.dataset_parameters["rho"]
        value = value_of(cell.method, ratio, cell.seed)
        sides = {name: aligned_of(ratio, cell.seed) + 0.01 * index for index, name in enumerate(aligned)}
        rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_avg": value, "acc_unbiased": value, **sides})]
        stored(folder, made_record(cell, rows, {"last": 0}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    datasets = [f"cmnist5k:rho={ratio}" for ratio in RATIOS]
    return fill(tmp_path_factory.mktemp("results"), list(MEANS), datasets)


@pytest.fixture(scope="module")
def made(folder):
    return report.make(folder, reference="vanilla", figures=False, order=list(MEANS), shown=report.Shown(profile=True))


def rows_of(table):
    keys = [column.key for column in table.columns]
    return [dict(zip(keys, row, strict=True)) for row in table.rows]


def test_a_row_is_a_ratio_and_the_lowest_is_first(made):
    rows = rows_of(made.table("profile"))
    assert [row["ratio"].value for row in rows] == RATIOS
    assert [row["ratio"].shown for row in rows] == ["0.5", "2", "10", "30"]
    assert {row["dataset"].value for row in rows} == {"cmnist5k"}
    assert {row["n"].value for row in rows} == {len(SEEDS)}


def test_the_shortfall_is_that_of_each_run_with_its_interval_of_t(made):
    for row, ratio in zip(rows_of(made.table("profile")), RATIOS, strict=True):
        ours = np.array([value_of("vanilla", ratio, seed) for seed in SEEDS])
        aligned = np.array([aligned_of(ratio, seed) for seed in SEEDS])
        assert (row["vanilla"].value, row["vanilla"].std) == pytest.approx((ours.mean(), ours.std(ddof=1)))
        assert (row["aligned"].value, row["aligned"].std) == pytest.approx((aligned.mean(), aligned.std(ddof=1)))
        low, high = stats.ttest_1samp(aligned - ours, 0).confidence_interval(0.95)
        assert row["interval"].shown == f"{100 * low:+.1f} .. {100 * high:+.1f}"
        assert row["fails"].shown == ("yes" if low > 0 else "not shown")
    shown = [row["fails"].shown for row in rows_of(made.table("profile"))]
    assert shown == ["yes", "yes", "yes", "not shown"]  # at 30 % nothing is left to win


def test_how_far_methods_are_apart_is_by_those_that_do_not_know_the_bias(made):
    for row, ratio in zip(rows_of(made.table("profile")), RATIOS, strict=True):
        names = ["vanilla", "pgd", "lff"]
        values = {name: [value_of(name, ratio, seed) for seed in SEEDS] for name in names}
        means = {name: np.mean(some) for name, some in values.items()}
        assert row["best"].value == max(means, key=means.get)
        assert row["range"].value == pytest.approx(max(means.values()) - min(means.values()))
        p = sorted(
            stats.ttest_ind(values[a], values[b], equal_var=False, alternative="greater").pvalue
            for a in names for b in names if a != b
        )  # fmt: skip
        running, n_apart = 0.0, 0
        for index, one in enumerate(p):
            running = max(running, one * (len(p) - index))
            n_apart += running < 0.05
        assert row["told apart"].shown == f"{n_apart} / 3"
    apart = [row["told apart"].value for row in rows_of(made.table("profile"))]
    assert apart[0] >= 2 > apart[-1]


def test_the_table_is_a_csv_and_stands_in_every_format(folder, made):
    lines = list(csv.DictReader((folder / "tables" / "profile.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [float(line["ratio"]) for line in lines] == RATIOS
    assert float(lines[0]["vanilla mean"]) == pytest.approx(np.mean([value_of("vanilla", 0.005, s) for s in SEEDS]))
    for name in ("tables/comparison.md", "tables/comparison.tex", "report.html"):
        assert "How hard the benchmark is" in (folder / name).read_text(encoding="utf-8")


def test_it_is_made_only_when_asked_for(folder):
    plain = report.make(folder, figures=False)
    assert "profile" not in [table.key for table in plain.tables]


def test_sweeps_are_of_one_dataset_that_differs_in_its_ratio_alone(tmp_path):
    """The default ratio has no place in a title; other parameters make another dataset."""
    fill(tmp_path, ["vanilla"], ["cmnist", "cmnist:rho=0.05", "cmnist:preset=lff", "mbmnist", "mbmnist:rho=0.3"])
    fill(tmp_path, ["vanilla"], ["cmnist:rho=0.05,data_seed=1", "cmnist:preset=lff,rho=0.05"])
    records, _ = read_records(tmp_path)
    found = {one.title: one.ratios for one in profile.sweeps(records)}
    assert found == {
        "cmnist": {"cmnist": 0.005, "cmnist:rho=0.05": 0.05},
        "cmnist:preset=lff": {"cmnist:preset=lff": 0.005, "cmnist:preset=lff,rho=0.05": 0.05},
        "mbmnist": {"mbmnist": 0.1, "mbmnist:rho=0.3": 0.3},
    }


@pytest.mark.parametrize(
    ("specs", "found"),
    [
        (["dominoes", "dominoes:bias_strength=0.6", "dominoes:bias_strength=0.6,label_noise=0.1"],
         {"dominoes": {"dominoes": 0.05, "dominoes:bias_strength=0.6": 0.2}}),
        (["dominoes:bias_strength=0.8,label_noise=0.1", "dominoes:bias_strength=0.4,label_noise=0.1"],
         {"dominoes:label_noise=0.1": {"dominoes:bias_strength=0.8,label_noise=0.1": 0.18,
                                       "dominoes:bias_strength=0.4,label_noise=0.1": 0.34}}),
        (["cmnist2", "cmnist2:first=0.95,second=0.95", "cmnist2:label_noise=0.05,first=0.95,second=0.95",
          "cmnist2:label_noise=0.05"],
         {"cmnist2": {"cmnist2": 0.15, "cmnist2:first=0.95,second=0.95": 0.05},
          "cmnist2:label_noise=0.05": {"cmnist2:first=0.95,second=0.95,label_noise=0.05": 0.05,
                                       "cmnist2:label_noise=0.05": 0.15}}),
        (["bffhq", "bffhq:part=2pct"], {"bffhq": {"bffhq": 0.005, "bffhq:part=2pct": 0.02}}),
    ],
)  # fmt: skip
def test_the_ratio_may_follow_from_other_parameters(specs, found):
    """Also where it equals one that has nothing to do with it."""
    rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_avg": 0.9})]
    records = [made_record(cell, rows, {"last": 0}) for cell in expand(["vanilla"], specs, seeds=1).cells]
    swept = {sweep.title: sweep.ratios for sweep in profile.sweeps(records)}
    assert swept == {title: pytest.approx(ratios) for title, ratios in found.items()}


def test_two_datasets_of_one_sweep_and_ratio_are_told():
    specs = ["cmnist2", "cmnist2:first=0.95,second=0.75", "cmnist2:first=0.6"]
    rows = [EpochFacts(1, {"acc_avg": 0.9}, {"acc_avg": 0.9})]
    records = [made_record(cell, rows, {"last": 0}) for cell in expand(["vanilla"], specs, seeds=1).cells]
    with pytest.raises(
        BenchmarkError, match=r"At 15 % are cmnist2, cmnist2:first=0\.95,second=0\.75: leave out all but"
    ):
        profile.sweeps(records)
    assert [sweep.title for sweep in profile.sweeps(records[1:])] == ["cmnist2"]


@pytest.mark.parametrize("datasets", [["cmnist5k"], ["cmnist5k", "cmnist:rho=0.05"]])
def test_without_a_sweep_there_is_one_error_and_nothing_is_written(tmp_path, capsys, datasets):
    fill(tmp_path, ["vanilla", "pgd"], datasets, seeds=[0])
    assert cli.main(["report", str(tmp_path), "--profile"]) == 2
    told = capsys.readouterr().err
    assert (
        "A profile needs records of one dataset at two conflict ratios or more. Ratios are known of: cmnist5k (2 %)"
        in (told.replace("cmnist:rho=0.05 (5 %), ", ""))
    )
    assert "debiasbench run --methods vanilla pgd --datasets 'cmnist5k:rho=" in told
    assert not (tmp_path / "tables").exists()


def test_a_dataset_that_is_not_known_here_has_no_ratio(tmp_path):
    fill(tmp_path, ["vanilla"], ["cmnist5k", "cmnist5k:rho=0.1"], seeds=[0])
    records, _ = read_records(tmp_path)
    gone = [replace(one, cell=replace(one.cell, dataset="gone")) for one in records]
    with pytest.raises(BenchmarkError, match="Ratios are known of: none"):
        profile.sweeps(gone)


def test_of_several_biases_the_aligned_accuracies_are_averaged(tmp_path):
    fill(
        tmp_path, ["vanilla", "pgd"], ["mbmnist:rho=0.1", "mbmnist:rho=0.3"], aligned=("acc_aligned.a", "acc_aligned.b")
    )
    made = report.make(tmp_path, reference="vanilla", figures=False, shown=report.Shown(profile=True))
    rows = rows_of(made.table("profile"))
    assert rows[0]["aligned"].value == pytest.approx(np.mean([aligned_of(0.1, seed) + 0.005 for seed in SEEDS]))


def test_a_single_run_and_no_aligned_accuracy_are_dashes(tmp_path):
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k:rho=0.1"], seeds=[0])
    fill(tmp_path, ["vanilla", "pgd"], ["cmnist5k:rho=0.3"], seeds=[0], aligned=())
    made = report.make(tmp_path, reference="vanilla", figures=False, shown=report.Shown(profile=True))
    one, none = rows_of(made.table("profile"))
    assert [one[key].shown for key in ("n", "interval", "fails", "told apart")] == ["1", "-", "-", "0 / 1"]
    assert [none[key].shown for key in ("n", "vanilla", "aligned", "shortfall")] == ["0", "-", "-", "-"]
    assert none["range"].value is not None


def test_the_interval_of_a_mean():
    values = [0.1, 0.2, 0.4, 0.15]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((low, high))
    assert np.isnan(mean_interval([0.1])).all()
    assert np.isnan(mean_interval([0.1, 0.1])).all()


def test_the_figure_has_a_panel_a_dataset_and_a_line_a_method(tmp_path):
    curves = {
        name: {method: {ratio: np.array([0.5, 0.6]) for ratio in (0.0, *RATIOS)} for method in ("vanilla", "a$b$")}
        for name in ("one", "two")
    }
    figure = figures.profile_figure(
        curves, {"one": {0.02: np.array([0.99]), 0.1: np.array([0.98])}},
        metrics={"one": "acc_unbiased", "two": "acc_worst"}, aligned_label="vanilla, aligned samples",
    )  # fmt: skip
    assert [path.name for path in save(figure, tmp_path / "profile")] == ["profile.pdf", "profile.png"]
    one, two = figure.axes
    assert one.get_xscale() == "log"
    assert [label.get_text() for label in one.get_xticklabels()] == ["0.5", "2", "10", "30"]
    assert (one.get_ylabel(), two.get_ylabel()) == ("acc_unbiased (%)", "acc_worst (%)")
    points = [
        line.get_xdata() for line in two.lines if len(line.get_xdata()) == len(RATIOS) and line.get_marker() not in "_|"
    ]
    assert [list(line) for line in points[:1]] == [[100 * ratio for ratio in RATIOS]]  # 0 has no place there
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["vanilla", "a$b$", "vanilla, aligned samples"]


def test_the_command_draws_it(folder, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda *_: [])
    assert cli.main(["report", str(folder), "--profile", "--reference", "vanilla"]) == 0
    assert (folder / "figures" / "profile.png").is_file()
    assert "profile.png" in capsys.readouterr().out
