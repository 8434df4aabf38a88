"""Metrics, selection rules and identification against slow loops, scikit-learn and numbers by hand."""

import math
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score, precision_score, recall_score, roc_auc_score
from torch.nn.functional import cross_entropy

from debiasbench.datasets import registry as datasets
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.metrics import accuracies, adjusted_accuracy, identification, worst_of_proxies
from debiasbench.evaluation.selection import (
    LATER,
    SELECTION_RULES,
    WORST_PROXY,
    select,
    select_by_classes,
    select_by_proxy,
)
from debiasbench.report.inspection import mutual_information
from debiasbench.samples import Samples, Splits

NAN = math.nan


def share(hits):
    hits = list(hits)
    return sum(hits) / len(hits) if hits else NAN


def slow_accuracies(correct, y, bias, bias_names, unbiased):
    """One sample after the other."""
    rows = list(zip(correct.tolist(), y.tolist(), bias.tolist(), strict=True))
    found = {"n": float(len(rows)), "acc_avg": share(hit for hit, _, _ in rows)}
    if unbiased:
        found["acc_unbiased"] = found["acc_avg"]
    for column, name in enumerate(bias_names):
        suffix = "" if len(bias_names) == 1 else f".{name}"
        found[f"acc_aligned{suffix}"] = share(hit for hit, label, b in rows if b[column] == label)
        found[f"acc_conflict{suffix}"] = share(hit for hit, label, b in rows if b[column] not in (label, -1))
        found[f"n_conflict{suffix}"] = float(sum(b[column] not in (label, -1) for _, label, b in rows))
    if len(bias_names) == 1:
        groups = {}
        for hit, label, (b,) in rows:
            if b != -1:
                groups.setdefault((label, b), []).append(hit)
        if groups:
            found["acc_worst"] = min(share(hits) for hits in groups.values())
            sizes = [len(hits) for hits in groups.values() if share(hits) == found["acc_worst"]]
            found["n_worst"] = float(sizes[0]) if len(sizes) == 1 else None  # more than one is as bad
            found["acc_cellmean"] = found["acc_groupmean"] = share(share(hits) for hits in groups.values())
            found["n_groups"] = float(len(groups))
    return found


def drawn(seed, n, *, n_biases=1, unknown=0.0, n_classes=4, n_values=5):
    """Correct (N,), y (N,), bias (N, A) at random."""
    generator = np.random.default_rng(seed)
    bias = generator.integers(0, n_values, (n, n_biases))
    bias[generator.random((n, n_biases)) < unknown] = -1
    return generator.random(n) < 0.7, generator.integers(0, n_classes, n), bias


def assert_same(found, expected):
    if expected.get("n_worst", 0) is None:
        expected, found = ({k: v for k, v in one.items() if k != "n_worst"} for one in (expected, found))
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert list(found) == list(expected)


