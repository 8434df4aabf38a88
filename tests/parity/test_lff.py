"""LfF: two networks that learn together, and the weight that the first one's failures give."""

import pytest
import torch
from reference import SlowWeights, logits_of, replay, samples_of, slow_ce, slow_gce, task_for


def gradient_norm(net, x, y):
    """L2 norm of one sample's cross-entropy gradient for the final layer, by autograd."""
    slopes = torch.autograd.grad(slow_ce(logits_of(net, x), y), list(net.head.parameters()))
    return sum(float(slope.square().sum()) for slope in slopes) ** 0.5


class SlowLfF:
    """Section 4.3: GCE of the biased network, and cross-entropy of the other one weighted by W."""

    def __init__(self, method, y_all):
        self.method, self.weights = method, SlowWeights(y_all, method.smoothing)

    def compared(self, net, x, y):
        if self.method.score == "gradnorm":
            return gradient_norm(net, x, y)
        return slow_ce(logits_of(net, x), y).item()

    def __call__(self, nets, batch):
        samples = samples_of(batch)
        b, d = ([self.compared(nets[name], x, y) for x, y in samples] for name in ("biased", "debiased"))
        weights = self.weights.step(batch.index, b, d)
        value = 0.0
        for weight, (x, y) in zip(weights, samples, strict=True):
            value = value + slow_gce(logits_of(nets["biased"], x), y, self.method.alpha, self.method.gce_form)
            value = value + weight * slow_ce(logits_of(nets["debiased"], x), y)
        return value / len(samples)


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
