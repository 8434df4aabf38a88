"""Adversary: features from which a critic cannot tell the bias (Xie, Dai, Du, Hovy, Neubig; NeurIPS 2017).

It knows the bias of every training sample, so it is an oracle baseline (tables mark it). Network and critic play a
game. Each step
1. trains the critic, a linear layer on the network's features, to predict the bias;
2. trains the network to predict the label; its loss is the cross-entropy minus `strength` times the critic's loss.

Each has its own optimiser; the critic's is Adam with a constant learning rate. Both gradients are computed before
either takes its step. Where the label almost determines the bias, a strong adversary removes the label from the
features as well. `strength` and the critic's learning rate are ours, untuned.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, above, at_least
from debiasbench.recipe import Recipe


class Adversary(Method):
    """A network against a critic that looks for the bias in its features."""

    name = "adversary"
    needs_bias_labels = True

    strength: float = at_least(0, default=0.1)  # weight of the critic in the network's loss; 0 is plain training
    critic_learning_rate: float = above(0, default=0.001)

    def decline(self, dataset: Dataset) -> str | None:
        """The critic looks for one known bias."""
        return self.decline_groups(dataset)

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """Gradients can be accumulated for one optimiser only, and this method has two."""
        return self.decline_accumulation(recipe, "it has an optimiser a network")

    def fit(self, task: Task) -> Predict:
        """Network and critic, in one stage, each with its own recipe."""
        net = task.new_net()
        critic = task.new_head(net.n_features, task.dataset.n_bias_values)
        adam = task.recipe.replace(
            optimizer="adam", learning_rate=self.critic_learning_rate, weight_decay=0.0, schedule="constant"
        )
        task.train({"net": net, "critic": critic}, self.loss, recipe={"critic": adam}, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> dict[str, Tensor]:
        """Steps 1 and 2: the loss of the critic and the loss of the network."""
        features = nets.net.features(batch.x)
        label = cross_entropy(nets.net.head(features), batch.y).mean()
        bias = cross_entropy(nets.critic(features), batch.bias[:, 0]).mean()
        return {"critic": bias, "net": label - self.strength * bias}
