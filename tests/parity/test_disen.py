"""Disen: two encoders, and what belongs to the bias exchanged between samples."""

import pytest
import torch
from reference import SlowWeights, replay, samples_of, slow_ce, slow_gce, task_for


class SlowDisen:
    """Section 4.5: both parts of the loss, sample by sample; the swapped one after a fifth of the steps."""

    def __init__(self, method, y_all):
        self.method, self.weights = method, SlowWeights(y_all, method.smoothing)

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
        value = 0.0
        for at in range(len(y)):
            logits = self.logits(nets, "b", features, at, at)
            gce = slow_gce(logits, y[at], method.alpha, method.gce_form)
            value = value + weight[at] * ce_i[at] + method.bias_factor * gce
            if batch.step > 0.2 * batch.n_steps:
                other = int(batch.perm[at])
                ce = slow_ce(self.logits(nets, "i", features, at, other), y[at])
                logits = self.logits(nets, "b", features, at, other)
                gce = slow_gce(logits, y[other], method.alpha, method.gce_form)
                value = value + method.swap_factor * (weight[at] * ce + method.swap_bias_factor * gce)
        return value / len(y)


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
