"""GroupDRO: groups of labels and true biases, whose weights grow with their losses."""

import math

import pytest
import torch
from reference import SlowGroups, masses, replay, task_for

from debiasbench.losses import group_dro


@pytest.mark.parametrize("options", [{}, {"groups": "sides", "step_size": 0.2, "adjustment": 2.0}], ids=str)
def test_groupdro_equals_a_loop_over_samples(new_method, way, agree, options):
    """Section 4.10: some groups are in no batch, some in no sample; all are drawn equally often."""
    method = new_method("groupdro", **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    bias = task.splits.train.bias[:, 0]
    group = (task.y != bias).long() if options else 10 * task.y + bias
    drawn = masses(run.options["sample"], group)
    agree("drawn", list(drawn.values()), [1 / len(drawn)] * len(drawn))
    slow = SlowGroups(group, step_size=method.step_size, adjustment=method.adjustment)
    replay(run, slow, way(), agree)


def test_groupdro_without_balanced_sampling_equals_a_loop_over_samples(new_method, way, agree):
    """Each sample once an epoch; the weights of groups that are not in a batch are only renormalised."""
    method = new_method("groupdro", balanced=False, step_size=0.2)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    for epoch in range(3):
        seen = torch.cat([step.batch.index for step in run.steps if step.batch.epoch == epoch])
        assert seen.sort().values.tolist() == list(range(32))
    replay(run, SlowGroups(10 * task.y + task.splits.train.bias[:, 0], step_size=0.2), way(), agree)


def test_a_step_of_groupdro():
    """Trap 31: four groups, losses .2, .5, 1, 3, step size .01."""
    losses = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
    value, q = group_dro(losses, torch.arange(4), torch.full((4,), 0.25, dtype=torch.float64), step_size=0.01)
    assert q.tolist() == pytest.approx([0.247560, 0.248303, 0.249548, 0.254589], abs=1e-6)
    assert float(value) == pytest.approx(1.186979, abs=1e-6)


def test_a_batch_of_groupdro_equals_a_loop(agree):
    """An absent group has loss 0, and its weight is only renormalised; adjustments move the weights alone."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(9, generator=generator, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 2, 2, 0, 3, 3, 3, 0, 2])
    old = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for added in torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5]], dtype=torch.float64):
        value, q = group_dro(losses, group, old, step_size=0.5, adjustment=added)
        members = [[i for i, of in enumerate(group.tolist()) if of == g] for g in range(4)]
        means = [sum(losses[i].item() for i in some) / len(some) if some else 0.0 for some in members]
        grown = [float(old[g]) * math.exp(0.5 * (means[g] + float(added[g]))) for g in range(4)]
        expected = [one / sum(grown) for one in grown]
        agree("q", q, expected)
        agree("loss", value, sum(weight * mean for weight, mean in zip(expected, means, strict=True)))
        (slopes,) = torch.autograd.grad(value, losses)
        agree("gradients", slopes, [expected[g] / len(members[g]) for g in group.tolist()])
