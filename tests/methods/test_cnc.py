"""CNC: its sets, its steps, and what it does where nothing is wrong; loops: tests/parity."""

import math

import pytest
import torch

from debiasbench.methods import registry as methods
from debiasbench.testing import Tiny
from debiasbench.testing import make_task as make_small_task

MODULE = __import__(methods.get("cnc")[0].__module__, fromlist=["Layout"])


def contrastive(anchor, positives, negatives, temperature):
    """Of one set."""
    return MODULE.contrastive(anchor[None], positives[None], negatives[None], temperature)[0]


def sets(*, two_sided=False, n_each=6, seed=0):
    """A layout on random labels of which a fifth is predicted wrongly, and one epoch of it."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.2, (y + 1) % 3, y)
    layout = MODULE.Layout(y, predicted, n_each, n_parts=4 if two_sided else 3)
    return y, predicted, layout(torch.Generator().manual_seed(1))


def test_sets_hold_what_they_should():
    """Trap 25: anchors right; positives of the label and predicted otherwise; negatives the other way round."""
    y, predicted, batches = sets()
    for batch in batches:
        anchors, positives, negatives = batch.split(6)
        label = y[anchors[0]]
        assert ((y[anchors] == label) & (predicted[anchors] == label)).all()
        assert ((y[positives] == label) & (predicted[positives] != label)).all()
        assert ((y[negatives] != label) & (predicted[negatives] == label)).all()


def test_the_second_side_has_negatives_from_the_slice_of_the_first_positive():
    y, predicted, batches = sets(two_sided=True)
    for batch in batches:
        anchors, positives, _, easy = batch.split(6)
        assert (predicted[easy] == predicted[positives[0]]).all()
        assert (predicted[easy] == y[easy]).all()
        assert (y[easy] != y[anchors[0]]).all()


def test_sets_follow_the_generator():
    _, _, first = sets()
    _, _, again = sets()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({tuple(batch.tolist()) for batch in first}) > 1


@pytest.mark.parametrize(("fraction", "n_rounds"), [(1.0, 40), (0.1, 4), (0.0, 1), (None, 13)])
def test_length_of_an_epoch(fraction, n_rounds):
    """A fraction of the smallest slice, or about as many samples as there are: 13 rounds of 2 sets of 12 of 320."""
    y = torch.tensor([0] * 270 + [1] * 50)
    predicted = y.clone()
    predicted[-10:] = 0
    layout = MODULE.Layout(y, predicted, 4, n_parts=3, fraction=fraction)
    assert layout.n_sets == 2 * n_rounds == len(layout(torch.Generator()))


def test_an_epoch_is_no_longer_than_the_smallest_slice():
    y = torch.tensor([0] * 290 + [1] * 30)
    predicted = y.clone()
    predicted[-27:] = 0
    assert MODULE.Layout(y, predicted, 4, n_parts=3).n_sets == 6


def test_subsets_are_drawn_uniformly():
    """All ordered triples of five samples equally often; of two samples each of the eight, with replacement."""
    pools = MODULE.Pools([torch.tensor([7, 8]), torch.tensor([1, 2, 3, 4, 5])])
    generator = torch.Generator().manual_seed(0)
    for pool, n_possible in ((1, 60), (0, 8)):
        found = pools.drawn(torch.full((n_possible * 400,), pool), 3, generator)
        values, counts = found.unique(dim=0, return_counts=True)
        assert len(values) == n_possible
        # Pearson's statistic has mean n_possible - 1 and variance twice that
        statistic = float(((counts - 400.0) ** 2 / 400).sum())
        assert abs(statistic - (n_possible - 1)) < 5 * math.sqrt(2 * n_possible)


def test_sets_of_a_step_go_side_by_side(new_method):
    """The mean over sets of their contrastive parts, and cross-entropy over all samples; the last step has the rest."""
    every = torch.randn(18, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method, y = new_method("cnc", n_each=2), torch.arange(18) % 2
    found = method.loss_of(every[:, :2], every, y)
    unit = torch.nn.functional.normalize(every, dim=1)
    parts = [contrastive(one[0], one[2:4], one[4:6], 0.05) for one in unit.split(6)]
    ce = torch.nn.functional.cross_entropy(every[:, :2], y)
    assert float(found) == pytest.approx(float(0.75 * sum(parts) / 3 + 0.25 * ce))
    y, predicted, batches = sets(n_each=6)
    layout = MODULE.Layout(y, predicted, 6, n_parts=3, sets=5)
    together = layout(torch.Generator().manual_seed(1))
    assert [len(batch) // 18 for batch in together] == [5, 5, 2]
    assert torch.equal(torch.cat(together), torch.cat(batches))
    assert len(layout) == len(together)


def test_the_cost_of_epochs_of_anchors(new_method):
    """Each sample in turn is the anchor of a set of 4 times 16."""
    dataset = Tiny()
    longer = new_method("cnc", epoch="anchors", two_sided=True, anchor_fraction=0.5).relative_cost(dataset)
    assert longer - new_method("cnc").relative_cost(dataset) == 31


@pytest.mark.parametrize(
    ("options", "n_sets"), [({}, 3), ({"sets": 5}, 5), ({"n_each": 64}, 1), ({"two_sided": True}, 2)]
)
def test_a_step_is_about_a_batch_of_the_recipe(new_method, monkeypatch, options, n_sets):
    method = new_method("cnc", first_epochs=1, **options)
    task = make_small_task(method)
    seen = []
    monkeypatch.setattr(task, "train", lambda *_, **options: seen.append(options["sample"]))
    task.recipe = task.recipe.replace(batch_size=128)
    method.fit(task)
    assert seen[0].sets == n_sets


def test_nothing_wrong_is_told(new_method):
    method = new_method("cnc", first_epochs=1)
    task = make_small_task(method)
    task.each = lambda *_: task.y
    with pytest.raises(RuntimeError, match=r"gets everything right after 1 epochs.*Lower first_epochs"):
        method.fit(task)
