"""CNC: sets by what a first network gets right and wrong, and the contrast within them."""

import math

import pytest
import torch
from reference import images, logits_of, plain_loss, replay, samples_of, slow_ce, task_for

from debiasbench.methods import registry as methods

MODULE = __import__(methods.get("cnc")[0].__module__, fromlist=["Layout"])


# ---- the whole method -----------------------------------------------------------------------------------------------


def slow_contrast(anchor, positives, negatives, temperature):
    """-mean over positives of log(e^s / sum of all e^s), with cosine similarities: of one anchor."""

    def similarity(other):
        return (anchor @ other) / (anchor.norm() * other.norm()) / temperature

    everything = sum(similarity(other).exp() for other in [*positives, *negatives])
    return sum(-(similarity(one).exp() / everything).log() for one in positives) / len(positives)


class SlowCNC:
    """Section 4.6: set by set, the contrast of its first anchor, then (two sides) of its first positive."""

    def __init__(self, n_each, n_parts, temperature, weight):
        self.n_each, self.n_parts, self.temperature, self.weight = n_each, n_parts, temperature, weight

    def __call__(self, nets, batch):
        net, samples = nets["net"], samples_of(batch)
        features = [net.features(x[None])[0] for x, _ in samples]
        ce = sum(slow_ce(logits_of(net, x), y) for x, y in samples) / len(samples)
        n, contrasts = self.n_each, []
        for first in range(0, len(samples), n * self.n_parts):
            parts = [features[first + n * part : first + n * (part + 1)] for part in range(self.n_parts)]
            contrast = slow_contrast(parts[0][0], parts[1], parts[2], self.temperature)
            if self.n_parts == 4:
                contrast = contrast + slow_contrast(parts[1][0], parts[0], parts[3], self.temperature)
            contrasts.append(contrast)
        return self.weight * sum(contrasts) / len(contrasts) + (1 - self.weight) * ce


@pytest.mark.parametrize("options", [{}, {"two_sided": True, "temperature": 0.5, "contrastive_weight": 0.4}], ids=str)
def test_cnc_equals_a_loop_over_samples(new_method, way, agree, options):
    """Section 4.6 and traps 25 and 26: the first network, its sets, and the loss on two sets a step."""
    method = new_method("cnc", n_each=2, sets=2, first_epochs=1, **options)
    task = task_for(method, way)
    method.fit(task)
    first, run = task.runs
    net = replay(first, plain_loss, way(), agree)["net"]
    predicted = [int(logits_of(net, x).argmax()) for x, _ in images(task)]
    y, n_parts = task.y.tolist(), 4 if options else 3
    assert task.journal.columns["selected"].tolist() == [one != other for one, other in zip(predicted, y, strict=True)]
    for step in run.steps:
        for one in step.batch.index.split(2 * n_parts):
            pools = slow_pools(y, predicted, int(one[0]), int(one[2]))
            for part, pool in zip(one.split(2), pools, strict=False):
                assert set(part.tolist()) <= set(pool)
    replay(run, SlowCNC(2, n_parts, method.temperature, method.contrastive_weight), way(), agree)


# ---- sets -----------------------------------------------------------------------------------------------------------


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


def test_second_negatives_of_a_class_without_errors_are_its_own():
    """As released: its positives are any of its samples, whose slice is its own."""
    y, predicted = uneven()
    layout = MODULE.Layout(y, predicted, 4, n_parts=4, fraction=1.0)
    second = [batch[12:] for batch in layout(torch.Generator().manual_seed(0)) if y[batch[0]] == 0]
    assert second
    assert all((y[part] == 0).all() for part in second)


def test_equal_similarities():
    """Trap 25: 64 positives and 64 negatives, all alike: log 128 = 4.852."""
    vector = torch.nn.functional.normalize(torch.ones(5), dim=0)
    same = vector.expand(1, 64, 5)
    assert float(MODULE.contrastive(vector[None], same, same, 0.05)) == pytest.approx(math.log(128), abs=1e-4)


def test_the_sign_of_the_contrast(agree):
    """Trap 26: never below 0, and lower when a positive moves towards the anchor."""
    generator = torch.Generator().manual_seed(0)
    anchor, positives, negatives = (
        torch.nn.functional.normalize(torch.randn(n, 4, generator=generator, dtype=torch.float64), dim=1)
        for n in (1, 3, 5)
    )
    found = MODULE.contrastive(anchor, positives[None], negatives[None], 0.5)
    agree("contrast", found, slow_contrast(anchor[0], positives, negatives, 0.5))
    assert found > 0
    positives[0] = torch.nn.functional.normalize(positives[0] + 2 * anchor[0], dim=0)
    assert MODULE.contrastive(anchor, positives[None], negatives[None], 0.5) < found