# --- accuracies


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "unknown"), [(200, 0.0), (200, 0.4), (12, 0.3), (1, 0.0)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_accuracies_with_one_bias_equal_a_loop_over_samples(seed, n, unknown, unbiased):
    correct, y, bias = drawn(seed, n, unknown=unknown)
    found = accuracies(correct, y, bias, bias_names=("colour",), unbiased=unbiased)
    assert_same(found, slow_accuracies(correct, y, bias, ("colour",), unbiased))
    assert ("acc_unbiased" in found) is unbiased


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_with_several_biases_are_given_for_each_and_form_no_groups(seed):
    names = ("colour", "scratch", "place")
    correct, y, bias = drawn(seed, 150, n_biases=3, unknown=0.2)
    found = accuracies(correct, y, bias, bias_names=names, unbiased=False)
    assert_same(found, slow_accuracies(correct, y, bias, names, False))
    assert set(found) == {"n", "acc_avg"} | {
        f"{metric}.{name}" for metric in ("acc_aligned", "acc_conflict", "n_conflict") for name in names
    }


def test_accuracies_do_not_depend_on_the_order_of_the_samples():
    correct, y, bias = drawn(0, 300, unknown=0.1)
    order = np.random.default_rng(1).permutation(300)
    one, other = (
        accuracies(*columns, bias_names=("bias",), unbiased=True)
        for columns in ((correct, y, bias), (correct[order], y[order], bias[order]))
    )
    assert one == pytest.approx(other, rel=1e-12)


def test_samples_of_unknown_bias_count_in_the_mean_and_nowhere_else():
    correct = np.array([True, False, True, False, False])
    y, bias = np.array([0, 0, 1, 1, 1]), np.array([[0], [1], [1], [-1], [-1]])
    assert accuracies(correct, y, bias, bias_names=("b",), unbiased=False) == {
        "n": 5.0, "acc_avg": 0.4, "acc_aligned": 1.0, "acc_conflict": 0.0, "n_conflict": 1.0,
        "acc_worst": 0.0, "n_worst": 1.0, "acc_cellmean": 2 / 3, "acc_groupmean": 2 / 3, "n_groups": 3.0,
    }  # fmt: skip


def test_without_any_known_bias_there_are_no_groups():
    correct, y, _ = drawn(0, 20)
    found = accuracies(correct, y, np.full((20, 1), -1), bias_names=("b",), unbiased=False)
    assert found == pytest.approx(
        {"n": 20.0, "acc_avg": correct.mean(), "acc_aligned": NAN, "acc_conflict": NAN, "n_conflict": 0.0},
        nan_ok=True,
    )


def test_an_empty_group_is_neither_the_worst_nor_in_the_mean_nor_does_it_shift_the_others():
    # labels 0, 1, 2 and biases 0, 3 only: (1, 3) is empty, and biases 1 and 2 do not occur
    y, bias = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 3, 3, 0, 0, 0, 3, 3])
    correct = np.array([1, 1, 1, 1, 0, 1, 1, 0], dtype=bool)
    found = accuracies(correct, y, bias[:, None], bias_names=("b",), unbiased=False)
    assert found["n_groups"] == 5
    assert (found["acc_worst"], found["acc_cellmean"]) == (0.5, pytest.approx((1 + 1 + 0.5 + 1 + 0.5) / 5))


def test_groups_that_would_share_a_number_are_kept_apart():
    # with two labels and bias values up to 9, (0, 9) and (1, 0) are neighbours
    y, bias = np.array([0, 0, 1, 1]), np.array([[9], [9], [0], [0]])
    found = accuracies(np.array([True, True, False, False]), y, bias, bias_names=("b",), unbiased=False)
    assert (found["n_groups"], found["acc_worst"], found["n_worst"]) == (2.0, 0.0, 2.0)


def test_overall_accuracy_is_the_mean_of_groups_weighted_by_their_counts(make_splits):
    splits = make_splits(50, ratio=0.3)
    evaluation = Evaluation(datasets.get("cmnist5k")[0](), splits)
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    groups = [group for group in evaluation.groups("valid", logits) if group["n"]]
    mean = adjusted_accuracy(np.array([g["acc"] for g in groups]), np.array([g["n"] for g in groups]))
    assert mean == pytest.approx(evaluation.metrics("valid", logits)["acc_avg"])


# --- evaluation of a split


def labelled(y, bias):
    """Samples with empty pictures."""
    y, bias = torch.tensor(y), torch.tensor(bias)
    return Samples(torch.zeros(len(y), 3, 2, 2, dtype=torch.uint8), y, bias if bias.ndim == 2 else bias[:, None])


def evaluation_of(test, **changes):
    values = {"bias_names": ("b",), "n_classes": 3, "n_bias_values": 3, "unbiased_test": True, "headline": ()}
    return Evaluation(types.SimpleNamespace(**values | changes), Splits(train=test, valid=test, test=test))


