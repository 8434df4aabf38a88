"""Fair tuning: ranges, draws, choosing by validation alone, the file of what was chosen, and running with it."""

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import changed, failed_record, made_record, stored

import debiasbench
from debiasbench.cell import Cell
from debiasbench.cli import main
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.selection import CHOOSING, SELECTION_RULES
from debiasbench.grid import expand
from debiasbench.methods import registry as methods
from debiasbench.plugins import defaults, is_shipped
from debiasbench.recipe import Recipe
from debiasbench.records import EpochFacts, SplitFacts, read_record
from debiasbench.report.make import make
from debiasbench.search import around, choice, log_uniform, uniform, whole
from debiasbench.tuned import Chosen, Tuned, check_rule, read_tuned, tuned_values, write_tuned
from debiasbench.tuning import as_chosen, choose, expand_draws, expand_tuned, tried, tried_by

SOURCE = "a test"

PLUGINS = '''
"""Methods and data of the tests of tuning."""
import dataclasses
from typing import ClassVar

from debiasbench.errors import BenchmarkError
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method, between
from debiasbench.search import around, choice, uniform


class Plain(Method):
    name = "plain"
    search = {"alpha": uniform(0, 1, source="a test"), "kind": choice("a", "b", None, source="a test")}

    alpha: float = between(0, 1, default=0.5)
    kind: str | None = "a"

    def fit(self, task):
        if self.alpha < 0.1:
            raise RuntimeError("alpha is too low")
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net

    def loss(self, nets, batch, state):
        return cross_entropy(nets.net(batch.x), batch.y).mean()


class Picky(Plain):
    """Takes about half of its draws."""

    name = "picky"

    def check(self):
        if self.alpha > 0.6:
            raise BenchmarkError("alpha above 0.6 is refused")


class Declining(Plain):
    """Declines about half of its draws."""

    name = "declining"

    def decline(self, dataset):
        return "alpha is above 0.6" if self.alpha > 0.6 else None


class Never(Plain):
    name = "never"
    search = {"alpha": uniform(0.8, 0.9, source="a test")}

    def check(self):
        if self.alpha > 0.6:
            raise BenchmarkError("alpha above 0.6 is refused")


class Wrong(Plain):
    """Its range is none."""

    name = "wrong"
    search = {"alpha": (0, 1)}


class Around(Plain):
    """Its range lies around nothing."""

    name = "aroundnone"
    search = {"kind": around(0.1, 10, source="a test")}


class Strange(Plain):
    name = "strange"
    search = {"beta": uniform(0, 1, source="a test")}
'''

DATA = '''
"""Small data."""
import dataclasses

from debiasbench.samples import Samples
from debiasbench.testing import Tiny


class Small(Tiny):
    name = "small"
    recipe = Tiny.recipe.replace(epochs=1)


class OnTest(Small):
    """Its validation split is its test split."""

    name = "ontest"

    def build(self, data_dir):
        splits = super().build(data_dir)
        return dataclasses.replace(splits, valid=splits.test)


class Alone(Small):
    """Its validation split has one class."""

    name = "alone"

    def build(self, data_dir):
        splits = super().build(data_dir)
        valid, some = splits.valid, splits.valid.y == 0
        return dataclasses.replace(splits, valid=Samples(valid.x[some], valid.y[some], valid.bias[some]))
'''


@pytest.fixture(scope="module", autouse=True)
def plugins(tmp_path_factory):
    """The methods and data above, found by name in this process and in those of workers."""
    folders = {}
    with pytest.MonkeyPatch.context() as patched:
        for kind, text in (("method", PLUGINS), ("dataset", DATA)):
            folders[kind] = tmp_path_factory.mktemp(f"{kind}s-of-tuning")
            (folders[kind] / f"tuning_{kind}s.py").write_text(text, encoding="utf-8")
            package = sys.modules[f"debiasbench.{kind}s"]
            patched.setattr(package, "__path__", [*package.__path__, str(folders[kind])])
            patched.setenv(f"DEBIASBENCH_{kind.upper()}S_PATH", str(folders[kind]))
        yield
    for kind in folders:
        sys.modules.pop(f"debiasbench.{kind}s.tuning_{kind}s", None)


# ---- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: uniform(1, 1, source=SOURCE),
        lambda: uniform(2, 1, source=SOURCE),
        lambda: uniform(0, float("inf"), source=SOURCE),
        lambda: uniform(float("nan"), 1, source=SOURCE),
        lambda: uniform("0", 1, source=SOURCE),
        lambda: log_uniform(0, 1, source=SOURCE),
        lambda: log_uniform(-1, 1, source=SOURCE),
        lambda: whole(0, 10, log=True, source=SOURCE),
        lambda: whole(1, 2.5, source=SOURCE),
        lambda: whole(True, 5, source=SOURCE),
        lambda: choice("only", source=SOURCE),
        lambda: choice("twice", "twice", source=SOURCE),
        lambda: around(0, 10, source=SOURCE),
        lambda: around(2, 10, source=SOURCE),
        lambda: around(0.1, float("inf"), source=SOURCE),
        lambda: uniform(0, 1, source=""),
        lambda: choice(1, 2, source="  "),
        lambda: around(0.1, 10, source=None),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused_where_it_is_declared(make):
    with pytest.raises(BenchmarkError, match=r"^(uniform|log_uniform|whole|choice|around)\("):
        make()


