"""BAM: a network beside which each sample's own vector is learnt, its error set, and training on more copies of it."""

import pytest
import torch
from reference import SGD, images, logits_of, plain_loss, replay, samples_of, slow_ce, task_for

from debiasbench.datasets import registry as datasets


@pytest.mark.parametrize("options", [{"mu": 3}, {"mu": 4, "T": 2, "amplification": 5.0}], ids=str)
def test_bam_equals_a_loop_over_samples(new_method, way, agree, options):
    """The vectors are steps of the optimiser like all else; errors are those of the network alone, which goes on."""
    method = new_method("bam", **options)
    task = task_for(method, way)
    method.fit(task)
    first, second = task.runs

    def amplified(nets, batch):
        value = 0.0
        for sample, (x, y) in zip(batch.index.tolist(), samples_of(batch), strict=True):
            value = value + slow_ce(logits_of(nets["net"], x) + method.amplification * nets["memory"].value[sample], y)
        return value / len(batch.y)

    nets = replay(first, amplified, way(), agree)
    assert {int(step.batch.epoch) for step in first.steps} == set(range(options.get("T", 3)))
    wrong = [int(logits_of(nets["net"], x).argmax()) != y for x, y in images(task)]
    assert task.journal.columns["selected"].tolist() == wrong
    assert 3 < sum(wrong) < 29
    for epoch in range(3):
        seen = torch.cat([step.batch.index for step in second.steps if step.batch.epoch == epoch]).tolist()
        assert [seen.count(sample) for sample in range(32)] == [options["mu"] if error else 1 for error in wrong]
    agree("inherited weights", list(second.start.parameters()), list(nets["net"].parameters()))
    replay(second, plain_loss, way(), agree)


def test_what_is_memorised_is_not_learnt(new_method):
    """With more amplification the network itself gets more of the training samples wrong."""
    wrong = []
    for amplification in (0.0, 5.0, 10.0):
        method = new_method("bam", mu=2, amplification=amplification)
        task = task_for(method, SGD, epochs=5)
        method.fit(task)
        wrong.append(int(task.journal.columns["selected"].sum()))
    assert wrong[0] < wrong[1] < wrong[2]


@pytest.mark.parametrize(("ratio", "mu"), [(0.1, 10), (0.25, 4), (0.3, 3)])
def test_mu_is_one_over_the_ratio(new_method, make_task, ratio, mu):
    """A dataset whose ratio is 0 or unknown is declined, unless mu is given."""
    task = make_task(new_method("bam"), rho=ratio)
    seen = []
    train = task.train
    task.train = lambda *given, **options: (seen.append(options["sample"]), train(*given, **options))[1]
    task.method.fit(task)
    wrong = task.journal.columns["selected"]
    assert seen[0].tolist() == [mu if error else 1 for error in wrong]
    dataset = datasets.get("cmnist5k")[0]
    assert "the ratio of cmnist5k is 0: give bam:mu=" in new_method("bam").decline(dataset(rho=0.0))
    assert new_method("bam", mu=5).decline(dataset(rho=0.0)) is None


def test_an_empty_error_set_of_bam_fails_loudly(new_method, make_task):
    task = make_task(new_method("bam"))
    task.each = lambda _: torch.zeros(200, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="empty: raise its amplification, or lower T"):
        task.method.fit(task)
