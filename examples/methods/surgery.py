"""Surgery: projected gradients of two sides (PCGrad; Yu, Kumar, Gupta, Levine, Hausman, Finn; NeurIPS 2020).

It knows which training samples conflict, so it is an oracle baseline (tables mark it). The paper's tasks are here the
aligned and the conflicting samples. Each step
1. computes the gradient of the mean cross-entropy for each of the two sides: the batch's aligned samples, and its
   conflicting ones;
2. where the two point against each other, removes from each its part along the other, as the other was before;
3. moves the network along their sum.

Each side counts the same, however few samples it has. A side without samples in the batch has no gradient.
"""

import torch
from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task
from debiasbench.recipe import Recipe


class Surgery(Method):
    """Projected gradients of aligned and conflicting samples."""

    name = "surgery"
    needs_bias_labels = True

    def decline(self, dataset: Dataset) -> str | None:
        """Samples must be aligned or conflicting, by one known bias."""
        if not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting"
        return self.decline_groups(dataset)

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """The gradients of a whole batch are combined."""
        return self.decline_accumulation(recipe, "it combines the gradients of a whole batch")

    def fit(self, task: Task) -> Predict:
        """One network, one stage with two terms."""
        net = task.new_net()
        columns = {"conflicting": task.conflicting[:, 0]}
        task.train(net, self.loss, columns=columns, combine=self.combined, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> dict[str, Tensor]:
        """Step 1: the terms."""
        losses = cross_entropy(nets.net(batch.x), batch.y)
        sides = {"aligned": ~batch.conflicting, "conflicting": batch.conflicting}
        return {name: (losses * side).sum() / side.sum().clamp_min(1) for name, side in sides.items()}

    def combined(self, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        """Steps 2 and 3."""
        aligned, conflicting = gradients["aligned"], gradients["conflicting"]
        pairs = zip(without(conflicting, aligned), without(aligned, conflicting), strict=True)
        return [one + other for one, other in pairs]


def without(other: list[Tensor], gradient: list[Tensor]) -> list[Tensor]:
    """The gradient without its part along the other, if they point against each other."""
    pairs = list(zip(gradient, other, strict=True))
    product = torch.stack([(one * its).sum() for one, its in pairs]).sum()
    length = torch.stack([its.square().sum() for its in other]).sum()
    along = product.clamp_max(0) / length.clamp_min(1e-12)
    return [one - along * its for one, its in pairs]