RANGES = {
    "uniform": uniform(-0.5, 2, source=SOURCE),
    "log_uniform": log_uniform(1e-5, 1, source=SOURCE),
    "whole": whole(0, 6, source=SOURCE),
    "whole in the logarithm": whole(1, 50, log=True, source=SOURCE),
    "choice": choice("a", None, 3, source=SOURCE),
    "around": around(0.1, 10, source=SOURCE),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_draw_is_in_its_range_short_and_follows_from_the_generator(name):
    one = RANGES[name]
    drawn = [one.draw(random.Random(seed), 0.02) for seed in range(2000)]
    assert drawn == [one.draw(random.Random(seed), 0.02) for seed in range(2000)]
    assert all(one.holds(value, 0.02) for value in drawn)
    assert all(float(f"{value:.3g}") == value for value in drawn if isinstance(value, float))
    assert len(set(drawn)) > (2 if name == "choice" else 5)


def test_draws_are_spread_as_the_range_says():
    def drawn(one):
        return [one.draw(random.Random(seed), 0.02) for seed in range(4000)]

    log = drawn(log_uniform(1e-4, 1, source=SOURCE))
    for low in (1e-4, 1e-3, 1e-2, 1e-1):
        assert sum(low <= value < 10 * low for value in log) == pytest.approx(1000, abs=150)
    steps = drawn(whole(1, 50, log=True, source=SOURCE))
    assert steps.count(1) > 4 * steps.count(10) > 0
    assert {1, 50} <= set(steps)
    assert {0, 6} <= set(drawn(whole(0, 6, source=SOURCE)))
    assert sum(value < 0.02 for value in drawn(around(0.1, 10, source=SOURCE))) == pytest.approx(2000, abs=150)


def test_what_is_in_no_range():
    assert not RANGES["uniform"].holds(2.1, None)
    assert not RANGES["uniform"].holds(None, None)
    assert not RANGES["whole"].holds(2.0, None)
    assert not RANGES["choice"].holds("b", None)
    assert not RANGES["around"].holds(0.3, 0.02)
    assert not RANGES["around"].holds(0.0, 0.0)


def test_the_spaces_of_all_methods_name_what_there_is_and_hold_their_published_values():
    shipped = [name for name, cls in methods.classes().items() if is_shipped(cls)]
    cells = expand(shipped, ["all"], seeds=1).cells
    assert len({cell.method for cell in cells}) > 20
    for cell in cells:
        cls = methods.get(cell.method)[0]
        values = {**cell.recipe, **cell.method_parameters}
        space = cls.search_space()
        assert {"learning_rate", "weight_decay"} <= set(space)
        for key, one in space.items():
            assert key in defaults(cls) or key in defaults(Recipe), (cell.method, key)
            assert one.holds(values[key], values[key]), (cell.title, key, values[key])
            assert one.source.strip()


def test_a_class_adds_to_the_space_of_its_parents_and_may_replace_a_range():
    self_space, afr = (methods.get(name)[0].search_space() for name in ("self", "afr"))
    assert self_space["learning_rate"] != afr["learning_rate"]
    assert self_space["penalty"] == afr["penalty"]
    assert "gamma" in afr
    assert "gamma" not in self_space
    assert set(methods.get("vanilla")[0].search_space()) == {"learning_rate", "weight_decay"}


# ---- what of a recipe a method may be given --------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "value"), [("vanilla", 0.02), ("vanilla:learning_rate=0.1", 0.1), ("lff", 0.01)])
def test_a_method_may_be_given_what_it_searches_of_the_recipe(spec, value):
    (cell,) = expand([spec], ["cmnist5k"], seeds=[0]).cells
    assert cell.recipe["learning_rate"] == value
    assert cell.method_title == spec


def test_what_a_method_is_given_overrides_what_the_dataset_is_given_and_tables_say_it():
    (cell,) = expand(["vanilla:learning_rate=0.1"], ["cmnist5k:learning_rate=0.3,batch_size=64"], seeds=[0]).cells
    assert (cell.recipe["learning_rate"], cell.recipe["batch_size"]) == (0.1, 64)
    assert cell.recipe_changes == {"learning_rate": 0.1}
    (other,) = expand(["vanilla"], ["cmnist5k:learning_rate=0.1,batch_size=64"], seeds=[0]).cells
    assert other.hash == cell.hash


def test_a_parameter_of_a_method_comes_before_a_field_of_the_recipe():
    (cell,) = expand(["llr:learning_rate=0.005"], ["cmnist5k"], seeds=[0]).cells
    assert cell.method_parameters["learning_rate"] == 0.005
    assert cell.recipe["learning_rate"] == 0.02


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan"])
def test_a_bad_value_of_the_recipe_is_refused(text):
    with pytest.raises(BenchmarkError, match="'learning_rate' parameter of"):
        expand([f"vanilla:learning_rate={text}"], ["cmnist5k"], seeds=[0])


# ---- draws -----------------------------------------------------------------------------------------------------------


def drawn(specs, datasets=("small",), *, draws=6, **options):
    return expand_draws(list(specs), list(datasets), draws=draws, **options)


def test_the_first_draw_is_the_defaults_and_all_are_ordinary_cells():
    grid, trials = drawn(["pgd", "jtt"], ["cmnist5k"], seeds=2)
    assert [trial.number for trial in trials] == 2 * list(range(6))
    assert len(grid.cells) == 2 * 6 * 2
    for trial in trials:
        assert [cell.seed for cell in trial.cells] == [1000, 1001]
        spec = trial.method if trial.number == 0 else trial.cells[0].method_title
        again = expand([spec], ["cmnist5k"], seeds=[1000, 1001]).cells
        assert [cell.hash for cell in again] == [cell.hash for cell in trial.cells]
        values = {**trial.cells[0].recipe, **trial.cells[0].method_parameters}
        assert {key: values[key] for key in trial.values} == trial.values
        assert set(trial.values) == set(methods.get(trial.method)[0].search_space())
        assert grid.relative_costs[trial.cells[0].hash] > 0
    assert len({json.dumps(trial.values) for trial in trials}) == 12


def test_more_draws_extend_fewer_and_equal_questions_have_equal_answers():
    few, many = drawn(["pgd", "picky"], draws=3)[1], drawn(["pgd", "picky"], draws=8)[1]
    assert few == [trial for trial in many if trial.number < 3]
    assert drawn(["picky", "pgd"], draws=8)[1][8:] == many[:8]


def test_draws_differ_by_method_and_by_dataset():
    def rates(method, dataset):
        return [trial.values["learning_rate"] for trial in drawn([method], [dataset])[1][1:]]

    assert rates("vanilla", "cmnist5k") != rates("bpa", "cmnist5k")
    assert rates("vanilla", "cmnist5k") != rates("vanilla", "cmnist")  # whose default is the same


@pytest.mark.parametrize(
    ("spec", "fixed"),
    [
        ("pgd:norm=l1", {"norm": "l1"}),
        ("pgd:norm=l1,alpha=0.7", {"norm": "l1", "alpha": 0.7}),
        ("pgd:alpha=0.7", {"alpha": 0.7}),  # also where it is the default
        ("pgd:learning_rate=0.05", {"learning_rate": 0.05}),
        ("pgd:preset=official", {"norm": "lp", "gce_form": "official"}),
        ("pgd-loss", {"score": "loss"}),
        ("lff:preset=official", {"learning_rate": 0.001, "weight_decay": 0.0}),
    ],
)
def test_what_is_given_stays_fixed_and_changes_nothing_of_the_rest(spec, fixed):
    trials = drawn([spec], ["cmnist5k"])[1]
    free = drawn([spec.partition(":")[0].partition("-")[0]], ["cmnist5k"])[1]
    for trial, other in zip(trials, free, strict=True):
        cell = trial.cells[0]
        values = {**cell.recipe, **cell.method_parameters}
        assert {key: values[key] for key in fixed} == fixed
        assert not set(fixed) & set(trial.values)
        if trial.number and "preset" not in spec:
            assert trial.values == {key: value for key, value in other.values.items() if key not in fixed}


def test_what_is_given_of_the_recipe_with_the_dataset_stays_fixed_too():
    trials = drawn(["pgd"], ["cmnist5k:learning_rate=0.05"])[1]
    assert {trial.cells[0].recipe["learning_rate"] for trial in trials} == {0.05}
    assert "learning_rate" not in trials[1].values


@pytest.mark.parametrize("name", ["picky", "declining"])
def test_values_that_a_method_refuses_are_drawn_again(name):
    free = [trial.values["alpha"] for trial in drawn(["plain"], draws=20)[1]]
    values = [trial.values["alpha"] for trial in drawn([name], draws=20)[1]]
    assert max(free) > 0.6 >= max(values)
    assert len(set(values)) > 15


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["never"], "never accepts none of 100 draws from its search: alpha above 0.6 is refused"),
        (
            ["strange"],
            "The search of strange names 'beta', which is neither a parameter of it nor a field of the recipe",
        ),
        (["vanilla:learning_rate=0.1,weight_decay=0"], "leaves nothing to search: all of learning_rate, weight_decay"),
        (["wrong"], "The search of wrong must be a dictionary of ranges from debiasbench.search"),
        (["aroundnone"], "around(0.1, 10) needs a default above 0. Got 'a'."),
        (["dfr"], "There is nothing to tune.\ndfr on small: it trains on the validation samples"),
        (["vanila"], "Unknown method 'vanila'. Did you mean 'vanilla'?"),
        (["plain:alpha=7"], "must be a number in [0, 1]. Got 7.0."),
    ],
)
def test_what_cannot_be_drawn_is_refused(specs, words):
    with pytest.raises(BenchmarkError) as error:
        drawn(specs)
    assert words in str(error.value)


