"""LLR, AFR and SELF: what is held out, how it weighs, and the last layer that goes on with it."""

import copy
import math

import pytest
import torch
from reference import SGD, after_epoch, images, logits_of, plain_loss, replay, slow_ce, small_splits, task_for

from debiasbench.errors import BenchmarkError

SHORT = {"steps": 40, "learning_rate": 0.5, "penalty": 0.01, "held_out": 0.5}


def slow_balance(some, y):
    """The same for each class, in all 1."""
    labels = [y[sample] for sample in some]
    return {sample: 1 / labels.count(y[sample]) / len(set(labels)) for sample in some}


def slow_head(net, samples, weight, method):
    """Gradient descent on the last layer, by autograd, over single samples, with clipping written out."""
    features = {sample: net.features(samples[sample][0][None])[0] for sample in weight}
    head = copy.deepcopy(net.head).requires_grad_()
    first = [parameter.detach().clone() for parameter in head.parameters()]
    for _ in range(method.steps):
        value = sum(w * slow_ce(head(features[sample]), samples[sample][1]) for sample, w in weight.items())
        for parameter, start in zip(head.parameters(), first, strict=True):
            value = value + method.penalty * ((parameter - start) ** 2).sum()
        slopes = torch.autograd.grad(value, list(head.parameters()))
        length = sum(float((slope**2).sum()) for slope in slopes) ** 0.5
        with torch.no_grad():
            for parameter, slope in zip(head.parameters(), slopes, strict=True):
                parameter -= method.learning_rate * slope * min(1.0, 1.0 / length)
    return head


def held_out(task, run):
    """The samples that no step has seen; every other one came once an epoch."""
    seen = [sample for step in run.steps for sample in step.batch.index.tolist()]
    assert {seen.count(sample) for sample in seen} == {len({int(step.batch.epoch) for step in run.steps})}
    held = [sample for sample in range(task.n_samples) if sample not in seen]
    y = task.y.tolist()
    for label in set(y):
        assert [y[sample] for sample in held].count(label) == round(0.5 * y.count(label))
    return held


@pytest.mark.parametrize(
    ("name", "options", "way"),
    [
        ("llr", {}, "sgd in float32"),
        ("llr", {}, "adam in float64"),
        ("afr", {"gamma": 3.0}, "sgd in float32"),
        ("afr", {"gamma": 3.0}, "adam in float64"),
        ("self", {"points": 19, "early": 0.3}, "sgd in float32"),
        ("self", {"points": 9, "early": 0.3}, "adam in float64"),
    ],
    indirect=["way"],
)
def test_last_layers_equal_a_loop_over_samples(new_method, way, agree, name, options):
    """The stage, the weights of the held-out samples, and the steps of the last layer."""
    method = new_method(name, **SHORT, **options)
    task = task_for(method, way, splits=small_splits(48))
    net = method.fit(task)
    (run,) = task.runs
    held = held_out(task, run)
    trained = replay(run, plain_loss, way(), agree)["net"].requires_grad_(False)
    samples, y = [(x.double(), label) for x, label in images(task)], task.y.tolist()
    if name == "llr":
        weight = slow_balance(held, y)
    elif name == "afr":
        p_y = {sample: float((-slow_ce(logits_of(trained, samples[sample][0]), y[sample])).exp()) for sample in held}
        shares = slow_balance(held, y)
        raw = {sample: shares[sample] * math.exp(-3.0 * p_y[sample]) for sample in held}
        weight = {sample: value / sum(raw.values()) for sample, value in raw.items()}
    else:
        early = after_epoch(run, 0)["net"].requires_grad_(False)  # a third of three epochs
        apart, other_way = {}, {}
        for sample in held:
            before, after = (logits_of(one, samples[sample][0]).softmax(0) for one in (early, trained))
            apart[sample] = float(sum(q * (q / p).log() for p, q in zip(before, after, strict=True)))
            other_way[sample] = float(sum(p * (p / q).log() for p, q in zip(before, after, strict=True)))
        chosen = sorted(apart, key=apart.get)[-method.points :]
        assert set(chosen) != set(sorted(other_way, key=other_way.get)[-method.points :])
        assert task.journal.columns["selected"].nonzero()[:, 0].tolist() == sorted(chosen)
        weight = slow_balance(chosen, y)
    found = task.journal.columns["score"]
    assert found.nonzero()[:, 0].tolist() == sorted(weight)
    agree("weights of samples", found[sorted(weight)], [weight[sample] for sample in sorted(weight)])
    slow = slow_head(trained, samples, weight, method)
    first = [run.end[-2].double(), run.end[-1].double()]
    moves = [
        [parameter.double() - before for parameter, before in zip(one.parameters(), first, strict=True)]
        for one in (net.head, slow)
    ]
    agree("last layer", moves[0], moves[1])
    assert not any(torch.equal(one, torch.zeros_like(one)) for one in moves[0])


def test_afr_with_gamma_0_is_llr(new_method, in_float64):
    """And with a large one, the samples of which the network is least sure have all the weight, and none is nan."""
    columns = {}
    for name, options in {"llr": {}, "afr": {"gamma": 0.0}, "extreme": {"gamma": 1e6}}.items():
        method = new_method("llr" if name == "llr" else "afr", **SHORT, **options)
        task = task_for(method, SGD)
        method.fit(task)
        columns[name] = task.journal.columns["score"]
    assert torch.allclose(columns["afr"], columns["llr"], rtol=1e-12, atol=0)
    assert float(columns["extreme"].max()) == pytest.approx(1)
    assert float(columns["extreme"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("early", [0.9, 1.0])
def test_self_needs_an_earlier_epoch(new_method, early):
    method = new_method("self", early=early)
    with pytest.raises(BenchmarkError, match=r"Of 3 epochs here 3 are early \(early="):
        method.fit(task_for(method, SGD))


@pytest.mark.parametrize("name", ["llr", "afr", "self"])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_something_is_held_out_and_something_is_left(new_method, name, fraction):
    with pytest.raises(BenchmarkError, match=f"'held_out' parameter of {name} must be above 0 and below 1"):
        new_method(name, held_out=fraction)


def test_too_few_samples_to_hold_out(new_method):
    method = new_method("llr", held_out=0.001)
    with pytest.raises(BenchmarkError, match="holds out no sample: raise held_out"):
        method.fit(task_for(method, SGD))


def test_no_bias_label_is_declared(new_method):
    """The authors' choice by group-labelled validation is no part of them."""
    for name in ("llr", "afr", "self"):
        method = new_method(name)
        assert not any([method.needs_bias_labels, method.trains_on_validation, method.selects_on_validation])
