"""RWY, SUBY, RWG and SUBG: plain training on what is balanced."""

import pytest
import torch
from reference import masses, plain_loss, replay, task_for

from debiasbench.grid import expand

CLASSES = lambda task: task.y  # noqa: E731
CELLS = lambda task: 10 * task.y + task.splits.train.bias[:, 0]  # noqa: E731
SIDES = lambda task: (task.y != task.splits.train.bias[:, 0]).long()  # noqa: E731
KINDS = {"rwy": ("rwy", {}, CLASSES), "rwg": ("rwg", {}, CELLS), "sides": ("rwg", {"groups": "sides"}, SIDES)}


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_in_balance_equals_a_plain_loop(new_method, way, agree, kind):
    """All classes, or groups, that are there have the same mass; training is plain."""
    name, options, groups_of = KINDS[kind]
    method = new_method(name, **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    drawn = masses(run.options["sample"], groups_of(task))
    assert len(drawn) > 1
    agree("drawn", list(drawn.values()), [1 / len(drawn)] * len(drawn))
    assert {len(step.batch.y) for step in run.steps} == {8}
    replay(run, plain_loss, way(), agree)


@pytest.mark.parametrize("kind", KINDS)
def test_balanced_subsets_equal_a_plain_loop(new_method, way, agree, kind):
    """Of each class, or group, as many as the smallest has: the same samples in all epochs, each once."""
    name, options, groups_of = KINDS[kind]
    method = new_method(name, use="subset", **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    group = groups_of(task).tolist()
    smallest = min(group.count(one) for one in set(group))
    epochs = {}
    for step in run.steps:
        epochs.setdefault(int(step.batch.epoch), []).extend(step.batch.index.tolist())
    assert len(epochs) == 3
    for seen in epochs.values():
        assert sorted(seen) == sorted(epochs[0])
        assert len(seen) == len(set(seen))
        kept = [group[index] for index in seen]
        assert [kept.count(one) for one in sorted(set(group))] == [smallest] * len(set(group))
    replay(run, plain_loss, way(), agree)


def test_every_sample_of_a_group_may_be_in_the_subset(new_method):
    """Each as often as any other, in 2,000 draws; another generator draws others."""
    group = torch.tensor([0, 2, 2, 0, 2, 2, 5, 5, 0, 2])
    method = new_method("rwy", use="subset")
    total = sum(method.subset(group, generator=torch.Generator().manual_seed(seed)) for seed in range(2000))
    for name, size in ((0, 3), (2, 5), (5, 2)):
        expected = 2000 * 2 / size
        assert bool(((total[group == name] - expected).abs() < 130).all())  # four standard deviations are 90


def test_the_four_names():
    cells = expand(["rwy", "suby", "rwg", "subg"], ["cmnist5k"], seeds=1).cells
    assert [cell.method_title for cell in cells] == ["rwy", "rwy:use=subset", "rwg", "rwg:use=subset"]