def test_the_metrics_of_a_split_are_loss_and_accuracies_of_its_logits():
    generator = torch.Generator().manual_seed(0)
    y, bias = torch.randint(3, (60,), generator=generator), torch.randint(3, (60,), generator=generator)
    logits = torch.randn(60, 3, generator=generator)
    evaluation = evaluation_of(labelled(y.tolist(), bias.tolist()))
    correct = (logits.argmax(1) == y).numpy()
    for split in ("valid", "test"):
        found = evaluation.metrics(split, logits)
        assert found.pop("loss") == pytest.approx(cross_entropy(logits.double(), y).item(), rel=1e-6)
        assert_same(found, slow_accuracies(correct, y.numpy(), bias.numpy()[:, None], ("b",), split == "test"))
    biased = evaluation_of(labelled(y.tolist(), bias.tolist()), unbiased_test=False)
    assert "acc_unbiased" not in biased.metrics("test", logits)


def with_training(train, test):
    """An evaluation of (y, bias) pairs, with `acc_adjusted` among the headline metrics."""
    dataset = types.SimpleNamespace(
        bias_names=("b",), n_classes=2, n_bias_values=2, unbiased_test=False, headline=("acc_worst", "acc_adjusted")
    )
    train, test = (labelled(*map(list, zip(*pairs, strict=True))) for pairs in (train, test))
    return Evaluation(dataset, Splits(train=train, valid=test, test=test))


def test_the_adjusted_accuracy_weighs_groups_as_training_has_them():
    """Balanced groups of test, of which (0, 0), (0, 1), (1, 0), (1, 1) have 1, 1/2, 0, 1 right."""
    groups = [(0, 0), (0, 1), (1, 0), (1, 1)]
    evaluation = with_training([groups[0]] * 70 + [groups[1]] * 4 + [groups[2]] * 1 + [groups[3]] * 25, groups * 2)
    predicted = torch.tensor([0, 0, 0, 1, 0, 1, 0, 1])
    metrics = evaluation.metrics("test", torch.nn.functional.one_hot(predicted, 2).float())
    assert metrics["acc_adjusted"] == pytest.approx((70 * 1 + 4 * 0.5 + 1 * 0 + 25 * 1) / 100)
    assert metrics["acc_avg"] == metrics["acc_groupmean"] == 0.625


def test_the_adjusted_accuracy_is_of_the_groups_that_are_there():
    evaluation = with_training([(0, 0)] * 6 + [(0, 1)] * 2 + [(1, 1)] * 2, [(0, 1), (0, 1), (1, 1)])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 0]), 2).float()
    assert evaluation.metrics("test", logits)["acc_adjusted"] == pytest.approx((2 * 0.5 + 2 * 0) / 4)
    nowhere = with_training([(0, 0), (1, 1)], [(0, 1), (1, 0)])
    assert math.isnan(nowhere.metrics("test", logits[:2])["acc_adjusted"])


def test_only_who_has_the_adjusted_accuracy_as_a_headline_is_given_it():
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1]), 3).float()
    assert "acc_adjusted" not in evaluation_of(labelled([0, 1], [0, 1])).metrics("test", logits)


def test_every_group_has_its_own_row_and_an_empty_one_is_nan_at_its_place():
    logits = torch.nn.functional.one_hot(torch.tensor([0, 0, 2, 2, 1]), 3).float()
    evaluation = evaluation_of(labelled([0, 1, 2, 2, 2], [0, 0, 2, 0, 2]))
    rows = evaluation.groups("test", logits)
    assert [(row["y"], row["bias"]) for row in rows] == [(y, b) for y in range(3) for b in range(3)]
    assert [row["n"] for row in rows] == [1, 0, 0, 1, 0, 0, 1, 0, 2]
    assert [row["acc"] for row in rows] == pytest.approx([1, NAN, NAN, 0, NAN, NAN, 1, NAN, 0.5], nan_ok=True)


