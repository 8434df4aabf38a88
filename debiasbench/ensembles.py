"""BiasEnsemble: networks that follow the bias vote on which samples are aligned. lff and disen share this code.

Written from the description in Lee, Park, Kim, Lee, Choi, Choo: Revisiting the Importance of Amplifying Bias for
Debiasing (AAAI 2023): five networks are trained for 1,000 steps of generalised cross-entropy each; a sample is aligned
if most of them are sure of it.
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

SURE = 0.99  # p_y above which a network is sure


def aligned_by_vote(task: Task, loss: Loss, *, networks: int, steps: int) -> Tensor:
    """The samples that most of the voting networks are sure of, bool (N,); the other samples are logged as `selected`.

    Args:
        task: trains the networks, with a constant learning rate (the first one of its recipe).
        loss: loss of `nets.net`; a function of a module, so that equal ensembles are trained once.
        networks: number of networks that vote.
        steps: training steps of each network.

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
    """The mean of the losses (B,) of the samples in `kept`, bool (B,); 0 if there is none."""
    return (losses * kept).sum() / kept.sum().clamp_min(1)


def cost_of_vote(dataset: Dataset, *, networks: int, steps: int) -> float:
    """Cost in vanilla runs on that dataset; if the dataset's size is unknown, each network counts as one run."""
    recipe, n_train = dataset.own_recipe, dataset.official_counts.get("train")
    whole = recipe.steps or (recipe.epochs * n_train / recipe.batch_size if n_train else steps)
    return networks * steps / whole
