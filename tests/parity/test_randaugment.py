"""RandAugment: plain training on images to which operations were applied."""

import pytest
import torch
from reference import SGD, plain_loss, replay, task_for

from debiasbench.data.rand_augment import rand_augmented
from debiasbench.errors import BenchmarkError
from debiasbench.randomness import derived_generator


@pytest.mark.parametrize("options", [{}, {"operations": 1, "magnitude": 30}], ids=str)
def test_randaugment_equals_a_plain_loop(new_method, way, agree, options):
    """Each batch has as many operations and as strong ones as the method says, drawn anew; training is plain."""
    method = new_method("randaugment", **options)
    task = task_for(method, way, augment=True)
    method.fit(task)
    (run,) = task.runs
    for step in run.steps:
        place = (0, 2, int(step.batch.epoch), int(step.batch.step))  # the seed; the second call of the task
        images = task.x[step.batch.index].to(torch.float32) / 255
        n, strength = method.operations, method.magnitude
        expected = rand_augmented(images, n, strength, derived_generator("augment", *place))
        assert torch.equal(step.batch.x, expected)
        assert not torch.equal(step.batch.x, images)
    replay(run, plain_loss, way(), agree)


def test_randaugment_does_not_go_without_augmentation(new_method):
    method = new_method("randaugment")
    task = task_for(method, SGD)
    with pytest.raises(BenchmarkError, match="cannot go with augment=false"):
        method.fit(task)
    assert not task.journal.stages