def test_there_are_no_groups_of_several_biases():
    evaluation = evaluation_of(labelled([0, 1], [[0, 1], [1, 1]]), bias_names=("a", "b"))
    assert evaluation.groups("test", torch.zeros(2, 3)) == []


def test_logits_are_those_of_the_whole_split_in_eval_mode_and_in_order():
    class Net(torch.nn.Module):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return x.flatten(1)[:, :10]

    samples = Samples(
        torch.randint(256, (13, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        torch.zeros(13, dtype=torch.int64), torch.zeros(13, 1, dtype=torch.int64),
    )  # fmt: skip
    dataset = datasets.get("cmnist5k")[0]()
    evaluation = Evaluation(dataset, Splits(train=samples, valid=samples, test=samples), batch_size=5)
    net = Net().train()
    found = evaluation.logits(net, [net], samples, dataset.recipe)
    assert torch.allclose(found, samples.x.flatten(1)[:, :10].float() / 255)
    assert found.shape == (13, 10)
    assert net.training


# --- selection


def epochs_of(**columns):
    """Rows of metrics; columns are `valid_<metric>` or `test_<metric>`, a number an epoch."""
    plain = {"valid_loss": [0.0], "valid_acc_avg": [0.0], "valid_n_conflict": [50.0]}
    n = max(map(len, columns.values()))
    rows = [SimpleNamespace(valid={}, test={}) for _ in range(n)]
    for name, values in {**plain, **columns}.items():
        split, _, metric = name.partition("_")
        for row, value in zip(rows, values * n if len(values) == 1 else values, strict=False):
            getattr(row, split)[metric] = value
    return rows


FOUR = {
    "valid_loss": [0.5, 0.2, 0.3, 0.4],
    "valid_acc_avg": [0.9, 0.8, 0.7, 0.6],
    "valid_acc_aligned": [0.9, 0.9, 0.9, 0.5],
    "valid_acc_conflict": [0.1, 0.2, 0.3, 0.6],
    "valid_acc_worst": [0.0, 0.05, 0.1, 0.0],
    "test_acc_unbiased": [0.3, 0.6, 0.5, 0.4],
    "test_acc_worst": [0.9, 0.1, 0.1, 0.1],
}


def test_each_rule_selects_by_its_own_number():
    assert select(epochs_of(**FOUR), ("acc_unbiased",)) == {
        "last": 3, "val_loss": 1, "val_acc": 0, "group_val": 2, "test_oracle": 1,
    }  # fmt: skip
    assert {*select(epochs_of(**FOUR), ("acc_unbiased",)), *LATER} == set(SELECTION_RULES)


@pytest.mark.parametrize(
    ("accuracies", "worst_class", "class_gap"),
    [
        ([(0.9, 0.1), (0.5, 0.4), (0.6, 0.45)], 2, 1),
        ([(0.9, 0.2, 0.3), (0.2, 0.2, 0.2)], 1, 1),  # a tie goes to the later epoch; chance is the smallest gap of all
        ([(0.75, 0.5), (0.25, 0.0)], 0, 1),
        ([(0.7, None, 0.6), (0.9, None, 0.5)], 0, 0),  # a class without samples decides nothing
        ([None, (0.4, 0.3), None], 1, 1),
        ([None, None], None, None),
        ([(None, None)], None, None),
        ([], None, None),
    ],
)
def test_rules_of_classes_select_without_bias_labels(accuracies, worst_class, class_gap):
    assert select_by_classes("worst_class", accuracies) == worst_class
    assert select_by_classes("class_gap", accuracies) == class_gap


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([0.1, 0.3, 0.2], 1),
        ([0.3, 0.1, 0.3], 2),  # a tie goes to the later epoch
        ([NAN, 0.1, NAN], 1),
        ([NAN, NAN], None),
        ([], None),
    ],
)
def test_the_rule_of_proxies_selects_without_bias_labels(values, chosen):
    rows = [{WORST_PROXY: value, "acc_worst": 1 - value} for value in values]
    assert select_by_proxy(rows) == chosen
    assert select_by_proxy([{"acc_worst": 0.5}] * 2) is None  # of a method without proxies


