"""EIIL: environment inference for invariant learning (Creager, Jacobsen, Zemel; ICML 2021).

1. Train a reference network for a few epochs, so that it follows the bias.
2. Split the training samples into two environments that violate its invariance most: with g_i the derivative of the
   cross-entropy of sample i for a factor on its logits, weights w = sigmoid(u) maximise
   ((mean_i w_i g_i)^2 + (mean_i (1 - w_i) g_i)^2) / 2 by Adam on u, from random u.
3. Train a new network by GroupDRO with the groups (label, environment).

The optimum is the sign of g: with two classes one environment is exactly the error set of the reference network
(JTT's). Where ours departs from the authors' code, which is for two classes and one logit: g has any number of classes
and a closed form; the objective is multiplied by N (`scale_by_n`), without which the gradients of confident samples
fall below Adam's epsilon and they keep their random environments; step 3 is GroupDRO, as the authors' paper has it for
images and text, where their code (IRM) is for coloured MNIST alone. An empty environment is an error.

How long the reference network trains is not published for these datasets: one epoch here, untuned.
"""

import torch

from debiasbench.losses import cross_entropy, group_dro, scale_gradient
from debiasbench.methods import Method, above, at_least


class EIIL(Method):
    """Environment inference for invariant learning, with GroupDRO."""

    name = "eiil"
    cost = 1.1
    citation = """@inproceedings{creager2021eiil,
  title={Environment Inference for Invariant Learning},
  author={Creager, Elliot and Jacobsen, J{\\"o}rn-Henrik and Zemel, Richard},
  booktitle={International Conference on Machine Learning}, year={2021}}"""

    ref_epochs: int = at_least(1, default=1)  # of the reference network
    ei_steps: int = at_least(1, default=10_000)  # full-batch steps of step 2
    ei_learning_rate: float = above(0, default=0.001)
    scale_by_n: bool = True
    step_size: float = above(0, default=0.01)  # of GroupDRO

    def relative_cost(self, dataset):
        """The reference network's epochs, and the second training."""
        return 1 + self.ref_epochs / dataset.own_recipe.epochs

    def fit(self, task):
        """The three steps."""
        reference = task.new_net()
        task.stage(reference, self.reference_loss).run(epochs=self.ref_epochs)
        g = task.each(lambda x, y: scale_gradient(reference(x), y))
        weight, moved = task.once(self.environments, g)
        second = weight > 0.5
        if second.all() or not second.any():
            raise RuntimeError(
                f"One of EIIL's environments is empty: after {self.ref_epochs} epochs the reference network gets all "
                "training samples alike. Lower ref_epochs."
            )
        hard = second if g[second].mean() > g[~second].mean() else ~second  # which of the two is a matter of chance
        task.log(score=g, selected=hard, moved=moved)
        group = 2 * task.y + hard
        counts = torch.bincount(group, minlength=2 * task.n_classes)
        there = (counts > 0).float()
        net = task.new_net()
        task.train(
            net, self.loss, sample=(1 / counts[group]).double(), columns={"group": group},
            state={"q": there / there.sum()}, predict=net,
        )  # fmt: skip
        return net

    def environments(self, g, *, generator):
        """Step 2: the weight of each sample (N,), and the share of samples whose u moved by more than a half."""
        start = torch.randn(len(g), generator=generator, device=g.device, dtype=g.dtype)
        u = start.clone()
        optimizer = torch.optim.Adam([u], self.ei_learning_rate, maximize=True, fused=True)
        factor = len(g) if self.scale_by_n else 1
        for _ in range(self.ei_steps):
            w = u.sigmoid()
            gap = (w * g).mean() - ((1 - w) * g).mean()
            u.grad = factor / len(g) * gap * g * w * (1 - w)  # of the objective
            optimizer.step()
        return u.sigmoid(), ((u - start).abs() > 0.5).float().mean()

    def reference_loss(self, nets, batch, state):
        """Mean cross-entropy."""
        return cross_entropy(nets.net(batch.x), batch.y).mean()

    def loss(self, nets, batch, state):
        """GroupDRO's."""
        losses = cross_entropy(nets.net(batch.x), batch.y)
        value, q = group_dro(losses, batch.group, state["q"], step_size=self.step_size)
        return value, {"q": q}
