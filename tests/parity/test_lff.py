"""LfF: two networks that learn together, and the weight that the first one's failures give."""

import pytest
import torch
from reference import (
    ADAM,
    SGD,
    SlowWeights,
    gce_loss,
    images,
    logits_of,
    replay,
    samples_of,
    slow_ce,
    slow_gce,
    sure_of,
    task_for,
)

from debiasbench import ensembles


def gradient_norm(net, x, y):
    """L2 norm of one sample's cross-entropy gradient for the final layer, by autograd."""
    slopes = torch.autograd.grad(slow_ce(logits_of(net, x), y), list(net.head.parameters()))
    return sum(float(slope.square().sum()) for slope in slopes) ** 0.5


class SlowLfF:
    """Section 4.3: GCE of the biased network, and cross-entropy of the other one weighted by W."""

    def __init__(self, method, y_all, kept=None):
        self.method, self.weights, self.kept = method, SlowWeights(y_all, method.smoothing), kept

    def compared(self, net, x, y):
        if self.method.score == "gradnorm":
            return gradient_norm(net, x, y)
        return slow_ce(logits_of(net, x), y).item()

    def __call__(self, nets, batch):
        samples = samples_of(batch)
        b, d = ([self.compared(nets[name], x, y) for x, y in samples] for name in ("biased", "debiased"))
        weights = self.weights.step(batch.index, b, d)
        value = sum(w * slow_ce(logits_of(nets["debiased"], x), y) for w, (x, y) in zip(weights, samples, strict=True))
        return value / len(samples) + self.of_the_biased(nets["biased"], batch, samples)

    def of_the_biased(self, net, batch, samples):
        if self.kept is None:
            losses = [slow_gce(logits_of(net, x), y, self.method.alpha, self.method.gce_form) for x, y in samples]
        else:
            there = [self.kept[sample] for sample in batch.index.tolist()]
            losses = [slow_ce(logits_of(net, x), y) for (x, y), kept in zip(samples, there, strict=True) if kept]
        return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "sgd in float32"),
        ({}, "adam in float64"),
        ({"gce_form": "paper", "alpha": 0.4, "smoothing": 0.9}, "sgd in float32"),
        ({"score": "gradnorm"}, "adam in float64"),
    ],
    indirect=["way"],
)
def test_lff_equals_a_loop_over_samples(new_method, way, agree, options):
    """Section 4.3 and traps 18 to 20, also with gradient norms in W (Table 10 of the PGD paper)."""
    method = new_method("lff", **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    slow = SlowLfF(method, task.y)
    replay(run, slow, way(), agree)
    expected = [slow.weights.weight(sample) for sample in range(task.n_samples)]
    agree("W", task.journal.columns["score"], expected)
    assert max(expected) - min(expected) > 0.03


@pytest.mark.parametrize(("steps", "limit", "way"), [(60, 0.88, SGD), (40, 0.9, ADAM)])
def test_lff_with_an_ensemble_equals_a_loop_over_samples(new_method, in_float64, agree, monkeypatch, way, steps, limit):
    """BiasEnsemble: three networks vote, and the biased one learns by cross-entropy from what most are sure of."""
    assert ensembles.SURE == 0.99
    monkeypatch.setattr(ensembles, "SURE", limit)  # what few steps on few samples reach
    method = new_method("lff", ensemble=3, ensemble_steps=steps)
    task = task_for(method, way, schedule="step", milestones=(0.5,))
    method.fit(task)
    *voting, run = task.runs
    assert [len(one.steps) for one in voting] == [steps] * 3
    nets = [replay(one, gce_loss(0.7, "official"), way(), agree)["net"] for one in voting]  # at a constant rate
    kept = sure_of(nets, images(task), limit)
    assert task.journal.columns["selected"].tolist() == [not one for one in kept]
    assert 3 < sum(kept) < 29
    assert kept != sure_of(nets[:1], images(task), limit)  # it takes most of them
    slow, rate = SlowLfF(method, task.y, kept), way().rate
    replay(run, slow, way(), agree, rate=[rate, rate, 0.1 * rate])
    expected = [slow.weights.weight(sample) for sample in range(task.n_samples)]
    agree("W", task.journal.columns["score"], expected)