def slow_worst_of_proxies(correct, y, proxy):
    cells = {}
    for right, label, kind in zip(correct.tolist(), y.tolist(), proxy.tolist(), strict=True):
        cells.setdefault((label, kind), []).append(right)
    usable = {cell: sum(hits) / len(hits) for cell, hits in cells.items() if len(hits) >= 10}
    labels = [label for label, _ in usable]
    return min(usable.values()) if len(set(labels)) < len(labels) else None


@pytest.mark.parametrize("n_kinds", [1, 2, 4, 9])
@pytest.mark.parametrize("n", [1, 40, 300])
def test_the_worst_cell_of_proxies(n, n_kinds):
    rng = np.random.default_rng(n + n_kinds)
    y, proxy = rng.integers(0, 3, n), rng.integers(0, n_kinds, n).astype(np.uint8)
    correct = rng.random(n) < 0.3 + 0.2 * proxy / n_kinds
    assert worst_of_proxies(correct, y, proxy) == pytest.approx(slow_worst_of_proxies(correct, y, proxy))


def test_cells_of_fewer_than_ten_decide_nothing():
    y, proxy = np.zeros(29, int), np.array([0] * 10 + [1] * 10 + [2] * 9)
    correct = np.array([True] * 10 + [True] * 6 + [False] * 4 + [False] * 9)
    assert worst_of_proxies(correct, y, proxy) == 0.6
    assert worst_of_proxies(correct[:19], y[:19], proxy[:19]) is None  # an accuracy of classes would be left


def test_group_val_is_the_worst_group_where_that_is_a_headline():
    changed = {**FOUR, "valid_acc_worst": [0.0, 0.5, 0.1, 0.0]}
    assert select(epochs_of(**changed), ("acc_worst", "acc_avg"))["group_val"] == 1
    assert select(epochs_of(**changed), ("acc_avg", "acc_worst"))["group_val"] == 1
    assert select(epochs_of(**changed), ("acc_avg",))["group_val"] == 2


def test_the_oracle_uses_the_first_headline():
    assert select(epochs_of(**FOUR), ("acc_worst", "acc_unbiased"))["test_oracle"] == 0


def test_group_val_of_several_biases_is_the_mean_over_all_sides():
    rows = epochs_of(**{
        "valid_acc_aligned.a": [1.0, 0.8, 0.8], "valid_acc_conflict.a": [0.0, 0.4, 0.5],
        "valid_acc_aligned.b": [1.0, 0.8, 0.9], "valid_acc_conflict.b": [0.5, 0.9, 0.5],
        "valid_n_conflict.a": [10.0], "valid_n_conflict.b": [10.0],
    })  # fmt: skip
    assert select(rows, ("acc_avg",))["group_val"] == 1
    for row in rows:
        row.valid["n_conflict.b"] = 9.0  # one of them is enough to refuse
    assert select(rows, ("acc_avg",))["group_val"] is None


@pytest.mark.parametrize(("n_conflict", "chosen"), [(0.0, None), (9.0, None), (10.0, 2), (11.0, 2)])
@pytest.mark.parametrize("headline", ["acc_unbiased", "acc_worst"])
def test_group_val_needs_ten_conflicting_samples(n_conflict, chosen, headline):
    assert select(epochs_of(**FOUR, valid_n_conflict=[n_conflict]), (headline,))["group_val"] == chosen


def test_ties_go_to_the_later_epoch():
    tied = {
        "valid_loss": [0.2, 0.5, 0.2, 0.5], "valid_acc_avg": [0.9, 0.9, 0.9, 0.8],
        "valid_acc_aligned": [0.5, 0.9, 0.9, 0.5], "valid_acc_conflict": [0.5, 0.3, 0.3, 0.5],
        "test_acc_unbiased": [0.6, 0.6, 0.6, 0.6],
    }  # fmt: skip
    assert select(epochs_of(**tied), ("acc_unbiased",)) == {
        "last": 3, "val_loss": 2, "val_acc": 2, "group_val": 2, "test_oracle": 3,
    }  # fmt: skip


