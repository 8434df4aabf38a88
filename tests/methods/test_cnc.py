"""CNC: its sets, its loss, and what it does where nothing is wrong."""

import math
from types import SimpleNamespace

import pytest
import torch

from debiasbench.grid import expand
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


def slow_pools(y, predicted, anchor, first_positive):
    """What the parts of a set may hold, sample by sample: anchors, positives, negatives, second negatives."""
    samples, label = range(len(y)), y[anchor]
    positives = [i for i in samples if y[i] == label and predicted[i] != label]
    negatives = [i for i in samples if y[i] != label and predicted[i] == label]
    second = [i for i in samples if y[i] == predicted[i] == predicted[first_positive]]
    return [
        [i for i in samples if y[i] == predicted[i] == label],
        positives or [i for i in samples if y[i] == label],
        negatives or [i for i in samples if y[i] != label],
        second or [i for i in samples if y[i] != label],
    ]


def uneven(n=300, seed=3):
    """Four labels of unequal size: nothing of 0 is predicted wrongly, nothing of 3 rightly."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.5, 0.3, 0.15, 0.05]), n, replacement=True, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.3
    other = torch.tensor([0, 2, 3, 1])[y]  # nothing is taken for a 0 that is none
    predicted = torch.where((wrong & (y > 0)) | (y == 3), other, y)
    return y, predicted


def test_every_part_is_drawn_from_all_that_it_may_hold():
    """Against lists made sample by sample, with each fall-back: over many epochs all of them come, and no others."""
    y, predicted = uneven()
    layout = MODULE.Layout(y, predicted, 4, n_parts=4, fraction=1.0)
    generator = torch.Generator().manual_seed(0)
    seen, allowed = {}, {}
    for batch in (batch for _ in range(60) for batch in layout(generator)):
        parts = batch.split(4)
        pools = slow_pools(y.tolist(), predicted.tolist(), int(parts[0][0]), int(parts[1][0]))
        for number, (part, pool) in enumerate(zip(parts, pools, strict=True)):
            key = (number, int(y[parts[0][0]]), int(predicted[parts[1][0]]) if number == 3 else None)
            allowed[key] = set(pool)
            seen.setdefault(key, set()).update(part.tolist())
            if len(pool) >= 4:
                assert len(set(part[1 if number == 0 else 0 :].tolist())) == (3 if number == 0 else 4)
    assert seen == allowed
    assert {label for _, label, _ in seen} == {0, 1, 2}  # a slice without an anchor is left out


def test_slices_are_anchors_in_turn_and_each_sample_at_most_once():
    """As many sets of each slice as the smallest has anchors, whatever the shares of the labels (CelebA: .15)."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(1000, generator=generator) < 0.15).long()
    predicted = torch.where(torch.rand(1000, generator=generator) < 0.1, 1 - y, y)
    layout = MODULE.Layout(y, predicted, 4, n_parts=3, sets=2, fraction=1.0)
    batches = layout(torch.Generator().manual_seed(1))
    anchors = torch.cat(batches).view(-1, 12)[:, 0]
    assert y[anchors].view(-1, 2).unique(dim=0).tolist() == [[0, 1]]
    smallest = int(((y == 1) & (predicted == 1)).sum())
    assert len(anchors) == len(set(anchors.tolist())) == 2 * smallest == layout.n_sets
    assert len(batches) == len(layout) == smallest
    other = torch.cat(layout(torch.Generator().manual_seed(2))).view(-1, 12)[:, 0]
    assert set(other[y[other] == 0].tolist()) != set(anchors[y[anchors] == 0].tolist())


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


def test_second_negatives_of_a_class_without_errors_are_its_own():
    """As released: its positives are any of its samples, whose slice is its own."""
    y, predicted = uneven()
    layout = MODULE.Layout(y, predicted, 4, n_parts=4, fraction=1.0)
    second = [batch[12:] for batch in layout(torch.Generator().manual_seed(0)) if y[batch[0]] == 0]
    assert second
    assert all((y[part] == 0).all() for part in second)


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
    layout = MODULE.Layout(y, predicted, 6, n_parts=3, sets=5)
    together = layout(torch.Generator().manual_seed(1))
    assert [len(batch) // 18 for batch in together] == [5, 5, 2]
    assert torch.equal(torch.cat(together), torch.cat(batches))
    assert len(layout) == len(together)


def test_the_official_preset_is_the_readme():
    """Colored MNIST: 32 of each and 32 sets, both sides, 3 epochs of the smallest slice, SGD 0.001."""
    (cell,) = expand(["cnc:preset=official"], ["cmnist"], seeds=1).cells
    found = {name: cell.method_parameters[name] for name in ("n_each", "sets", "temperature", "first_epochs", "epoch")}
    assert found == {"n_each": 32, "sets": 32, "temperature": 0.05, "first_epochs": 5, "epoch": "anchors"}
    assert cell.method_parameters["two_sided"]
    assert cell.method_parameters["anchor_fraction"] == 1
    recipe = {name: cell.recipe[name] for name in ("optimizer", "learning_rate", "weight_decay", "epochs", "schedule")}
    assert recipe == {
        "optimizer": "sgd", "learning_rate": 1e-3, "weight_decay": 1e-4, "epochs": 3, "schedule": "constant",
    }  # fmt: skip
    (cell,) = expand(["cnc:preset=official"], ["celeba"], seeds=1).cells
    assert (cell.method_parameters["anchor_fraction"], cell.method_parameters["n_each"]) == (0.1, 64)


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
