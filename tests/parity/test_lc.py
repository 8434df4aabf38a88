"""LC: proxies of a biased network, what they tell of the label, mixing with the other side, and corrected logits."""

import math
import sys

import pytest
import torch
from reference import logits_of, replay, samples_of, slow_ce, slow_gce, task_for

from debiasbench.grid import expand
from debiasbench.methods import registry as methods

LC = sys.modules[methods.get("lc")[0].__module__]


def slow_partner(place, proxies, labels, perm):
    """Once around the ring from a sample, to the first of its label whose proxy is right where its own is not."""
    n = len(labels)
    by_perm = {value: index for index, value in enumerate(perm)}
    for step in range(1, n):
        other = by_perm[(perm[place] + step) % n]
        sides = (proxies[place] == labels[place], proxies[other] == labels[other])
        if labels[other] == labels[place] and sides[0] != sides[1]:
            return other
    return place


class SlowLC:
    """All four steps, sample by sample, with tables as dictionaries."""

    def __init__(self, method, n_steps, n_classes=4):
        self.method, self.n_steps, self.classes = method, n_steps, range(n_classes)
        self.table = {proxy: dict.fromkeys(self.classes, 1 / n_classes) for proxy in self.classes}
        self.n_mixed = 0

    def update(self, proxies, labels):
        for proxy in set(proxies):
            some = [label for one, label in zip(proxies, labels, strict=True) if one == proxy]
            for label, old in self.table[proxy].items():
                kept = self.method.smoothing
                self.table[proxy][label] = kept * old + (1 - kept) * some.count(label) / len(some)

    def __call__(self, nets, batch):
        samples, method = samples_of(batch), self.method
        labels = batch.y.tolist()
        proxies = [int(logits_of(nets["biased"], x).argmax()) for x, _ in samples]
        self.update(proxies, labels)
        ramp = min(1.0, (int(batch.step) + 1) / max(1, method.ramp * self.n_steps))
        value = 0.0
        for place, (x, y) in enumerate(samples):
            other = slow_partner(place, proxies, labels, batch.perm.tolist()) if method.mix else place
            share = float((1 - batch.lam[place]) * ramp) if method.mix else 0.0
            self.n_mixed += other != place and share > 0
            mixed = (1 - share) * x.double() + share * batch.x[other].double() if method.mix else x
            own, its = self.table[proxies[place]], self.table[proxies[other]]
            prior = [(1 - share) * own[label] + share * its[label] for label in self.classes]
            correction = torch.tensor([method.strength * math.log(p + 1e-4) for p in prior], dtype=torch.float64)
            value = value + slow_ce(logits_of(nets["net"], mixed) + correction, y)
            value = value + slow_gce(logits_of(nets["biased"], x), y, method.alpha, method.gce_form)
        return value / len(samples)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "sgd in float32"),
        ({}, "adam in float64"),
        ({"mix": False, "strength": 0.5, "gce_form": "official"}, "adam in float64"),
        ({"ramp": 0.0, "smoothing": 0.9, "alpha": 0.4}, "sgd in float32"),
    ],
    indirect=["way"],
)
def test_lc_equals_a_loop_over_samples(new_method, way, agree, options):
    """Both networks, the table, the partners and the ramp, over twelve steps."""
    method = new_method("lc", **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    slow = SlowLC(method, len(run.steps))
    nets = replay(run, slow, way(), agree)
    assert bool(slow.n_mixed) == method.mix
    spread = [abs(p - 0.25) for row in slow.table.values() for p in row.values()]
    assert max(spread) > 0.1
    wrong = [int(logits_of(nets["biased"], x).argmax()) != y for x, y in zip(task.x / 255, task.y, strict=True)]
    assert task.journal.columns["selected"].tolist() == wrong


def test_a_partner_has_the_label_and_is_on_the_other_side():
    """By hand: two labels, proxies right or wrong; who has nobody keeps its place; the permutation decides."""
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    proxy = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 1])).float()
    found = LC.other_side(proxy, y, torch.arange(6)).tolist()
    assert found == [2, 2, 0, 0, 4, 5]  # of each the next one, in a ring
    found = LC.other_side(proxy, y, torch.tensor([5, 4, 3, 0, 1, 2])).tolist()
    assert found == [3, 3, 1, 1, 4, 5]


def test_the_table_is_a_moving_average_of_what_labels_a_proxy_has(new_method):
    """Half of the old row, half of the batch's; a proxy that is not in the batch keeps its row."""
    table = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    proxy = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 2]), 3).float()
    found = new_method("lc").updated(table, proxy, torch.tensor([0, 1, 1, 2, 1]))
    torch.testing.assert_close(found, torch.tensor([[0.625, 0.25, 0.125], [0.2, 0.5, 0.3], [0.0, 0.5, 0.5]]))


def test_what_the_biased_network_learns_does_not_depend_on_the_correction(new_method, make_task):
    """Its gradients are those of GCE alone."""
    weights = []
    for strength in (0.0, 1.0, 3.0):
        task = make_task(new_method("lc", strength=strength))
        task.method.fit(task)
        biased, debiased = task.all_nets()
        weights.append((biased.head.weight.detach(), debiased.head.weight.detach()))
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][1], weights[1][1])


def test_lc_on_texts_does_not_mix(new_method):
    (cell,) = expand(["lc"], ["civilcomments"], seeds=1).cells
    assert cell.method_parameters["mix"] is False
    grid = expand(["lc:mix=true"], ["civilcomments"], seeds=1)
    assert [skip.reason for skip in grid.skips] == ["token numbers cannot be mixed: give lc:mix=false"]
    assert not grid.cells
