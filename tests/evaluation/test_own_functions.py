"""Metrics and rules of other files: what they are given, what they may return, and that they move nothing else."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from debiasbench.datasets import registry as datasets
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.evaluation.own import TAKEN, digests_of_functions, is_own_metric, own_functions, own_selection
from debiasbench.evaluation.rehearsal import rehearse
from debiasbench.evaluation.selection import uses_bias_labels
from debiasbench.nets.build import check_net
from debiasbench.samples import Samples

HEAD = "import numpy as np\nfrom debiasbench.evaluation.own import metric, rule\n"
FUNCTIONS = """
@metric
def certainty(logits):
    return logits.max(1).mean()
@metric
def agreement(predictions, bias, unused=3):
    return (predictions == bias[:, 0]).mean()
@metric
def everything(logits, predictions, y, bias, conflicting):
    given = logits, predictions, y, bias, conflicting
    assert [one.shape for one in given] == [(40, 10), (40,), (40,), (40, 1), (40, 1)]
    assert [str(one.dtype) for one in given] == ["float32", "int64", "int64", "int64", "bool"]
    return np.mean(predictions == y)
@metric
def nothing(y):
    return None
@rule
def second(rows):
    return min(1, len(rows) - 1)
@rule
def certain(rows):
    assert all(row.keys() == {'loss', 'acc_avg', 'n', 'certainty'} for row in rows)
    return np.argmax([row["certainty"] for row in rows])
@rule
def group_best(rows):
    assert all({"acc_conflict", "agreement", "everything"} <= row.keys() for row in rows)
    return max(range(len(rows)), key=lambda i: rows[i]["acc_conflict"])
@rule
def undecided(rows):
    return None
"""


@pytest.fixture
def evaluation(make_splits):
    """Of 40 validation samples."""
    return Evaluation(datasets.get("cmnist5k")[0](), make_splits())


def logits_of(seed=0):
    return torch.randn(40, 10, generator=torch.Generator().manual_seed(seed))


def test_metrics_are_given_what_they_ask_for(evaluation, own_files):
    logits = logits_of()
    before = evaluation.metrics("valid", logits)
    own_files(functions=HEAD + FUNCTIONS)
    found = evaluation.metrics("valid", logits)
    bias = evaluation.splits.valid.bias[:, 0]
    assert found["certainty"] == pytest.approx(logits.max(1).values.mean().item())
    assert found["agreement"] == (logits.argmax(1) == bias).float().mean()
    assert found["everything"] == found["acc_avg"]
    assert np.isnan(found["nothing"])
    assert {name: found[name] for name in before} == before
    assert [*found][: len(before)] == [*before]
    assert set(found) - set(before) == {"certainty", "agreement", "everything", "nothing"}


def test_rules_see_validation_without_what_uses_bias_labels(evaluation, own_files):
    own_files(functions=HEAD + FUNCTIONS)
    rows = [evaluation.metrics("valid", logits_of(seed)) for seed in range(3)]
    chosen = own_selection(rows)
    certainties, conflicts = ([row[name] for row in rows] for name in ("certainty", "acc_conflict"))
    assert chosen == {
        "certain": int(np.argmax(certainties)), "group_best": int(np.argmax(conflicts)), "second": 1,
        "undecided": None,
    }  # fmt: skip
    assert all(index is None or type(index) is int for index in chosen.values())
    assert [name for name in chosen if uses_bias_labels(name)] == ["group_best"]


def test_without_a_validation_split_no_rule_chooses(evaluation, own_files):
    own_files(functions=HEAD + FUNCTIONS)
    rows = [evaluation.metrics("valid", logits_of())]
    assert set(own_selection(rows, validation=False).values()) == {None}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('x')", r"The metric bad failed on valid: KeyError: 'x'\."),
        ("raise ValueError('one\\ntwo')", r"The metric bad failed on valid: ValueError: one\.$"),
        ("raise SystemExit", r"The metric bad failed on valid: SystemExit\."),
        ("return float('nan')", "must return a finite number, or None .* On valid it returned nan"),
        ("return np.inf", "On valid it returned inf"), ("return 'good'", "On valid it returned 'good'"),
        ("return True", "On valid it returned true"), ("return np.zeros(3)", "On valid it returned array"),
        ("return [1.0]", r"On valid it returned \[1\.0\]"), ("return 1j", "On valid it returned 1j"),
        ("return 10 ** 400", "On valid it returned 1000"),
    ],
)  # fmt: skip
def test_a_metric_that_fails_says_so(evaluation, own_files, body, said):
    own_files(functions=f"{HEAD}\n@metric\ndef bad(y):\n    {body}\n")
    with pytest.raises(BenchmarkError, match=said):
        evaluation.metrics("valid", logits_of())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return rows[0]['acc_worst']", r"The rule bad failed on validation: KeyError: 'acc_worst'\."),
        ("return 2", r"must return the index of a row, here 0\.\.1, or None .* It returned 2\."),
        ("return -1", "It returned -1"), ("return 0.0", r"It returned 0\.0"), ("return True", "It returned true"),
        ("return 'last'", "It returned 'last'"), ("return rows", r"It returned \[\{"),
        ("return np.array([0, 1])", "It returned array"),
    ],
)  # fmt: skip
def test_a_rule_that_fails_says_so(evaluation, own_files, body, said):
    own_files(functions=f"{HEAD}\n@rule\ndef bad(rows):\n    {body}\n")
    rows = [evaluation.metrics("valid", logits_of(seed)) for seed in range(2)]
    with pytest.raises(BenchmarkError, match=said):
        own_selection(rows)


def test_what_they_do_reaches_nothing_else(evaluation, own_files):
    """They get copies, and random numbers, gradients and threads are put back."""
    own_files(functions=HEAD + """