def test_an_epoch_that_is_nan_is_never_selected_and_all_nan_select_nothing():
    rows = epochs_of(**{**FOUR, "valid_loss": [0.5, NAN, 0.3, NAN], "test_acc_unbiased": [NAN] * 4})
    found = select(rows, ("acc_unbiased",))
    assert (found["val_loss"], found["test_oracle"], found["last"]) == (2, None, 3)


def test_no_epochs_select_nothing():
    assert set(select([], ("acc_unbiased",)).values()) == {None}


def test_the_rules_without_bias_knowledge_read_neither_test_nor_bias_labels():
    rows = epochs_of(**FOUR)
    for row in rows:
        row.test = {name: NAN for name in row.test}
        row.valid = {name: row.valid[name] if name in ("loss", "acc_avg") else NAN for name in row.valid}
    found = select(rows, ("acc_unbiased",))
    assert {rule: found[rule] for rule in ("last", "val_loss", "val_acc")} == {
        "last": 3,
        "val_loss": 1,
        "val_acc": 0,
    }


# --- identification


def conflicts(n=200, n_biases=1, ratio=0.1):
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(5, (n,), generator=generator)
    flip = torch.rand(n, n_biases, generator=generator) < ratio
    return labelled(y.tolist(), torch.where(flip, (y[:, None] + 1) % 5, y[:, None]).tolist())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_scores_are_judged_by_auroc_mass_and_precision(kind):
    samples = conflicts()
    truth = samples.conflicting[:, 0].numpy()
    score = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=kind) + 0.3 * torch.from_numpy(truth)
    score = score.to(kind)
    found = identification(score, samples, ("bias",))
    values = score.double().numpy()
    n_true = int(truth.sum())
    assert 5 < n_true < 50
    highest = sorted(range(200), key=lambda place: -values[place])[:n_true]
    assert found == pytest.approx({
        "auroc": roc_auc_score(truth, values),
        "conflict_mass": values[truth].sum() / values.sum(),
        "precision_at_n": sum(truth[place] for place in highest) / n_true,
    })  # fmt: skip


def test_scores_by_hand():
    samples = labelled([0, 0, 0, 0], [0, 0, 1, 1])
    found = identification(torch.tensor([1.0, 3.0, 2.0, 4.0]), samples, ("bias",))
    assert found == pytest.approx({"auroc": 0.75, "conflict_mass": 0.6, "precision_at_n": 0.5})


def test_selected_samples_are_judged_by_precision_and_recall():
    samples = conflicts()
    truth = samples.conflicting[:, 0].numpy()
    selected = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.3
    assert identification(selected, samples, ("bias",)) == pytest.approx({
        "n_selected": float(selected.sum()),
        "precision": precision_score(truth, selected.numpy()),
        "recall": recall_score(truth, selected.numpy()),
    })  # fmt: skip


def test_several_biases_are_judged_each_by_name():
    samples = conflicts(n_biases=2, ratio=0.3)
    score = torch.rand(200, generator=torch.Generator().manual_seed(2))
    found = identification(score, samples, ("a", "b"))
    expected = {}
    for place, name in enumerate("ab"):
        one = Samples(samples.x, samples.y, samples.bias[:, place : place + 1])
        expected |= {f"{key}.{name}": value for key, value in identification(score, one, (name,)).items()}
    ranks = [np.array([(v > values).sum() + ((v == values).sum() - 1) / 2 for v in values])
             for values in (score.numpy(), samples.conflicting.sum(1).numpy())]  # fmt: skip
    expected["spearman"] = pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found == expected
    assert np.isnan(identification(torch.zeros(200), samples, ("a", "b"))["spearman"])
    assert found["auroc.a"] != found["auroc.b"]