@pytest.mark.parametrize("seeds", [0, -3])
def test_a_draw_has_one_seed_at_least(seeds):
    with pytest.raises(BenchmarkError, match="The number of seeds must be at least 1"):
        drawn(["plain"], seeds=seeds)


@pytest.mark.parametrize(
    ("specs", "draws", "seeds"),
    [(["plain"], 1, 10**9), (["plain"], 1, 10**15), (["plain"], 10_000, 101), (["plain", "pgd"], 1000, 501)],
)
def test_draws_and_seeds_together_have_a_limit(specs, draws, seeds, monkeypatch):
    """Before they are listed: a list of far too many fills the memory."""
    monkeypatch.setattr("debiasbench.tuning._draws", None)  # nothing is drawn before
    with pytest.raises(BenchmarkError, match=r"cells \(methods x datasets x draws x seeds\) are too many: at most 1,0"):
        drawn(specs, draws=draws, seeds=seeds)


@pytest.mark.parametrize("draws", [0, -3, 10_001])
def test_the_number_of_draws_has_limits(draws):
    with pytest.raises(BenchmarkError, match="--draws must be from 1 to 10000"):
        drawn(["plain"], draws=draws)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (0, "The number of seeds must be at least 1. Got 0"), (-1, "The number of seeds must be at least 1. Got -1"),
        (10**9, "2,000,000,000 cells .* are too many"), (10**15, "2,000,000,000,000,000 cells .* are too many"),
    ],
)  # fmt: skip
def test_the_number_of_seeds_has_limits_and_is_looked_at_before_seeds_are_made(seeds, said):
    with pytest.raises(BenchmarkError, match=said):
        drawn(["plain"], draws=2, seeds=seeds)


