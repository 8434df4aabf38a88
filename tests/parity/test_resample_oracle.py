"""Resampling with the truth."""

import pytest
from reference import masses, plain_loss, replay, task_for


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_oracle_equals_a_plain_loop(new_method, way, agree, share):
    """Conflicting samples are the given fraction of what is drawn, each as often; training is plain."""
    method = new_method("resample-oracle", share=share)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    conflicting = task.y != task.splits.train.bias[:, 0]
    drawn = masses(run.options["sample"], conflicting)
    agree("drawn", [drawn[True], drawn[False]], [share, 1 - share])
    for side in (conflicting, ~conflicting):
        assert run.options["sample"][side].unique().numel() == 1
    replay(run, plain_loss, way(), agree)