def test_what_cannot_be_judged_is_nan():
    aligned, score = conflicts(ratio=0.0), torch.rand(200)
    assert identification(score, aligned, ("bias",)) == pytest.approx(
        {"auroc": NAN, "conflict_mass": 0.0, "precision_at_n": NAN}, nan_ok=True
    )
    none = torch.zeros(200, dtype=torch.bool)
    assert identification(none, aligned, ("bias",)) == pytest.approx(
        {"n_selected": 0.0, "precision": NAN, "recall": NAN}, nan_ok=True
    )
    assert identification(none, conflicts(), ("bias",)) == pytest.approx(
        {"n_selected": 0.0, "precision": NAN, "recall": 0.0}, nan_ok=True
    )
    zero = identification(torch.zeros(200), conflicts(), ("bias",))
    assert math.isnan(zero["conflict_mass"])
    assert zero["auroc"] == 0.5
    for signed in (torch.arange(200.0) - 1, torch.arange(200.0) - 100, -torch.arange(200.0)):  # no fraction of a total
        found = identification(signed, conflicts(), ("bias",))
        assert math.isnan(found["conflict_mass"])
        assert not math.isnan(found["auroc"])


# --- mutual information


def slow_information(counts):
    n, value = counts.sum(), 0.0
    for row in range(counts.shape[0]):
        for column in range(counts.shape[1]):
            both = counts[row, column] / n
            if both > 0:
                value += both * math.log(both / (counts[row].sum() / n * (counts[:, column].sum() / n)))
    return value - (counts.shape[0] - 1) * (counts.shape[1] - 1) / (2 * n)


@pytest.mark.parametrize("shape", [(2, 2), (10, 10), (3, 7)])
def test_information_equals_a_slow_loop_less_its_bias(shape):
    counts = np.random.default_rng(0).integers(0, 60, shape) + 500 * np.eye(*shape, dtype=int)
    assert mutual_information(counts) == pytest.approx(slow_information(counts), rel=1e-12)
    y, bias = (np.repeat(places, counts.ravel()) for places in map(np.ravel, np.indices(shape)))
    correction = (shape[0] - 1) * (shape[1] - 1) / (2 * len(y))
    assert mutual_information(counts) == pytest.approx(mutual_info_score(y, bias) - correction, rel=1e-9)


def test_information_of_independent_columns_is_about_zero_after_correction():
    found, raw = [], []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        counts = np.zeros((10, 10), dtype=int)
        np.add.at(counts, tuple(generator.integers(0, 10, (2, 2000))), 1)
        found.append(mutual_information(counts))
        raw.append(slow_information(counts) + 81 / 4000)
    assert np.mean(raw) > 0.018  # what the correction takes away
    assert np.mean(found) < 0.003
    assert min(found) >= 0


def test_information_of_equal_columns_is_the_logarithm_of_the_number_of_classes():
    for n_classes in (2, 10):
        counts = 10_000 * np.eye(n_classes, dtype=int)
        correction = (n_classes - 1) ** 2 / (2 * counts.sum())
        assert mutual_information(counts) == pytest.approx(math.log(n_classes) - correction, rel=1e-12)
    assert mutual_information(np.full((4, 4), 100)) == 0


def test_without_a_validation_split_of_its_own_no_rule_selects_by_it():
    valid = {"loss": 0.1, "acc_avg": 0.9, "n_conflict": 50.0, "acc_aligned": 1.0, "acc_conflict": 0.5}
    epochs = [SimpleNamespace(valid=valid, test={"acc_unbiased": value}) for value in (0.5, 0.4)]
    chosen = select(epochs, ("acc_unbiased",), validation=False)
    assert chosen == {"last": 1, "val_loss": None, "val_acc": None, "group_val": None, "test_oracle": 0}
