"""The runner is the one owner of placement: it moves the data, and a task leaves them where they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from debiasbench.datasets import check_splits
from debiasbench.errors import BenchmarkError
from debiasbench.running.runner import Runner, data_facts
from debiasbench.samples import Samples, Splits
from debiasbench.testing import Tiny
from debiasbench.training.task import Access, Task


@pytest.fixture
def moves(monkeypatch):
    """The moves of samples to a pretended GPU, as (device, whether x went along); nothing really moves."""
    seen = []

    def to(self, device, *, with_x=True):
        seen.append((str(device), with_x))
        return Samples(self.x, self.y, self.bias, self.conflict, self.x_sha256, self.length, self.groups)

    monkeypatch.setattr(Samples, "to", to)
    return seen


@pytest.mark.parametrize(("free", "with_x"), [(0, False), (2**40, True)])
def test_images_stay_where_the_runner_put_them(moves, monkeypatch, tmp_path, free, with_x):
    """Also where they do not fit into this worker's fraction of the device: the task has no fraction of its own."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    runner = Runner(tmp_path, tmp_path, device="cuda:0", memory_fraction=0.25)
    splits = runner.splits(Tiny())
    assert moves == [("cuda:0", with_x)] * 3
    task = Task(splits, dataset=Tiny(), recipe=Tiny.recipe, seed=0, access=Access("tests"))
    assert len(moves) == 3
    assert task.splits is splits
    assert task.x is splits.train.x
    assert runner.splits(Tiny()) is splits  # equal data are built and moved once


def test_the_fraction_counts(moves, monkeypatch, tmp_path):
    """Four workers on one device: a quarter of half of what is free for each."""
    n_bytes = sum(part.x.nbytes for part in Tiny().build(tmp_path).named().values())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * n_bytes, 4 * n_bytes))
    for fraction, with_x in ((0.5, True), (0.25, True), (0.2, False)):
        moves.clear()
        Tiny().build(tmp_path).to(torch.device("cuda:0"), fraction=fraction)
        assert {went for _, went in moves} == {with_x}


def test_a_validation_split_that_is_the_test_split_moves_once_and_stays_it(moves, monkeypatch, tmp_path):
    built = Tiny().build(tmp_path)
    one = Splits(built.train, built.test, built.test)
    n_bytes = built.train.x.nbytes + built.test.x.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * n_bytes, 2 * n_bytes))  # counted once, it fits
    moved = one.to(torch.device("cuda:0"))
    assert moves == [("cuda:0", True)] * 2
    assert moved.valid is moved.test
    assert moved.valid_is_test
    assert moved.train is not moved.test


def test_what_a_record_says_of_the_data(tmp_path):
    splits = Tiny().build(tmp_path)
    facts = data_facts(Tiny(), splits)
    assert facts.fingerprint == splits.fingerprint()
    for name, part in splits.named().items():
        assert facts.splits[name].n == len(part)
        assert facts.splits[name].n_by_class == tuple(int((part.y == label).sum()) for label in range(4))
        assert facts.splits[name].n_conflict == {"colour": int((part.bias[:, 0] != part.y).sum())}
    assert (facts.class_names, facts.bias_values) == (("0", "1", "2", "3"), None)


@pytest.mark.parametrize("values", [(("red", "green"),), (("Deep Sea", "land", "x" * 40),), (("a",), ("b", "c"))])
def test_a_record_has_the_names_of_the_values_of_biases(tmp_path, values):
    """No part of what must come out equal: they may be called otherwise another time."""
    named = type("Named", (Tiny,), {"bias_values": values})()
    facts, plain = (data_facts(one, one.build(tmp_path)) for one in (named, Tiny()))
    assert facts.bias_values == values
    assert facts == plain


