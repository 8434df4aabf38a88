"""`debiasbench.figures`: the report's figures of a table of results, returned and nothing else."""

import io
import math
import pickle

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from made_records import made_record, stored
from matplotlib.figure import Figure
from PIL import Image

import debiasbench
from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.records import EpochFacts, read_record
from debiasbench.report.style import COLUMN

METHODS = ["vanilla", "pgd:norm=l1", "lff"]
NAMES = ["Vanilla", "PGD, norm=l1", "LfF"]
DATASETS = [f"cmnist5k:rho={rho}" for rho in (0.01, 0.03, 0.05, 0.1, 0.2, 0.3)]


def value_of(cell, epoch=2):
    """Made up: rises with the seed and the ratio, and from epoch to epoch."""
    ratio = cell.dataset_parameters["rho"]
    return 0.4 + 0.1 * METHODS.index(cell.method_title) + 0.01 * cell.seed + ratio / 5 + 0.05 * epoch


def fill(folder):
    for cell in expand(METHODS, DATASETS, seeds=2).cells:
        rows = [
            EpochFacts(
                epoch, {"loss": 0.5, "acc_avg": 0.9},
                {"loss": 0.5, "acc_avg": 0.3, "acc_unbiased": value_of(cell, epoch), "acc_aligned": 0.95},
            )
            for epoch in (1, 2)
        ]  # fmt: skip
        arrays = {"score": torch.arange(20.0), "train_conflict": torch.arange(20)[:, None] > 15}
        selection = {"last": 1, "val_loss": 0, "val_acc": 1, "group_val": 1, "test_oracle": 1}
        stored(folder, made_record(cell, rows, selection), None if cell.method == "vanilla" else arrays)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three methods on six datasets, two seeds."""
    found = debiasbench.load_results(fill(tmp_path_factory.mktemp("results")))
    return found.sort_values("method", key=lambda titles: titles.map(METHODS.index), kind="stable")


@pytest.fixture(scope="module")
def one(table):
    """The same on one dataset."""
    return table[table.dataset == DATASETS[0]]


@pytest.fixture(scope="module")
def draws():
    """As `debiasbench.tune` returns it."""
    return pd.DataFrame({
        "dataset": "cmnist5k", "method": ["vanilla"] * 3 + ["pgd"] * 2, "draw": [0, 1, 2, 0, 1], "run_as": "x",
        "rule": "val_acc", "value": [0.5, math.nan, 0.7, math.nan, 0.4], "chosen": [False, False, True, False, True],
    })  # fmt: skip


DRAWN = ("accuracies", "curves", "fisher", "scores", "ranks", "profile", "variants", "trials")


@pytest.fixture(autouse=True)
def with_weights(monkeypatch):
    """As if the networks were there: what is computed from them is another test's."""

    def of_record(path, data_dir):
        cell = read_record(path).cell
        names = {"dataset": cell.dataset_title, "method": cell.method_title, "net": "mlp", "damping": 0.1}
        return names | {"dimension": 9, "objective": 1.0 + cell.seed, "uniform": 2.0}

    monkeypatch.setattr(debiasbench.figures, "of_record", of_record)
    monkeypatch.setattr(debiasbench.figures, "has_weights", lambda _: True)


def draw(name, table, one):
    """The figure of this name, of all datasets where it has them all."""
    return getattr(debiasbench.figures, name)(one if name in ("accuracies", "curves", "fisher", "scores") else table)


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_returned_with_display_titles(name, table, one):
    figure = draw(name, table, one)
    assert isinstance(figure, Figure)
    shown = "\n".join(texts(figure)).replace("\n", " ")
    assert all(method in shown for method in NAMES[name == "scores" :])  # vanilla scores nothing
    assert "Colored MNIST" in shown or name == "ranks"
    assert "cmnist5k" not in shown


def test_the_module_has_no_other_figure_and_all_are_tested():
    assert {*debiasbench.figures.__all__} == {*DRAWN, "tuning"}


@pytest.mark.parametrize("name", ["curves", "ranks"])
def test_a_notebook_shows_a_figure_whatever_backend_and_settings_are_named(name, table, one, monkeypatch):
    plain = draw(name, table, one)._repr_png_()
    monkeypatch.setenv("MPLBACKEND", "module://nowhere")
    with matplotlib.rc_context({"font.size": 30, "savefig.bbox": "tight", "savefig.dpi": 30, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams.copy())
        assert draw(name, table, one)._repr_png_() == plain
        assert dict(matplotlib.rcParams.copy()) == before
    with Image.open(io.BytesIO(plain)) as image:
        assert image.width == round(150 * COLUMN)
    figure = draw(name, table, one)
    assert figure.canvas.manager is None  # pyplot does not know it
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == plain


def test_accuracies_are_those_of_the_runs(one):
    (axis,) = debiasbench.figures.accuracies(one, metric="acc_unbiased").axes
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    expected = [[100 * (0.4 + 0.1 * place + 0.01 * seed + 0.002 + 0.1) for seed in (0, 1)] for place in range(3)]
    np.testing.assert_allclose(np.sort(dots), expected)
    (axis,) = debiasbench.figures.accuracies(one, select="val_loss").axes  # which chooses the first epoch
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.sort(dots), np.array(expected) - 5)


