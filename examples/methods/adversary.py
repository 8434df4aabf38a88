"""Adversary: features from which a critic cannot tell the bias (Xie, Dai, Du, Hovy, Neubig; NeurIPS 2017).

Knows the bias of every training sample: an oracle baseline (tables mark it). Network and critic play a game; in each
step
1. the critic, a linear layer on the network's features, is trained to tell the bias;
2. the network is trained to tell the label, minus `strength` times the critic's loss.

Each has an optimiser of its own: the critic's is Adam with a constant rate. Both gradients are computed before either
steps. Where the label almost gives the bias away, a strong adversary removes the label from the features as well.
`strength` and the critic's rate are ours, untuned.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, above, at_least
from debiasbench.recipe import Recipe


class Adversary(Method):
    """A network against a critic that looks for the bias in its features."""

    name = "adversary"
    needs_bias_labels = True

    strength: float = at_least(0, default=0.1)  # of the critic in the network's loss; 0 is plain training
    critic_learning_rate: float = above(0, default=0.001)

    def decline(self, dataset: Dataset) -> str | None:
        """The critic looks for one known bias."""
        return self.decline_groups(dataset)

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """Gradients are added up for one optimiser, and here are two."""
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
        """Steps 1 and 2: what the critic learns from, and what the network learns from."""
        features = nets.net.features(batch.x)
        label = cross_entropy(nets.net.head(features), batch.y).mean()
        bias = cross_entropy(nets.critic(features), batch.bias[:, 0]).mean()
        return {"critic": bias, "net": label - self.strength * bias}