import torch
@metric
def a_wild_one(logits, predictions, y, bias, conflicting):
    for one in (logits, predictions, y, bias, conflicting):
        one[:] = 0
    torch.manual_seed(3)
    torch.set_grad_enabled(True)
    torch.set_num_threads(2)
    return 0.5
@metric
def later(y, bias):
    return y.mean() + bias.mean()
@rule
def wild(rows):
    rows[0].clear()
    rows.clear()
    return 0
""")  # fmt: skip
    logits = logits_of()
    kept, random, threads = logits.clone(), torch.random.get_rng_state(), torch.get_num_threads()
    y, bias = evaluation.splits.valid.y.clone(), evaluation.splits.valid.bias.clone()
    torch.set_grad_enabled(False)
    try:
        first, again = evaluation.metrics("valid", logits), evaluation.metrics("valid", logits)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    assert first == again
    assert first["later"] == pytest.approx((y.float().mean() + bias.float().mean()).item())
    assert torch.equal(logits, kept)
    assert torch.equal(evaluation.splits.valid.y, y)
    assert torch.equal(evaluation.splits.valid.bias, bias)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    rows = [dict(first)]
    assert own_selection(rows) == {"wild": 0}
    assert rows == [first]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "@metric\ndef brier(logits, labels):\n    return 1",
            r"The metric brier asks for labels\. Its arguments are any",
        ),
        ("@metric\ndef brier():\n    return 1", "The metric brier asks for nothing"),
        ("@metric\ndef brier(*values):\n    return 1", "The metric brier asks for values"),
        ("@metric\ndef loss(y):\n    return 1", "not a name that the suite uses .* Got 'loss'"),
        ("@metric\ndef acc_mine(y):\n    return 1", "Got 'acc_mine'"),
        ("@metric\ndef n_mine(y):\n    return 1", "Got 'n_mine'"),
        ("@metric\ndef seed(y):\n    return 1", "Got 'seed'"),
        ("@metric\ndef grün(y):\n    return 1", "Got 'grün'"),
        ("mine = metric(lambda y: 1)", "Got '<lambda>'"),
        ("@rule\ndef last(rows):\n    return 0", "Got 'last'"),
        ("@rule\ndef val_loss(rows):\n    return 0", "Got 'val_loss'"),
        ("@rule\ndef mine(rows, test):\n    return 0", "The rule mine must take one argument"),
        ("@rule\ndef mine():\n    return 0", "The rule mine must take one argument"),
    ],
)
def test_what_cannot_be_one_is_refused_with_its_file(own_files, text, said):
    own_files(mine=f"{HEAD}\n{text}\n")
    with pytest.raises(BenchmarkError, match=rf"(?s)^The file mine\.py of --nets-dir cannot be used: .*{said}"):
        check_net("mlp")
    assert own_functions("metric") == own_functions("rule") == {}


def test_a_name_is_defined_once(own_files):
    one = f"{HEAD}\n@metric\ndef mine(y):\n    return 1\n"
    own_files(one=one, other=one)
    with pytest.raises(BenchmarkError, match=r"The metric mine is defined twice: by \S+\.one and \S+\.other\."):
        own_functions("metric")
    own_files(other=f"from .one import mine\n{HEAD}\n@rule\ndef mine_too(rows):\n    return 0\n")
    assert own_functions("metric").keys() == {"mine"}  # what is imported is defined elsewhere
    assert own_functions("rule").keys() == {"mine_too"}


def test_digests_are_of_their_files_without_comments(own_files):
    text = f"{HEAD}\n@metric\ndef mine(y):\n    return 1\n"
    own_files(one=text, two=f"{HEAD}\n@rule\ndef other(rows):\n    return 0\n")
    first = digests_of_functions()
    assert first.keys() == {"metric mine", "rule other"}
    own_files(one=f"# a comment\n{text}")
    assert digests_of_functions() == first
    own_files(one=text.replace("return 1", "return 2"))
    edited = digests_of_functions()
    assert edited["metric mine"] != first["metric mine"]
    assert edited["rule other"] == first["rule other"]


def test_they_are_tried_on_the_data(make_splits, own_files):
    dataset, splits = datasets.get("cmnist5k")[0](), make_splits()
    own_files(good=HEAD + FUNCTIONS)
    rehearse(dataset, splits)
    own_files(bad=f"{HEAD}\n@rule\ndef bad(rows):\n    return rows[0]['certainti']\n")
    with pytest.raises(BenchmarkError, match="The rule bad failed on validation: KeyError"):
        rehearse(dataset, splits)
    own_files(bad=f"{HEAD}\n@metric\ndef bad(y):\n    return 1 / 0\n")
    with pytest.raises(BenchmarkError, match="The metric bad failed on valid: ZeroDivisionError"):
        rehearse(dataset, splits)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("@rule\ndef bad(rows):\n    return 0 if rows[1] else 1", "The rule bad failed on validation: IndexError"),
        ("@rule\ndef bad(rows):\n    return 1", "The rule bad must return the index of a row, here 0..0, or None"),
        ("@rule\ndef bad(rows):\n    return [0, 1][len(rows) - 1]", "The rule bad failed on validation: IndexError"),
        (
            "@metric\ndef bad(predictions):\n    return 1 / int((predictions == 1).sum())",
            "The metric bad failed on valid: ZeroDivisionError",
        ),
        ("@metric\ndef bad(y):\n    return 1 / (len(y) - N_TEST)", "The metric bad failed on test: ZeroDivisionError"),
    ],
    ids=["second epoch", "always 1", "two epochs", "one class", "test"],
)
def test_they_are_tried_with_few_epochs_one_class_and_on_test(make_splits, own_files, body, said):
    dataset, splits = datasets.get("cmnist5k")[0](), make_splits()
    some = splits.test
    splits = replace(splits, test=Samples(some.x[:30], some.y[:30], some.bias[:30]))
    own_files(bad=f"{HEAD}\n{body.replace('N_TEST', '30')}\n")
    with pytest.raises(BenchmarkError, match=re.escape(said)):
        rehearse(dataset, splits)


def test_no_other_column_of_a_table_is_taken_for_a_metric(own_files):
    from pathlib import Path

    from debiasbench.records import read_records
    from debiasbench.report.results import to_frame

    records, _ = read_records(Path(__file__).parents[2] / "docs" / "reproduction" / "records" / "all.zip")
    table = to_frame(records[:5])
    assert [name for name in table if is_own_metric(name)] == []
    assert {name for name in table if "." not in name and not name.startswith(("acc_", "n_"))} <= {*TAKEN}
