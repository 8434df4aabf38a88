"""BiasEnsemble: networks that follow the bias vote on which samples are aligned. What lff and disen have in common.

Lee, Park, Kim, Lee, Choi, Choo: Revisiting the Importance of Amplifying Bias for Debiasing (AAAI 2023), from its
description: five networks, 1,000 steps of generalised cross-entropy each; a sample is aligned if most are sure of it.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from debiasbench.datasets import Dataset
from debiasbench.losses import cross_entropy
from debiasbench.nets.base import Net
from debiasbench.training.batches import Loss
from debiasbench.training.task import Task

SURE = 0.99  # p_y


def aligned_by_vote(task: Task, loss: Loss, *, networks: int, steps: int) -> Tensor:
    """The samples of which most of the voting networks are sure, bool (N,); what is not goes to the record.

    Args:
        task: trains the networks, at the first rate of its recipe.
        loss: of `nets.net`; a function of a module, so that equal ensembles are trained once.
        networks: how many vote.
        steps: of each.

    Raises:
        RuntimeError: no sample is aligned.
    """
    recipe = task.recipe.replace(steps=steps, schedule="constant")
    votes = torch.zeros_like(task.y)
    for _ in range(networks):
        net = task.new_net()
        task.train(net, loss, recipe=recipe, reuse=True)
        votes = votes + task.each(partial(_is_sure, net))
    aligned = 2 * votes > networks
    if not aligned.any():
        raise RuntimeError(
            f"BiasEnsemble finds no aligned sample: after {steps} steps most of its networks are sure of none. Raise "
            "ensemble_steps or the learning rate."
        )
    task.log(selected=~aligned)
    return aligned


def _is_sure(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net(x), y) < -math.log(SURE)


def mean_of_kept(losses: Tensor, kept: Tensor) -> Tensor:
    """The mean of the losses (B,) that are kept, bool (B,); 0 if none is."""
    return (losses * kept).sum() / kept.sum().clamp_min(1)


def cost_of_vote(dataset: Dataset, *, networks: int, steps: int) -> float:
    """In units of one vanilla run on that dataset; where its size is not known, each network counts as a run."""
    recipe, n_train = dataset.own_recipe, dataset.official_counts.get("train")
    whole = recipe.steps or (recipe.epochs * n_train / recipe.batch_size if n_train else steps)
    return networks * steps / whole
