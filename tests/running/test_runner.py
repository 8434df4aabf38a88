"""The runner is the one owner of placement: it moves the data, and a task leaves them where they are."""

from dataclasses import replace

import pytest
import torch

from debiasbench.data.checks import check_splits
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
