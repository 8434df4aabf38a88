"""The runner is the one owner of placement: it moves the data, and a task leaves them where they are."""

import pytest
import torch

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
