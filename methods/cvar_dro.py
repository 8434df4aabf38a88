"""CVaR-DRO: train on the worst fraction of each batch, without group labels (Levy et al., NeurIPS 2020).

The conditional value at risk of the losses is the mean of their worst fraction alpha (Rockafellar and Uryasev, 2000).
It is at least the mean loss of any group that makes up this fraction of the data or more. In each step
1. the cross-entropies of the batch are sorted, the highest first;
2. the loss is the mean of the first alpha B of them; if this is not a whole number, the last one counts in part.

This is the paper's batch estimator: on average, its value on a batch is below that on all data, and the difference
shrinks as batches grow. No value of alpha is published for these datasets, and none is tuned here. Expected in the
worst group: better than plain training, and worse than methods that look for groups, because the hardest samples also
include wrongly labelled and unusual ones. Our results on cmnist5k: docs/reproduction.md.
"""

import torch
from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, between
from debiasbench.search import uniform


class CVaRDRO(Method):
    """Minimise the mean of the worst fraction of the losses."""

    name = "cvar-dro"
    display = "CVaR-DRO"
    citation = """@inproceedings{levy2020large,
  title={Large-Scale Methods for Distributionally Robust Optimization},
  author={Levy, Daniel and Carmon, Yair and Duchi, John C and Sidford, Aaron},
  booktitle={Advances in Neural Information Processing Systems}, year={2020}}"""

    search = {"alpha": uniform(0.05, 1, source="chosen here: a twentieth of a batch to plain training")}

    alpha: float = between(0.01, 1, default=0.2)  # fraction of a batch; 1 is plain training

    def fit(self, task: Task) -> Predict:
        """One network, one stage."""
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Steps 1 and 2."""
        losses = cross_entropy(nets.net(batch.x), batch.y).sort(descending=True).values
        n_worst = self.alpha * len(losses)
        counted = (n_worst - torch.arange(len(losses), device=losses.device)).clamp(0, 1)  # 1, ..., 1, a part, 0, ...
        return (counted * losses).sum() / n_worst