def test_datasets_whose_classes_are_named_alike_are_built_each(tmp_path):
    """The second was trained on the first one's data."""

    def dataset(name, sign):
        def build(self, data_dir):
            splits = Tiny.build(self, data_dir)
            return replace(splits, train=replace(splits.train, y=(sign * splits.train.y) % 4))

        return type("Data", (Tiny,), {"name": name, "build": build})()

    one, other = dataset("one", 1), dataset("other", -1)
    assert repr(one) == repr(other)
    runner = Runner(data_dir=tmp_path, results_dir=tmp_path, device="cpu")
    assert not torch.equal(runner.splits(one).train.y, runner.splits(other).train.y)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("x", lambda x: x.float() / 255, r"x of train must be uint8, pixels in 0..255.* Got float32"),
        ("y", lambda y: y.int(), "y of train must be int64. Got int32"),
        ("y", lambda y: y.float(), "y of train must be int64. Got float32"),
        ("bias", lambda bias: bias.short(), "bias of train must be int64. Got int16"),
        ("conflict", lambda _: torch.zeros(256, 1), "conflict of train must be bool. Got float32"),
        ("groups", lambda _: torch.zeros(256, 0), "groups of train must be bool. Got float32"),
        ("y", lambda y: y[:, None], r"y of train must be of shape \(256,\)\. Got \(256, 1\)"),
        ("bias", lambda bias: bias[:, [0, 0]], r"bias of train must be of shape \(256, 1\), .* Got \(256, 2\)"),
        ("bias", lambda bias: bias - 2, "the bias of train must be at least 0, or -1 if unknown. Got -2"),
        ("conflict", lambda _: torch.zeros(256, dtype=torch.bool), r"conflict of train .* \(256, 1\)\. Got \(256,\)"),
        ("groups", lambda _: torch.zeros(256, 2, dtype=torch.bool), r"groups of train .* \(256, 0\), .* Got \(256, 2"),
        ("x", lambda x: x[:, 0], r"x of train must be \(N, C, H, W\)\. Got \(256, 28, 28\)"),
        ("x", lambda x: x[:, :, :0], r"x of train must be \(N, C, H, W\)\. Got \(256, 3, 0, 28\)"),
        ("x", lambda x: x[..., 1:], r"x of valid must have the shape of train, \(3, 28, 27\) .* Got \(3, 28, 28\)"),
    ],
)
def test_columns_of_another_type_shape_or_range_are_refused_before_anything_trains(tmp_path, column, change, said):
    splits = Tiny().build(tmp_path)
    bad = replace(splits, train=replace(splits.train, **{column: change(getattr(splits.train, column))}))
    with pytest.raises(BenchmarkError, match=f"tiny: {said}"):
        check_splits(Tiny(), bad)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"class_names": ("0", "1", "2", "1")}, "class_names must be different. '1' is there twice"),
        ({"bias_names": ("colour", "colour")}, "bias_names must be different. 'colour' is there twice"),
        ({"group_names": ("all", "some", "all")}, "group_names must be different. 'all' is there twice"),
        ({"bias_values": (("red", "red"),)}, "the values of colour must be different. 'red' is there twice"),
        ({"bias_names": ()}, "bias_names is empty"),
        ({"bias_values": (("red",), ("red",))}, "bias_values must be empty, or name the values of each .* Got 2"),
        ({"bias_values": (tuple("abcdefghijk"),)}, "bias_values names 11 values of colour, and n_bias_values is 10"),
    ],
)
def test_names_that_tables_could_not_tell_apart_are_refused_before_anything_trains(tmp_path, names, said):
    named = type("Named", (Tiny,), {"name": "named", **names})()
    with pytest.raises(BenchmarkError, match=f"named: {said}"):
        check_splits(named, named.build(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": None}, "length of test is missing"),
        ({"length": torch.tensor([0, 3])}, r"length of test must be in 1\.\.3\. Got 0\.\.3"),
        ({"length": torch.tensor([1, 4])}, r"length of test must be in 1\.\.3\. Got 1\.\.4"),
        ({"length": torch.tensor([1.0, 3.0])}, "length of test must be int64. Got float32"),
        (
            {"x": torch.zeros(2, 3, 1, dtype=torch.int32)},
            r"x of test must be \(N, L\), token .* Got \(2, 3, 1\)",
        ),
        ({"x": torch.zeros(2, 4, dtype=torch.int32)}, r"x of test must have the shape of train, \(3,\) .* Got \(4,\)"),
    ],
)
def test_texts_that_cannot_be_read_are_refused_before_anything_trains(change, said):
    texts = type("Texts", (Tiny,), {"name": "texts", "input": "text", "class_names": ("0", "1")})()
    x, y = torch.tensor([[5, -1, -1], [5, 6, 7]], dtype=torch.int32), torch.tensor([0, 1])
    part = Samples(x, y, y[:, None], length=torch.tensor([1, 3]))
    assert check_splits(texts, Splits(part, part, part))
    with pytest.raises(BenchmarkError, match=f"texts: {said}"):
        check_splits(texts, Splits(part, part, replace(part, **change)))


@pytest.mark.parametrize("column", ["x", "y", "bias", "conflict", "length", "groups"])
@pytest.mark.parametrize("given", [np.zeros((2, 1)), [[0], [1]], "text"])
def test_a_column_that_is_no_tensor_is_refused(column, given):
    columns = {"x": torch.zeros(2, 1), "y": torch.zeros(2), "bias": torch.zeros(2, 1), column: given}
    with pytest.raises(
        BenchmarkError, match=rf"Samples: {column} must be a torch\.Tensor\. Got {type(given).__name__}"
    ):
        Samples(**columns)


@pytest.mark.parametrize("split", ["valid", "test", "tune"])
def test_a_class_that_training_lacks_is_refused(tmp_path, split):
    """It would be one more output, which nothing teaches; a class that is nowhere does no harm."""
    splits = Tiny().build(tmp_path)

    def without(part, label):
        rows = (part.y != label).nonzero()[:, 0]
        return Samples(part.x[rows], part.y[rows], part.bias[rows])

    nowhere = {name: without(part, 3) for name, part in splits.named().items()}
    check_splits(Tiny(), Splits.of(nowhere))
    only = nowhere | {split: replace(splits.test)}
    with pytest.raises(BenchmarkError, match=f"tiny: 3 occurs in {split}, but not in train, so it cannot be learnt"):
        check_splits(Tiny(), Splits.of(only))


@pytest.mark.parametrize("returned", [None, ({}, {}), []])
def test_what_is_not_splits_is_refused(returned):
    with pytest.raises(BenchmarkError, match=r"tiny: build must return Splits\. Got"):
        check_splits(Tiny(), returned)
