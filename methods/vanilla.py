"""Vanilla: plain training with cross-entropy on uniformly drawn samples (empirical risk minimisation).

The recipe (network, optimiser, schedule, augmentation) is the dataset's, the same as for the methods compared with
it (PGD paper, section 4.2 and Table 6). Expected on Colored MNIST at 0.5 / 1 / 5 % conflicts: unbiased accuracy
60.94 +- 0.97 / 79.13 +- 0.73 / 95.12 +- 0.24 (PGD paper, Table 1, n = 3); ours: docs/reproduction.md.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task


class Vanilla(Method):
    """Plain cross-entropy (ERM), without debiasing."""

    name = "vanilla"
    display = "Vanilla"

    def fit(self, task: Task) -> Predict:
        """One network, one stage."""
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Mean cross-entropy of the batch."""
        return cross_entropy(nets.net(batch.x), batch.y).mean()
