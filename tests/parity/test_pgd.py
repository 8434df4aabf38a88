"""PGD: the biased network's GCE, the scores of its last layer's gradients, and training by them."""

import math
from types import SimpleNamespace

import pytest
import torch
from reference import (
    SGD,
    after_epoch,
    gce_loss,
    images,
    logits_of,
    plain_loss,
    replay,
    samples_of,
    slow_ce,
    task_for,
)


def slow_norm(net, x, y, order, *, bias):
    """The norm of all entries of one sample's cross-entropy gradient for the last layer, by autograd."""
    layer = [net.head.weight, net.head.bias] if bias else [net.head.weight]
    slopes = torch.autograd.grad(slow_ce(logits_of(net, x), y), layer)
    entries = [abs(entry) for slope in slopes for entry in slope.flatten().tolist()]
    return max(entries) if order == math.inf else sum(entry**order for entry in entries) ** (1 / order)


def slow_score(net, x, y, score):
    """What PGD can score by besides the gradient, from p."""
    logits = logits_of(net, x).tolist()
    p = [math.exp(one - max(logits)) for one in logits]
    p = [one / sum(p) for one in p]
    return {
        "loss": -math.log(p[y]),
        "error": float(p.index(max(p)) != y),
        "el2n": math.sqrt(sum((value - (label == y)) ** 2 for label, value in enumerate(p))),
        "eiil": sum(value * one for value, one in zip(p, logits, strict=True)) - logits[y],
        "disagreement": 1 - p[y],
    }[score]


NORMS = {
    "l2": ({}, lambda net, x, y: slow_norm(net, x, y, 2, bias=True)),
    "l1": ({"norm": "l1"}, lambda net, x, y: slow_norm(net, x, y, 1, bias=True)),
    "linf": ({"norm": "linf"}, lambda net, x, y: slow_norm(net, x, y, math.inf, bias=True)),
    "l2sq": ({"norm": "l2sq"}, lambda net, x, y: slow_norm(net, x, y, 2, bias=True) ** 2),
    "as released": (
        {"norm": "lp", "order": 0.7, "score_bias": False, "gce_form": "official"},
        lambda net, x, y: slow_norm(net, x, y, 0.7, bias=False),
    ),
}


@pytest.mark.parametrize(
    ("norm", "way"),
    [
        *[(norm, "sgd in float32") for norm in NORMS],
        *[(norm, "adam in float64") for norm in ("l2", "as released")],
    ],
    indirect=["way"],
)
def test_pgd_equals_a_loop_over_samples(new_method, way, agree, norm):
    """Section 4.2: GCE, one backward pass a sample, and cross-entropy on what is drawn, by a fresh optimiser."""
    options, slow = NORMS[norm]
    method = new_method("pgd", **options)
    task = task_for(method, way)
    method.fit(task)
    biased, debiased = task.runs
    net = replay(biased, gce_loss(0.7, method.gce_form), way(), agree)["net"]
    scores = [slow(net, x, y) for x, y in images(task)]
    agree("scores", task.journal.columns["score"], scores)
    agree("h", debiased.options["sample"], [score / sum(scores) for score in scores])
    agree("inherited weights", list(debiased.start.parameters()), biased.end)
    replay(debiased, plain_loss, way(), agree)


@pytest.mark.parametrize("way", ["sgd in float32"], indirect=True)
@pytest.mark.parametrize("score", ["loss", "error", "el2n", "eiil", "disagreement"])
def test_other_scores_of_pgd_equal_a_loop_over_samples(new_method, way, agree, score):
    """Table 10 of the paper, three scores of ours, and DPR's: sample by sample, from p."""
    method = new_method("pgd", score=score)
    task = task_for(method, way)
    method.fit(task)
    net = replay(task.runs[0], gce_loss(0.7, "paper"), way(), agree)["net"]
    expected = [max(slow_score(net, x, y, score), 1e-8) for x, y in images(task)]
    agree("scores", task.journal.columns["score"], expected)
    agree("h", task.runs[1].options["sample"], [value / sum(expected) for value in expected])


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_dpr_divides_logits_by_its_temperature(new_method, agree, tau):
    """The score is 1 - p_y at that temperature, of clean images in eval mode."""
    method = new_method("pgd", score="disagreement", tau=tau)
    task = task_for(method, SGD)
    method.fit(task)
    net = after_epoch(task.runs[0], 2)["net"]
    expected = []
    for x, y in images(task):
        p = [math.exp(one / tau) for one in logits_of(net, x).tolist()]
        expected.append(1 - p[y] / sum(p))
    agree("scores", task.journal.columns["score"], expected)


def test_of_two_classes_el2n_is_dpr_times_the_root_of_two(new_method):
    """The length of p - e_y is that of (1 - p_y, -(1 - p_y)); also where p_y is nearly 1."""
    logits = torch.tensor([[0.3, -1.2], [12.0, -3.0], [-2.0, 0.5]], dtype=torch.float64)
    net = SimpleNamespace(features=lambda x: x, head=lambda features: features)
    y = torch.tensor([0, 0, 0])
    el2n, dpr = (new_method("pgd", score=name).scores(net, logits, y) for name in ("el2n", "disagreement"))
    torch.testing.assert_close(el2n, math.sqrt(2) * dpr, rtol=1e-9, atol=0)


def test_pgd_by_weights_equals_a_loop_over_samples(new_method, way, agree):
    """Table 9: each sample once an epoch, weighted by N h."""
    method = new_method("pgd", use="reweight")
    task = task_for(method, way)
    method.fit(task)
    net = replay(task.runs[0], gce_loss(0.7, "paper"), way(), agree)["net"]
    scores = [slow_norm(net, x, y, 2, bias=True) for x, y in images(task)]

    def weighted(nets, batch):
        value = 0.0
        for sample, (x, y) in zip(batch.index.tolist(), samples_of(batch), strict=True):
            value = value + 32 * scores[sample] / sum(scores) * slow_ce(logits_of(nets["net"], x), y)
        return value / len(batch.y)

    replay(task.runs[1], weighted, way(), agree)


def test_pgd_in_a_single_stage_equals_a_loop_over_samples(new_method, way, agree):
    """Table 8: in each epoch the biased network learns, all samples are scored, and the other network learns."""
    method = new_method("pgd", use="single-stage")
    task = task_for(method, way)
    method.fit(task)
    biased, debiased = task.runs
    replay(biased, gce_loss(0.7, "paper"), way(), agree)
    for epoch, sample in enumerate(debiased.samples):
        net = after_epoch(biased, epoch)["net"]
        scores = [slow_norm(net, x, y, 2, bias=True) for x, y in images(task)]
        agree("h", sample, [score / sum(scores) for score in scores])
    replay(debiased, plain_loss, way(), agree)


def test_pgd_by_copies_equals_a_loop_over_samples(new_method):
    """N h of each sample, rounded, and none left out."""
    method = new_method("pgd", use="upsample")
    task = task_for(method, SGD, epochs=12)
    method.fit(task)
    scores = task.journal.columns["score"].tolist()
    expected = [max(1, round(32 * score / sum(scores))) for score in scores]
    seen = [index for step in task.runs[1].steps if step.batch.epoch == 0 for index in step.batch.index.tolist()]
    assert [seen.count(sample) for sample in range(32)] == expected
    assert max(expected) > 1
