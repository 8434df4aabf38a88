"""CVaR-DRO: the mean of the worst fraction of a batch's losses."""

import pytest
import torch
from reference import logits_of, replay, samples_of, slow_ce, task_for


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_cvar_dro_equals_a_loop_over_samples(new_method, way, agree, alpha):
    """The worst first, until alpha B of them are counted; of 8 samples 1.6, 4 and 6.4."""
    method = new_method("cvar-dro", alpha=alpha)
    task = task_for(method, way)
    method.fit(task)

    def worst(nets, batch):
        losses = [slow_ce(logits_of(nets["net"], x), y) for x, y in samples_of(batch)]
        left, value = alpha * len(losses), 0.0
        for loss in sorted(losses, key=torch.Tensor.item, reverse=True):
            value = value + min(1.0, left) * loss
            left -= min(1.0, left)
        return value / (alpha * len(losses))

    replay(task.runs[0], worst, way(), agree)
