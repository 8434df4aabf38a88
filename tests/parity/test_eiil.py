"""EIIL: the environments that violate a reference network's invariance most, and what trains with them."""

import math

import pytest
import torch
import torch.nn.functional as F
from reference import ADAM, SlowGroups, images, logits_of, masses, plain_loss, replay, samples_of, slow_ce, task_for

from debiasbench.losses import scale_gradient

SHORT = {"ei_steps": 30, "ei_learning_rate": 0.2}


def slow_scale_gradient(logits, y):
    """The derivative of one sample's cross-entropy for a factor on its logits, by autograd."""
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(slow_ce(factor * logits.detach(), y), factor)
    return float(slope)


def slow_environments(g, start, *, steps, rate, times):
    """Adam, written out, upwards on both environments' squared mean g, halved; its gradient by autograd."""
    u, adam = start.clone().requires_grad_(), ADAM(rate, 0.0)
    for _ in range(steps):
        first, second = 0.0, 0.0
        for one, value in zip(u, g, strict=True):
            weight = 1 / (1 + (-one).exp())
            first, second = first + weight * value / len(g), second + (1 - weight) * value / len(g)
        (slope,) = torch.autograd.grad(times * (first**2 + second**2) / 2, u)
        adam.step([u], [-slope])
    return [1 / (1 + math.exp(-one)) for one in u.tolist()]


@pytest.mark.parametrize(
    ("scale_by_n", "way"), [(True, "sgd in float32"), (False, "adam in float64")], indirect=["way"]
)
def test_eiil_equals_a_loop_over_samples(new_method, way, agree, scale_by_n):
    """Section 4.7: the reference network, g, environments by Adam from the same start, and GroupDRO."""
    method = new_method("eiil", scale_by_n=scale_by_n, step_size=0.1, **SHORT)
    task = task_for(method, way)
    method.fit(task)
    first, second = task.runs
    net = replay(first, plain_loss, way(), agree)["net"]
    g = [slow_scale_gradient(logits_of(net, x), y) for x, y in images(task)]
    agree("g", task.passes[0], g)
    (work,) = task.work
    start = torch.randn(len(g), generator=work.generator, dtype=torch.float64)
    weight = slow_environments(g, start, steps=30, rate=0.2, times=len(g) if scale_by_n else 1)
    agree("environments", work.result[0], weight)
    side = [one > 0.5 for one in weight]
    means = [sum(v for v, on in zip(g, side, strict=True) if on is of) / side.count(of) for of in (False, True)]
    hard = torch.tensor([on is (means[1] > means[0]) for on in side])
    assert torch.equal(task.journal.columns["selected"], hard)
    group = 2 * task.y + hard
    drawn = masses(second.options["sample"], group)
    agree("drawn", list(drawn.values()), [1 / len(drawn)] * len(drawn))
    replay(second, SlowGroups(group, step_size=0.1), way(), agree)


class SlowIRM:
    """IRMv1: the environments' risks, their penalties by autograd, and L2, all divided by the penalty's weight."""

    def __init__(self, hard, *, penalty_weight, l2):
        self.hard, self.penalty_weight, self.l2 = hard.tolist(), penalty_weight, l2

    def __call__(self, nets, batch):
        samples = list(zip(batch.index.tolist(), samples_of(batch), strict=True))
        risks, penalties = [], []
        for side in (False, True):
            members = [(x, y) for sample, (x, y) in samples if self.hard[sample] is side]
            if not members:
                continue
            factor = torch.ones((), requires_grad=True, dtype=torch.float64)
            risk = sum(slow_ce(factor * logits_of(nets["net"], x), y) for x, y in members) / len(members)
            (slope,) = torch.autograd.grad(risk, factor, create_graph=True)
            risks.append(risk)
            penalties.append(slope**2)
        weight = 1.0 if batch.step < 0.38 * batch.n_steps else self.penalty_weight
        size = sum((parameter**2).sum() for parameter in nets.parameters())
        value = sum(risks) / len(risks) + weight * sum(penalties) / len(penalties) + self.l2 * size
        return value / weight


def test_eiil_with_irm_equals_a_loop_over_samples(new_method, in_float64, agree):
    """As its authors train: Adam of its own, L2 inside of what is divided; many batches lack an environment."""
    method = new_method("eiil", backend="irm", penalty_weight=50.0, irm_learning_rate=0.02, irm_l2=0.3, **SHORT)
    task = task_for(method, ADAM, batch_size=4, clip_norm=1e-3, weight_decay=0.1)
    method.fit(task)
    run = task.runs[1]
    hard = task.journal.columns["selected"]
    drawn = masses(run.options["sample"], hard)
    agree("drawn", list(drawn.values()), [0.5, 0.5])
    replay(run, SlowIRM(hard, penalty_weight=50.0, l2=0.3), ADAM(0.02, 0.0), agree)
    assert any(hard[step.batch.index].unique().numel() == 1 for step in run.steps)


def test_the_gradient_for_a_factor_on_the_logits():
    """Trap 27: f = (2, 0) gives -0.238406 for y = 0 and 1.761594 for y = 1."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    assert scale_gradient(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-0.238406, 1.761594], abs=1e-6)
    sure = torch.tensor([[20.0, 0.0]])  # float32: the two terms agree in all their digits
    assert float(scale_gradient(sure, torch.tensor([0]))[0]) == pytest.approx(-20 * math.exp(-20), rel=1e-5)


def test_the_gradient_equals_autograd(agree):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (7,), generator=generator)
    expected = [slow_scale_gradient(logits[row], int(y[row])) for row in range(7)]
    agree("g", scale_gradient(logits, y), expected)
    for row in range(7):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(F.cross_entropy(scale * logits[row], y[row]), scale)
        agree("g", expected[row], slope)
