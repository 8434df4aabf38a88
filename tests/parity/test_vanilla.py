"""Vanilla: plain training."""

from reference import plain_loss, replay, task_for


def test_vanilla_equals_a_plain_loop(new_method, way, agree):
    """Cross-entropy on all samples, shuffled, and the recipe's schedule: a tenth of the rate from the second epoch."""
    method = new_method("vanilla")
    task = task_for(method, way, schedule="step", milestones=(0.3,), gamma=0.1)
    method.fit(task)
    (run,) = task.runs
    for epoch in range(3):
        seen = [index for step in run.steps if step.batch.epoch == epoch for index in step.batch.index.tolist()]
        assert sorted(seen) == list(range(32))
    rate = way().rate
    replay(run, plain_loss, way(), agree, rate=[rate, rate / 10, rate / 10])
