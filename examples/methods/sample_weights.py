"""Sample weights: learnt against the network (adversarially reweighted learning, Lahoti et al., NeurIPS 2020).

Each training sample has a score s_i, which starts at 0. Its weight is w_i = 1 + N phi_i / sum(phi) with phi =
sigmoid(s), so no weight falls below 1. In each step
1. the network descends on the weighted cross-entropy, w_i L_i;
2. the scores ascend on it: the scores of samples with losses above the average rise.

Where ours departs: the authors' adversary computes scores from features, so it can only raise groups that the features
tell apart; here each sample has its own score. Samples with wrong labels are raised too. The step size of the scores is
not tuned.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, above
from debiasbench.recipe import Recipe


class SampleWeights(Method):
    """One weight per sample, learnt by gradient ascent on the loss."""

    name = "sample-weights"

    step_size: float = above(0, default=1.0)  # of the scores, for the sum of a batch's losses

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """Gradients can be accumulated for one optimiser only, and this method has two."""
        return self.decline_accumulation(recipe, "its scores have an optimiser of their own")

    def fit(self, task: Task) -> Predict:
        """Network and scores, in one stage, each with its own recipe."""
        net, scores = task.new_net(), task.new_parameter(task.n_samples)
        ascent = task.recipe.replace(
            optimizer="sgd", learning_rate=self.step_size, momentum=0.0, weight_decay=0.0, schedule="constant"
        )
        task.train({"net": net, "scores": scores}, self.loss, recipe={"scores": ascent}, predict=net)
        task.log(score=self.weights(scores.value))
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> dict[str, Tensor]:
        """Steps 1 and 2. The term of the scores is a sum, so their steps do not depend on the batch size."""
        losses = self.weights(nets.scores.value)[batch.index] * cross_entropy(nets.net(batch.x), batch.y)
        return {"net": losses.mean(), "scores": -losses.sum()}

    def weights(self, scores: Tensor) -> Tensor:
        """The weights of all training samples, (N,), from their scores (N,)."""
        phi = scores.sigmoid()
        return 1 + phi / phi.mean()