def test_curves_are_the_means_and_each_run(one):
    (axis,) = debiasbench.figures.curves(one).axes
    thick = [line for line in axis.lines if line.get_linewidth() > 1]
    assert [list(line.get_xdata()) for line in thick] == [[1, 2]] * 3
    np.testing.assert_allclose(thick[0].get_ydata(), [100 * (0.407 + 0.05 * epoch) for epoch in (1, 2)])
    assert len(axis.lines) == 3 + 6


def test_trials_of_two_methods_have_the_p_of_the_other(one):
    two = one[one.method != "lff"]
    p = debiasbench.compare(two, reference="pgd:norm=l1").welch.item()
    figure = debiasbench.figures.trials(two, reference="pgd:norm=l1")
    assert figure.axes[0].get_title(loc="right") == f"p = {p:.4f}".replace("0.", ".", 1)
    assert debiasbench.figures.trials(one).axes[0].get_title(loc="right") == ""


def test_fisher_shows_every_run_and_says_what_lacks_weights(one, monkeypatch):
    (axis,) = debiasbench.figures.fisher(one).axes
    found = sorted(value for line in axis.lines if line.get_marker() != "None" for value in line.get_xdata())
    assert found == [*[1.0] * 3, *[2.0] * 9]
    monkeypatch.setattr(debiasbench.figures, "has_weights", lambda record: record.cell.seed == 0)
    (axis,) = debiasbench.figures.fisher(one).axes
    assert sum(len(line.get_xdata()) for line in axis.lines) == 6
    monkeypatch.undo()
    with pytest.raises(BenchmarkError, match="save_weights=True"):
        debiasbench.figures.fisher(one)


def test_draws_show_what_was_chosen(draws):
    figure = debiasbench.figures.tuning(draws)
    (axis,) = figure.axes
    points = [(line.get_marker(), list(line.get_xdata())) for line in axis.lines if line.get_marker() in "ox"]
    assert points == [("o", [50, 70]), ("x", [50]), ("o", [70]), ("o", [40]), ("o", [40])]
    assert {"Draws on Colored MNIST (5,000), 2 %", "Vanilla", "PGD"} <= set(texts(figure))