def test_a_method_that_cannot_be_tuned_is_skipped_with_the_reason():
    grid, trials = drawn(["plain", "dfr"])
    assert {trial.method for trial in trials} == {"plain"}
    assert [(skip.method_title, skip.reason.partition(",")[0]) for skip in grid.skips] == [
        ("dfr", "it trains on the validation samples")
    ]


def test_worst_proxy_tunes_methods_that_give_proxies_alone():
    specs = ["plain", "jtt", "lff", "pgd", "pgd:use=single-stage"]
    grid, trials = drawn(specs, draws=2, rule="worst_proxy")
    assert {trial.method for trial in trials} == {"jtt", "pgd"}
    assert {skip.method_title for skip in grid.skips} == {"plain", "lff", "pgd:use=single-stage"}
    assert all("it gives no proxies" in skip.reason for skip in grid.skips)
    assert drawn(specs, draws=2, rule="val_loss")[0].skips == []


def test_sweeps_are_methods_and_datasets_of_their_own():
    _, trials = drawn(["pgd:norm=l1|linf"], ["small", "cmnist5k:rho=0.01|0.05"], draws=2)
    pairs = dict.fromkeys((trial.dataset, trial.method) for trial in trials)
    assert list(pairs) == [
        (data, method)
        for data in ("small", "cmnist5k:rho=0.01", "cmnist5k:rho=0.05")
        for method in ("pgd:norm=l1", "pgd:norm=linf")
    ]
    assert len(trials) == 2 * len(pairs)


# ---- choosing --------------------------------------------------------------------------------------------------------

SPLITS = {name: SplitFacts(n=100, n_by_class=(50, 50)) for name in ("train", "valid", "test")}


