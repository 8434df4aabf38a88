"""CNC: its sets, its loss, and what it does where nothing is wrong."""

import math
from types import SimpleNamespace

import pytest
import torch

from debiasbench.methods import registry as methods
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
    assert len(batches) == 200 // 18
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


def test_a_class_without_errors_takes_all_of_its_samples():
    """Else its label would never be trained."""
    y = torch.tensor([0] * 10 + [1] * 10)
    predicted = y.clone()
    predicted[10] = 0
    layout = MODULE.Layout(y, predicted, 4, n_parts=3)
    generator = torch.Generator().manual_seed(0)
    anchors, positives, negatives = layout.set_of(0, generator).split(4)
    assert (y[anchors] == 0).all()
    assert (y[positives] == 0).all()  # none of them was wrong
    assert (negatives == 10).all()
    anchors, positives, negatives = layout.set_of(15, generator).split(4)
    assert (positives == 10).all()
    assert (y[negatives] == 0).all()  # nothing else was taken for a 1


def test_equal_similarities():
    """Trap 25: 64 positives and 64 negatives, all alike: log 128 = 4.852."""
    vector = torch.nn.functional.normalize(torch.ones(5), dim=0)
    same = vector.expand(64, 5)
    assert float(contrastive(vector, same, same, 0.05)) == pytest.approx(math.log(128), abs=1e-4)


def test_the_loss_against_a_loop_and_its_sign():
    """Trap 26: never below 0, and lower when a positive moves towards the anchor."""
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: torch.nn.functional.normalize(  # noqa: E731
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )
    anchor, positives, negatives = unit(4), unit(3, 4), unit(5, 4)
    everything = [math.exp(float(anchor @ other) / 0.5) for other in (*positives, *negatives)]
    expected = sum(-math.log(math.exp(float(anchor @ p) / 0.5) / sum(everything)) for p in positives) / 3
    found = float(contrastive(anchor, positives, negatives, 0.5))
    assert found == pytest.approx(expected)
    assert found > 0
    nearer = positives.clone()
    nearer[0] = torch.nn.functional.normalize(positives[0] + 2 * anchor, dim=0)
    assert float(contrastive(anchor, nearer, negatives, 0.5)) < found


def test_weights_of_the_terms(new_method):
    """0.75 and 0.25; with two sides the contrastive part counts twice (trap 26)."""
    every = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(every, dim=1).split(2)
    one = contrastive(unit[0][0], unit[1], unit[2], 0.05)
    two = contrastive(unit[1][0], unit[0], unit[3], 0.05)
    for two_sided, contrast in ((False, one), (True, one + two)):
        features = every if two_sided else every[:6]
        y = torch.arange(len(features)) % 2
        net = SimpleNamespace(features=lambda _, features=features: features, head=lambda z: z[:, :2])
        ce = torch.nn.functional.cross_entropy(features[:, :2], y)
        method = new_method("cnc", n_each=2, two_sided=two_sided)
        value = method.loss(SimpleNamespace(net=net), SimpleNamespace(x=None, y=y), {})
        assert float(value) == pytest.approx(float(0.75 * contrast + 0.25 * ce), rel=1e-5)


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
    layout = MODULE.Layout(y, predicted, 6, n_parts=3, sets=4)
    together = layout(torch.Generator().manual_seed(1))
    assert [len(batch) // 18 for batch in together] == [4, 4, 3]
    assert torch.equal(torch.cat(together), torch.cat(batches))
    assert len(layout) == len(together)


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
