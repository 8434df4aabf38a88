"""Disen: two encoders, and what belongs to the bias exchanged between samples."""

import pytest
import torch
from reference import ADAM, SGD, SlowWeights, gce_loss, images, replay, samples_of, slow_ce, slow_gce, sure_of, task_for

from debiasbench import ensembles


class SlowDisen:
    """Section 4.5: both parts of the loss, sample by sample; the swapped one after a fifth of the steps."""

    def __init__(self, method, y_all, kept=None):
        self.method, self.weights, self.kept = method, SlowWeights(y_all, method.smoothing), kept

    def logits(self, nets, head, features, here, other):
        """Of one head: z_i of the sample `here` beside z_b of `other`; only the head's own part learns."""
        own_i, own_b = features[here][0], features[other][1]
        pair = [own_i, own_b.detach()] if head == "i" else [own_i.detach(), own_b]
        return nets[f"head_{head}"](torch.cat(pair))

    def __call__(self, nets, batch):
        method, y = self.method, batch.y.tolist()
        features = [
            (nets["encoder_i"].features(x[None])[0], nets["encoder_b"].features(x[None])[0])
            for x, _ in samples_of(batch)
        ]
        ce_i = [slow_ce(self.logits(nets, "i", features, at, at), y[at]) for at in range(len(y))]
        ce_b = [slow_ce(self.logits(nets, "b", features, at, at), y[at]).item() for at in range(len(y))]
        weight = self.weights.step(batch.index, ce_b, [value.item() for value in ce_i])
        value, places = 0.0, list(range(len(y)))
        for at in places:
            value = value + weight[at] * ce_i[at] / len(y)
            if batch.step > 0.2 * batch.n_steps:
                ce = slow_ce(self.logits(nets, "i", features, at, int(batch.perm[at])), y[at])
                value = value + method.swap_factor * weight[at] * ce / len(y)
        value = value + method.bias_factor * self.of_the_bias(nets, batch, features, places)
        if batch.step > 0.2 * batch.n_steps:
            swapped = self.of_the_bias(nets, batch, features, batch.perm.tolist())
            value = value + method.swap_factor * method.swap_bias_factor * swapped
        return value

    def of_the_bias(self, nets, batch, features, others):
        """Of the bias head, on z_i of each sample beside z_b of another one, whose label and side count."""
        losses = []
        for at, other in enumerate(others):
            logits, y = self.logits(nets, "b", features, at, other), int(batch.y[other])
            if self.kept is None:
                losses.append(slow_gce(logits, y, self.method.alpha, self.method.gce_form))
            elif self.kept[int(batch.index[other])]:
                losses.append(slow_ce(logits, y))
        return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"bias_factor": 3.0, "swap_bias_factor": 2.0, "swap_factor": 0.5}, "sgd in float32"),
        ({"gce_form": "paper", "alpha": 0.4, "smoothing": 0.9}, "adam in float64"),
    ],
    indirect=["way"],
)
def test_disen_equals_a_loop_over_samples(new_method, way, agree, options):
    """Section 4.5 and traps 18 to 20, 23 and 24: the swapped part begins with the fourth of twelve steps."""
    method = new_method("disen", **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    slow = SlowDisen(method, task.y)
    nets = replay(run, slow, way(), agree)
    expected = [slow.weights.weight(sample) for sample in range(task.n_samples)]
    agree("W", task.journal.columns["score"], expected)
    x = task.splits.test.x.to(torch.float32) / 255
    pairs = [torch.cat([nets[name].features(one[None])[0] for name in ("encoder_i", "encoder_b")]) for one in x]
    agree("logits", task.final_predictor()(x), [nets["head_i"](pair) for pair in pairs])


@pytest.mark.parametrize(("steps", "limit", "way"), [(60, 0.88, SGD), (40, 0.9, ADAM)])
def test_disen_with_an_ensemble_equals_a_loop_over_samples(
    new_method, in_float64, agree, monkeypatch, way, steps, limit
):
    """BiasEnsemble: the bias head learns from what is kept, and in the swapped part from whose z_b is kept."""
    monkeypatch.setattr(ensembles, "SURE", limit)  # what few steps on few samples reach
    factors = {"bias_factor": 3.0, "swap_bias_factor": 2.0, "swap_factor": 0.5}
    method = new_method("disen", ensemble=3, ensemble_steps=steps, **factors)
    task = task_for(method, way)
    method.fit(task)
    *voting, run = task.runs
    nets = [replay(one, gce_loss(0.7, "official"), way(), agree)["net"] for one in voting]
    kept = sure_of(nets, images(task), limit)
    assert task.journal.columns["selected"].tolist() == [not one for one in kept]
    assert 3 < sum(kept) < 29
    slow = SlowDisen(method, task.y, kept)
    replay(run, slow, way(), agree)
    agree("W", task.journal.columns["score"], [slow.weights.weight(sample) for sample in range(task.n_samples)])