def epoch(number, value, *, test=0.5):
    """An epoch of which all rules say the same: `value` in hundredths."""
    valid = {
        "loss": 2 - value / 100, "acc_avg": value / 100, "acc_aligned": value / 100, "acc_conflict": value / 100,
        "n_conflict": 20.0, "acc_worst_proxy": value / 100,
    }  # fmt: skip
    correct = {"valid": (value // 2, 50), "test": (int(50 * test), 50)}
    return EpochFacts(number, valid, {"acc_unbiased": test, "acc_avg": test}, correct_by_class=correct)


def record_of(cell, *values, test=0.5):
    """A record whose epochs have these values; the rules choose the best, the last of equals."""
    best = max(range(len(values)), key=lambda index: (values[index], index))
    selection = {"last": len(values) - 1, "val_loss": best, "val_acc": best, "group_val": best, "test_oracle": 0}
    epochs = [epoch(number + 1, value, test=test) for number, value in enumerate(values)]
    return made_record(cell, epochs, selection, data={"splits": SPLITS})


def run_draws(folder, by_draw, *, method="plain", seeds=1, test=(0.5,) * 20):
    """Records of draws: values by epoch of each, or None for a failure; the trials."""
    _, trials = drawn([method], draws=len(by_draw), seeds=seeds)
    for trial, values in zip(trials, by_draw, strict=True):
        for cell in trial.cells:
            record = failed_record(cell) if values is None else record_of(cell, *values, test=test[trial.number])
            stored(folder, record)
    return trials


@pytest.mark.parametrize("rule", CHOOSING)
def test_each_rule_chooses_the_epoch_and_compares_the_draws_by_its_own_value(tmp_path, rule):
    trials = run_draws(tmp_path, [(60, 40), (30, 80, 20), (70, 70)])
    found = tried(trials, tmp_path, rule)
    (best,) = choose(found)
    assert best.trial.number == 1
    chosen = as_chosen(best, found)
    expected = {"val_loss": (1.2, 1.4), "class_gap": (0.2, 0.4)}.get(rule, (0.8, 0.6))
    assert (chosen.value, chosen.default) == pytest.approx(expected)
    assert chosen.values == {key: "none" if value is None else value for key, value in trials[1].values.items()}


@pytest.mark.parametrize("rule", CHOOSING)
def test_nothing_of_the_test_split_is_read(tmp_path, rule):
    values = [(60, 40), (30, 75), (70, 70), (75, 10)]
    folders = tmp_path / "as it is", tmp_path / "with other test numbers"
    trials = run_draws(folders[0], values)
    run_draws(folders[1], values, test=(0.9, 0.0, 1.0, 0.1))
    one, other = (tried(trials, folder, rule) for folder in folders)
    assert [(part.trial, part.value, part.reason) for part in one] == [
        (part.trial, part.value, part.reason) for part in other
    ]
    assert choose(one)[0].trial.number == choose(other)[0].trial.number == 1


def test_ties_go_to_the_earlier_draw_and_a_failed_one_cannot_win_and_is_told(tmp_path):
    trials = run_draws(tmp_path, [None, (60,), (80,), (80,), None])
    found = tried(trials, tmp_path, "worst_class")
    (best,) = choose(found)
    assert best.trial.number == 2
    assert [one.value is None for one in found] == [True, False, False, False, True]
    assert found[4].reason == "failed: RuntimeError: it did not work"
    assert as_chosen(best, found).default is None


def test_a_draw_counts_by_the_mean_of_its_seeds_and_only_if_all_of_them_have_a_value(tmp_path):
    trials = run_draws(tmp_path, [(60,), (90,), (70,)], seeds=2)
    stored(tmp_path, failed_record(trials[1].cells[1]))
    path = stored(tmp_path, record_of(trials[2].cells[1], 72))
    found = tried(trials, tmp_path, "worst_class")
    assert [one.value for one in found] == [pytest.approx(0.6), None, pytest.approx(0.71, abs=0.011)]
    assert choose(found)[0].trial.number == 2
    path.unlink()
    assert tried(trials, tmp_path, "worst_class")[2].reason == "not run"


def test_a_rule_that_cannot_choose_says_so(tmp_path):
    trials = run_draws(tmp_path, [(60,)])
    (cell,) = trials[0].cells
    record = record_of(cell, 60)
    stored(tmp_path, changed(record, selection={**record.result.selection, "group_val": None}))
    (one,) = tried(trials, tmp_path, "group_val")
    assert (one.value, one.reason) == (None, "group_val has no value there, and cannot choose")
    assert choose([one]) == []


def test_records_alone_tell_the_draws(tmp_path):
    trials = run_draws(tmp_path, [(60,), None, (80,)], seeds=2)
    records = [read_record(path) for path in sorted((tmp_path / "records").rglob("s*.json"))]
    one, other = tried(trials, tmp_path, "val_acc"), tried_by(records, "val_acc")
    assert [(part.trial.method, part.trial.number, part.value, part.reason) for part in one] == [
        (part.trial.method, part.trial.number, part.value, part.reason) for part in other
    ]


@pytest.mark.parametrize(("rule", "words"), [("last", "the last epoch"), ("test_oracle", "reads the test split")])
def test_rules_that_must_not_choose_are_refused_with_the_reason(rule, words):
    with pytest.raises(BenchmarkError, match=words):
        check_rule(rule)


def test_every_other_rule_may_choose():
    assert set(CHOOSING) == set(SELECTION_RULES) - {"last", "test_oracle"}
    for rule in CHOOSING:
        check_rule(rule)
    with pytest.raises(BenchmarkError, match=r"No selection rule 'val_los'\. Did you mean 'val_loss'\?"):
        check_rule("val_los")


# ---- the file --------------------------------------------------------------------------------------------------------

VALUES = {"alpha": 0.25, "kind": "none", "learning_rate": 1e-05, "weight_decay": 0.0}
GOOD = tuned_values(
    "worst_class", 4, [1000, 1001],
    [Chosen("small", "plain", 2, 0.8, 0.7, VALUES), Chosen("cmnist5k", "pgd:norm=l1", 0, 0.5, None, {"alpha": 0.7})],
)  # fmt: skip


def test_the_file_reads_as_it_was_written_and_is_the_same_in_any_order(tmp_path):
    paths = tmp_path / "one.toml", tmp_path / "other.toml"
    write_tuned(paths[0], GOOD)
    write_tuned(paths[1], replace(GOOD, chosen=GOOD.chosen[::-1]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert read_tuned(paths[0]) == GOOD
    content = tomllib.loads(paths[0].read_text(encoding="utf-8"))
    assert content["uses_bias_labels"] is False
    assert [one["dataset"] for one in content["chosen"]] == ["cmnist5k", "small"]
    write_tuned(paths[1], replace(GOOD, rule="group_val"))
    assert tomllib.loads(paths[1].read_text(encoding="utf-8"))["uses_bias_labels"] is True


def test_the_digest_does_not_cover_comments(tmp_path):
    path = tmp_path / "tuned.toml"
    write_tuned(path, GOOD)
    text = path.read_text(encoding="utf-8")
    changes = (re.sub("(?m)^#.*\n", "", text), re.sub("  #.*", "  # another word", text), f"{text}# mine\n")
    for changed_text in changes:
        assert changed_text != text
        path.write_text(changed_text, encoding="utf-8")
        assert read_tuned(path) == GOOD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("[[chosen]]", "[[chosen", 1), "is not valid TOML"),
        (lambda _: "", "version is missing"),
        (lambda _: 'methods = ["pgd"]\ndatasets = ["cmnist5k"]\n', "version is missing"),  # an experiment
        (lambda text: text.replace('rule = "worst_class"', 'rule = "test_oracle"'), "rule must be one of"),
        (lambda text: text.replace("draws = 4", "draws = 2"), "draws must be at least 1, and larger than every"),
        (lambda text: text.replace("draw = 2", 'draw = "two"'), "draw must be a whole number"),
        (lambda text: text.replace("draw = 2", "draw = -2"), "draws must be"),
        (lambda text: text.replace("value = 0.8", "value = nan"), "value must be a finite number"),
        (lambda text: text.replace('method = "plain"', ""), "method is missing"),
        (lambda text: text.replace("seeds = [1000, 1001]", 'seeds = ["a"]'), "must be a whole number"),
        (lambda text: text + text[text.index("[[chosen]]") :], "two entries for one dataset and method"),
        (lambda text: text.replace("kind =", "when = 2026-01-01\nkind ="), "must be a plain value"),
        (lambda text: text.replace("alpha = 0.25", "alpha = 0.3"), "was changed after it was written"),
        (lambda text: text.replace("draw = 2", "draw = 1"), "was changed after it was written"),
        (lambda text: text.replace("draws = 4", "draws = 16"), "was changed after it was written"),
        (lambda text: text.replace("seeds = [1000, 1001]", "seeds = []"), "was changed after it was written"),
        (lambda text: text.replace('rule = "worst_class"', 'rule = "group_val"'), "was changed after it was written"),
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "was changed after it was written"),  # broke off
        (lambda text: re.sub("digest = .*\n", "", text), "was changed after it was written"),
        (lambda text: text.replace("labels = false", "labels = true"), "was changed after it was written"),
        (lambda text: text.replace("labels = false", "labels = 0.5"), "was changed after it was written"),
        (lambda text: re.sub("uses_bias_labels = .*\n", "", text), "was changed after it was written"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_error(tmp_path, change, words):
    path = tmp_path / "tuned.toml"
    write_tuned(path, GOOD)
    text = change(path.read_text(encoding="utf-8"))
    assert text != path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError) as error:
        read_tuned(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path, words in (
        (tmp_path / "none.toml", "No such file"), (tmp_path, "cannot be read"), (tmp_path / "bytes.toml", "not UTF-8"),
    ):  # fmt: skip
        with pytest.raises(BenchmarkError, match=words):
            read_tuned(path)


# ---- running with it -------------------------------------------------------------------------------------------------


def with_tuned(specs=("plain",), datasets=("small",), tuned=GOOD, **options):
    return expand_tuned(list(specs), list(datasets), tuned, **{"seeds": 2, **options}).cells


def test_what_was_chosen_is_run_and_says_so():
    cells = with_tuned()
    plain = expand(["plain:alpha=0.25,kind=none,learning_rate=1e-5,weight_decay=0"], ["small"], seeds=2).cells
    assert [cell.method_title for cell in cells] == 2 * ["plain:tuned=worst_class"]
    assert cells[0].tuned == Tuned("worst_class", 4, (1000, 1001), 2)
    for cell, same in zip(cells, plain, strict=True):
        assert (cell.method_parameters, cell.recipe, cell.seed) == (same.method_parameters, same.recipe, same.seed)
        assert cell.hash != same.hash  # two rows of one report, also where the defaults were chosen
        assert Cell.from_json(cell.to_json()) == cell
        assert Cell.from_json(cell.to_json()).hash == cell.hash


def test_a_tuning_leaves_the_identity_of_all_other_cells_alone():
    (cell,) = expand(["plain"], ["small"], seeds=[0]).cells
    assert "tuned" not in cell.identity()
    assert not {"tuned", "draw"} & set(cell.to_json())
    (of_tuning,) = expand_draws(["plain"], ["small"], draws=1)[1][0].cells
    (as_any,) = expand(["plain"], ["small"], seeds=[1000]).cells
    assert of_tuning.hash == as_any.hash
    assert Cell.from_json(of_tuning.to_json()).draw == of_tuning.draw


def test_what_was_given_inline_is_in_the_title_and_stays():
    (cell,) = with_tuned(["pgd:norm=l1"], ["cmnist5k"], seeds=[3])
    assert cell.method_title == "pgd:norm=l1,tuned=worst_class"
    assert (cell.method_parameters["norm"], cell.method_parameters["alpha"]) == ("l1", 0.7)


def test_all_data_seeds_have_the_values_that_were_chosen_without_one():
    cells = with_tuned(data_seeds=3, seeds=1)
    assert [cell.dataset_title for cell in cells] == ["small", "small:data_seed=1", "small:data_seed=2"]
    assert {cell.method_parameters["alpha"] for cell in cells} == {0.25}


@pytest.mark.parametrize(
    ("specs", "datasets", "options"),
    [
        (["plain", "vanilla"], ["small"], {}), (["plain"], ["small", "cmnist5k"], {}),
        (["plain"], ["small"], {"epochs": 3}), (["plain:alpha=0.1"], ["small"], {}),
    ],
)  # fmt: skip
def test_a_pair_that_is_not_in_the_file_is_an_error_that_says_what_is(specs, datasets, options):
    with pytest.raises(BenchmarkError) as error:
        with_tuned(specs, datasets, **options)
    assert "It has: pgd:norm=l1 on cmnist5k, plain on small." in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [({"alpha": 7}, "in [0, 1]. Got 7.0"), ({"alhpa": 0.5}, "Did you mean 'alpha'?"), ({"epochs": 3}, "Unknown")],
)
def test_values_that_a_method_does_not_take_are_told_with_the_file(tmp_path, values, words):
    tuned = tuned_values("val_acc", 4, [1000], [Chosen("small", "plain", 1, 0.5, None, values)])
    with pytest.raises(BenchmarkError) as error:
        with_tuned(tuned=replace(tuned, path=tmp_path / "f.toml"))
    assert "f.toml: the values of plain on small: " in str(error.value)
    assert words in str(error.value)


def test_a_title_of_a_table_is_no_method_to_ask_for():
    with pytest.raises(BenchmarkError, match="give their file: --tuned FILE"):
        expand(["plain:tuned=worst_class"], ["small"], seeds=1)


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tuning, and runs with and without what was chosen, in one folder."""
    folder = tmp_path_factory.mktemp("tuned")
    code = main(["tune", *WHERE, "--methods", "plain", "vanilla", "--draws", "3", "--results-dir", str(folder)])
    assert code == 0
    for more in ((), ("--tuned", str(folder / "tuned.toml"))):
        assert (
            main(["run", *WHERE, "--methods", "plain", "vanilla", "--seeds", "2", *more, "--results-dir", str(folder)])
            == 0
        )
    return folder


WHERE = ["--datasets", "small", "--device", "cpu", "--workers", "0"]


def test_a_tuning_goes_on_where_it_was_and_more_draws_extend_it(folder, capsys):
    command = ["tune", *WHERE, "--methods", "plain", "vanilla", "--results-dir", str(folder)]
    before = (folder / "tuned.toml").read_bytes()
    assert main([*command, "--draws", "3"]) == 0
    assert "0 cells to run, 6 finished before" in capsys.readouterr().out
    assert (folder / "tuned.toml").read_bytes() == before
    assert main([*command, "--draws", "4", "--dry-run"]) == 0
    assert "2 cells to run, 6 finished before" in capsys.readouterr().out
    assert (folder / "tuned.toml").read_bytes() == before


def test_another_rule_chooses_again_and_trains_nothing(folder, tmp_path, capsys):
    output = tmp_path / "by-loss.toml"
    command = ["tune", *WHERE, "--methods", "plain", "vanilla", "--results-dir", str(folder), "--draws", "3"]
    assert main([*command, "--rule", "val_loss", "--output", str(output)]) == 0
    assert "0 cells to run" in capsys.readouterr().out
    assert read_tuned(output).rule == "val_loss"
    assert (folder / "tables" / "tuning-val_loss.md").exists()


def test_the_table_of_draws_has_all_of_them_and_marks_the_chosen(folder):
    tuned = read_tuned(folder / "tuned.toml")
    text = (folder / "tables" / "tuning-worst_class.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| small")]
    assert [(row[1], row[2]) for row in rows] == [(name, str(n)) for name in ("plain", "vanilla") for n in range(3)]
    bold = {row[1]: int(row[2]) for row in rows if row[4].startswith("**")}
    assert bold == {one.method: one.draw for one in tuned.chosen}
    assert "without bias labels" in text
    assert (folder / "figures" / "tuning-worst_class-small.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_from_records_alone_tells_tuned_rows_and_leaves_draws_out(folder, capsys):
    assert main(["report", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    table = (folder / "tables" / "comparison.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].strip("|* ") for line in table.partition("\n\nTest split")[0].splitlines()[4:]]
    assert sorted(row.replace("\\", "") for row in rows) == [
        "plain", "plain:tuned=worst_class", "vanilla", "vanilla:tuned=worst_class",
    ]  # fmt: skip
    assert "6 draws of a tuning are left out: they are not results" in out
    for one in read_tuned(folder / "tuned.toml").chosen:
        which = f"draw {one.draw} of 3" if one.draw else "the defaults among 3 draws"
        assert f"({which}, chosen by worst_class on validation without bias labels, seed 1000)" in table
    assert "Draws, chosen by worst" in out


def test_the_table_of_results_names_draws_and_how_values_were_chosen(folder):
    table = debiasbench.load_results(folder)
    assert set(table.draw.dropna()) == {0, 1, 2}
    assert set(table[table["method.tuned"].notna()].method) == {"plain:tuned=worst_class", "vanilla:tuned=worst_class"}
    assert table[table.draw.notna()].seed.eq(1000).all()


def test_a_folder_of_draws_alone_has_no_report(tmp_path):
    run_draws(tmp_path, [(60,), (80,)])
    with pytest.raises(BenchmarkError, match="only draws of a tuning, which are not results"):
        make(tmp_path)


def test_a_failed_draw_is_shown_and_the_command_says_so(tmp_path, capsys):
    command = ["tune", *WHERE, "--methods", "plain:kind=a,learning_rate=0.02,weight_decay=0", "--draws", "5"]
    assert main([*command, "--results-dir", str(tmp_path)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "failed: RuntimeError: alpha is too low." in out
    (one,) = read_tuned(tmp_path / "tuned.toml").chosen
    assert one.values["alpha"] >= 0.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule", "last"], "the last epoch"),
        (["--rule", "test_oracle"], "reads the test split"),
        (["--draws", "0"], "--draws must be from 1"),
        (["--seeds", "0"], "number of seeds must be at least 1"),
        (["--methods", "dfr"], "There is nothing to tune"),
        (["--datasets", "ontest"], "ontest has no validation split apart from its test split"),
        (["--rule", "worst_proxy"], "plain on small: it gives no proxies"),
        (["--rule", "group_val"], "The rule group_val has no value on the validation split of small: too few samples"),
        (["--datasets", "alone"], "The rule worst_class has no value on the validation split of alone: it has samples"),
        (
            ["--datasets", "small", "alone", "--rule", "class_gap"],
            "class_gap has no value on the validation split of al",
        ),
        (["--datasets", "smal"], "Unknown dataset 'smal'. Did you mean 'small'?"),
        (["--executor", "cloud"], "Unknown executor 'cloud'"),
        (["--output", "tuned.json"], "--output must be a file that ends in .toml. Got tuned.json."),
        (["--draw", "3"], "Did you mean '--draws'?"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_trains(tmp_path, words, said, capsys):
    given = {"--methods": ["plain"], "--datasets": ["small"], "--device": ["cpu"], "--results-dir": [str(tmp_path)]}
    given[words[0]] = words[1:]
    assert main(["tune", *(word for key, values in given.items() for word in (key, *values))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_from_python(tmp_path):
    table = debiasbench.tune(["plain"], ["small"], draws=2, rule="val_acc", results_dir=tmp_path, workers=0)
    assert list(table.draw) == [0, 1]
    assert table.chosen.sum() == 1
    assert {"alpha", "kind", "learning_rate", "weight_decay", "value", "seconds", "run_as"} <= set(table)
    runs = debiasbench.run(
        ["plain"], ["small"], seeds=1, results_dir=tmp_path, workers=0, tuned=tmp_path / "tuned.toml"
    )
    assert set(runs.method) == {"plain:tuned=val_acc"}
    for options, words in (({"rule": "test_oracle"}, "reads the test split"), ({"output": "a.csv"}, "ends in .toml")):
        with pytest.raises(BenchmarkError, match=words):
            debiasbench.tune(["plain"], ["small"], results_dir=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_with_a_rule_or_a_file_is_told_without_importing_torch(tmp_path):
    (tmp_path / "foreign.toml").write_text('methods = ["pgd"]\n', encoding="utf-8")
    grid = ["--methods", "pgd", "--datasets", "cmnist5k"]
    commands = [
        ["tune", *grid, "--rule", "last"],
        ["tune", "--methods", "pdg", "--datasets", "cmnist5k"],
        ["run", *grid, "--tuned", str(tmp_path / "none.toml")],
        ["run", *grid, "--tuned", str(tmp_path / "foreign.toml")],
    ]
    code = f"import sys\nfrom debiasbench.cli import main\nassert [main(one) for one in {commands}] == [2] * 4\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8",
        cwd=Path(debiasbench.__file__).parent.parent,
        env={key: value for key, value in os.environ.items() if not key.endswith("S_PATH")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == 4
