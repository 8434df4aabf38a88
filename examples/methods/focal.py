"""Focal: weight each sample by how unsure the network is of its label (Lin et al., 2017), with a warm-up.

1. train with cross-entropy for a few epochs;  2. train further with weights (1 - p_y)^gamma.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, at_least


class Focal(Method):
    """Cross-entropy, then the focal loss."""

    name = "focal"
    cost = 1.25  # in trainings of one network, for the estimate of --dry-run

    gamma: float = at_least(0, default=2.0)  # 0 is cross-entropy
    warm_up: int = at_least(1, default=5)  # epochs

    def fit(self, task: Task) -> Predict:
        net = task.new_net()
        task.train(net, self.plain_loss, epochs=self.warm_up)
        task.log(score=task.each(lambda x, y: self.weights(net(x), y)))
        task.train(net, self.focal_loss, predict=net)
        return net

    def plain_loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        return cross_entropy(nets.net(batch.x), batch.y).mean()

    def focal_loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        logits = nets.net(batch.x)
        return (self.weights(logits, batch.y).detach() * cross_entropy(logits, batch.y)).mean()

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        return (1 - (-cross_entropy(logits, y)).exp()) ** self.gamma  # p_y = exp(-ce)