# --- the marks of tables


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A method that knows the bias beside two that do not, on six datasets, the first two not the published data."""
    folder = tmp_path_factory.mktemp("marked")
    for cell in expand(["vanilla", "lff", "groupdro"], DATASETS, seeds=2).cells:
        value = 0.4 + 0.01 * cell.seed
        metrics = {"acc_avg": 0.3, "acc_unbiased": value, "acc_aligned": 0.9}
        rows = [EpochFacts(epoch, metrics, metrics) for epoch in (1, 2)]
        data = {"official": cell.dataset_title not in DATASETS[:2]}
        arrays = {"score": torch.arange(20.0), "train_conflict": torch.arange(20)[:, None] > 15}
        stored(folder, made_record(cell, rows, {"last": 1, "test_oracle": 0}, data=data), arrays)
    return debiasbench.load_results(folder)


@pytest.mark.parametrize("name", ["accuracies", "curves", "scores", "ranks", "profile", "variants", "trials"])
def test_pictures_have_the_marks_of_tables(name, marked):
    shown = [" ".join(text.split()) for text in texts(draw(name, marked, marked[marked.dataset == DATASETS[0]]))]
    assert any("GroupDRO‡" in text for text in shown)
    assert all("‡" in text for text in shown if "GroupDRO" in text)
    assert not [text for text in shown if "‡" in text and "GroupDRO" not in text]
    if name not in ("ranks", "profile"):  # which name no dataset, or one at many ratios
        assert any("†" in text and "Colored MNIST" in text for text in shown)
    published = texts(draw(name, marked, marked[marked.dataset == DATASETS[5]]))
    assert sum("†" in text for text in published) == (2 if name in ("variants", "trials") else 0)


@pytest.mark.parametrize("name", ["accuracies", "variants", "trials"])
def test_a_rule_that_uses_bias_labels_is_marked(name, marked):
    one = marked[marked.dataset == DATASETS[0]]
    for rule, said in (("test_oracle", "acc_unbiased, test_oracle§"), ("last", "acc_unbiased (%)")):
        shown = " ".join(" ".join(texts(getattr(debiasbench.figures, name)(one, select=rule))).split())
        assert said in shown
        assert ("§" in shown) == (rule != "last")


def test_draws_of_a_method_that_knows_the_bias_are_marked(draws):
    shown = texts(debiasbench.figures.tuning(draws.assign(method=draws.method.replace("pgd", "groupdro"))))
    assert {"Vanilla", "GroupDRO‡"} <= set(shown)


# --- what is no table, or has nothing to draw


BAD = [
    (lambda _: None, "A table of results is needed, .* Got: NoneType"),
    (lambda table: table.to_dict("records"), "A table of results is needed, .* Got: list"),
    (lambda table: table.method, "A table of results is needed, .* Got: Series"),
    (lambda table: table.iloc[:0], "nothing to draw: the table has no rows"),
    (lambda table: table.assign(status="failed"), "nothing to draw: the table has failed runs alone"),
    (lambda table: table.assign(draw=1), "nothing to draw: the table has only draws of a tuning"),
    (lambda table: table.drop(columns=["status", "split"]), "not a table of results.* lacks the columns status, split"),
    (lambda table: table.set_index("method"), "lacks the columns method"),
    (lambda table: pd.concat([table, table.seed], axis=1), "has several columns seed"),
    (lambda table: table.assign(method=None), "its column method has None"),
    (lambda table: table.assign(dataset=7), "its column dataset has 7"),
]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("place", range(len(BAD)))
def test_what_is_no_table_of_results_is_refused(name, place, table, one):
    change, said = BAD[place]
    with pytest.raises(BenchmarkError, match=said):
        draw(name, change(table), change(one))


@pytest.mark.parametrize(
    ("name", "change", "options", "said"),
    [
        *[(name, lambda table: table, {}, "on 6 datasets: name one, as by dataset='cmnist5k:rho=0.01'")
          for name in ("accuracies", "curves", "scores")],
        *[(name, lambda table: table, {"dataset": "cmnist5k:rho=0.02"}, "Did you mean 'cmnist5k:rho=0.2'")
          for name in ("accuracies", "curves", "scores")],
        *[(name, lambda table: table, {"metric": "acc_unbaised"}, "Did you mean 'acc_unbiased'")
          for name in ("ranks", "variants", "trials")],
        *[(name, lambda table: table, {"metric": metric}, f"No metric '{metric}'")  # no per cents
          for name, metric in (("ranks", "loss"), ("variants", "seconds"), ("trials", "method"))],
        *[(name, lambda table: table, {"select": "lost"}, "Did you mean 'last'")
          for name in ("ranks", "variants", "trials")],
        *[(name, lambda table: table, {"reference": "vanila"}, "Did you mean 'vanilla'")
          for name in ("profile", "trials")],
        *[(name, lambda table: table.assign(acc_unbiased="high"), {}, "'acc_unbiased' has no numbers")
          for name in ("ranks", "variants", "trials")],
        *[(name, lambda table: table.assign(acc_unbiased=math.nan), {}, "No run of the table has a value")
          for name in ("variants", "trials")],
        *[(name, lambda table: pd.concat([table, table]), {}, "several runs of")
          for name in ("ranks", "variants", "trials")],
        *[(name, lambda table: table[table.dataset == DATASETS[0]].assign(path="none"), {}, "none is not there")
          for name in ("curves", "scores")],
        *[(name, lambda table: table[table.dataset == DATASETS[0]].drop(columns="path"), {}, "in a column path")
          for name in ("curves", "scores")],
        ("scores", lambda table: table[(table.method == "vanilla") & (table.dataset == DATASETS[0])], {},
         "No method of this table keeps per-sample scores"),
        ("ranks", lambda table: table[table.dataset != DATASETS[0]], {}, "Here there are 3 methods and 5 datasets"),
        ("profile", lambda table: table[table.dataset == DATASETS[0]], {}, "at two conflict ratios or more"),
        ("tuning", lambda table: table, {}, "A table of draws is needed"),
        ("tuning", lambda _: [], {}, "This is a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_told(name, change, options, said, table):
    with pytest.raises(BenchmarkError, match=said):
        getattr(debiasbench.figures, name)(change(table), **options)


@pytest.mark.parametrize("name", ["accuracies", "ranks", "trials", "variants"])
def test_a_table_is_checked_once(name, table, one, monkeypatch):
    checked = []
    monkeypatch.setattr(debiasbench.figures, "check_table", checked.append)
    draw(name, table, one)
    assert len(checked) == 1


@pytest.mark.parametrize(("change", "said"), BAD)
def test_compare_refuses_it_as_well(change, said, one):
    with pytest.raises(BenchmarkError, match=said.replace("nothing to draw", "nothing to compare")):
        debiasbench.compare(change(one))


def test_draws_of_a_tuning_are_not_compared(one):
    mixed = one.assign(draw=one.method.map({"lff": 3.0}))
    assert list(debiasbench.compare(mixed).method) == ["pgd:norm=l1"]
    assert debiasbench.compare(mixed, reference="vanilla").equals(debiasbench.compare(one[one.method != "lff"]))


def test_draws_without_a_value_are_told(draws):
    with pytest.raises(BenchmarkError, match="No draw on cmnist5k has a value"):
        debiasbench.figures.tuning(draws.assign(value=math.nan))
