"""EIIL: environment inference for invariant learning (Creager, Jacobsen, Zemel; ICML 2021).

1. Train a reference network for a few epochs, so that it follows the bias.
2. Split the training samples into the two environments that most violate the invariance of this network. Let g_i be
   the derivative of the cross-entropy of sample i with respect to a factor on its logits. Weights w = sigmoid(u)
   maximise ((mean_i w_i g_i)^2 + (mean_i (1 - w_i) g_i)^2) / 2, by Adam on u, from random u.
3. Train a new network by GroupDRO with the groups (label, environment).

At the optimum, the sign of g decides the environment. With two classes, one environment is exactly the error set of
the reference network, as in JTT. Where ours departs from the authors' code, which is for two classes and one logit: g
is in closed form, for any number of classes. The objective is multiplied by N (`scale_by_n`); without this, the
gradients of confident samples fall below Adam's epsilon, and these samples keep their random environments. Step 3 is
GroupDRO, as in the authors' paper for images and text. An empty environment is an error.

`backend=irm` is step 3 of their code for coloured MNIST, with its optimiser: Adam at a constant rate. The loss is the
mean of the environments' mean losses, plus penalty_weight times the mean of their squared mean g, plus irm_l2 times the
squared norm of all parameters; this sum is divided by penalty_weight. In the first 38 % of the steps (190 of their
501), penalty_weight is 1. The rate, the weights and the 38 % are those of their command. Version 1 of this backend had
the dataset's optimiser, SGD, and its weight decay. With SGD, the division after the switch left cross-entropy a
191,257th of its gradient, and the decay was not divided (Adam's steps do not depend on the scale of the loss). Two
differences from their code remain. Ours trains on batches in which both environments are equally frequent, theirs on
all samples at once (the squared mean g of a batch is on average larger than that of all samples). Ours trains for the
length of the dataset's recipe, theirs for 501 steps.

How long to train the reference network is not published for these datasets; here it is one epoch, untuned.
"""

import torch
from torch import Tensor

from debiasbench.losses import (
    balancing,
    cross_entropy,
    group_dro,
    group_dro_state,
    mean_cross_entropy,
    scale_gradient,
)  # fmt: skip
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, above, at_least, between, one_of
from debiasbench.recipe import Recipe
from debiasbench.search import log_uniform, whole


class EIIL(Method):
    """Environment inference for invariant learning, with GroupDRO."""

    name = "eiil"
    display = "EIIL"
    cost = 1.1
    gives_proxies = True
    citation = """@inproceedings{creager2021eiil,
  title={Environment Inference for Invariant Learning},
  author={Creager, Elliot and Jacobsen, J{\\"o}rn-Henrik and Zemel, Richard},
  booktitle={International Conference on Machine Learning}, year={2021}}"""

    search = {
        "ref_epochs": whole(1, 10, log=True, source="chosen here: as none is published for these datasets"),
        "step_size": log_uniform(0.001, 0.1, source="chosen here: a factor of ten around the published value"),
    }

    ref_epochs: int = at_least(1, default=1)  # of the reference network
    ei_steps: int = at_least(1, default=10_000)  # full-batch steps of step 2
    ei_learning_rate: float = above(0, default=0.001)
    scale_by_n: bool = True
    backend: str = one_of("groupdro", "irm", default="groupdro")  # of step 3
    step_size: float = above(0, default=0.01)  # of GroupDRO
    penalty_weight: float = above(0, default=191_257.0)  # of IRM
    penalty_start: float = between(0, 1, default=0.38)  # of IRM: fraction of the steps before penalty_weight applies
    irm_learning_rate: float = above(0, default=4.8986e-4)  # of IRM, by Adam
    irm_l2: float = at_least(0, default=1.1079e-3)  # of IRM: factor of the squared norm of all parameters

    def version_for(self, dataset: Dataset) -> int:
        """One higher with IRM: the module docstring says why."""
        del dataset
        return EIIL.version + (self.backend == "irm")

    def relative_cost(self, dataset: Dataset) -> float:
        """The reference network's epochs, and the second training."""
        return 1 + self.ref_epochs / dataset.own_recipe.epochs

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        reference = task.new_net()
        task.stage(reference, mean_cross_entropy).run(epochs=self.ref_epochs)
        g = task.each(lambda x, y: scale_gradient(reference(x), y))
        weight, moved = task.once(self.environments, g)
        second = weight > 0.5
        if second.all() or not second.any():
            raise RuntimeError(
                f"One of EIIL's environments is empty: after {self.ref_epochs} epochs the reference network gets all "
                "training samples alike. Lower ref_epochs."
            )
        hard = second if g[second].mean() > g[~second].mean() else ~second  # the order of the two is random
        task.log(score=g, selected=hard, moved=moved)
        net = task.new_net()
        if self.backend == "irm":
            task.train(
                net, self.irm_loss, sample=balancing(hard.long()), columns={"hard": hard},
                recipe=self.recipe_of_irm(task.recipe), predict=net, proxy=reference,
            )  # fmt: skip
            return net
        group = 2 * task.y + hard
        state = group_dro_state(group, 2 * task.n_classes)
        task.train(
            net, self.loss, sample=balancing(group), columns={"group": group}, state=state, predict=net, proxy=reference
        )
        return net

    def recipe_of_irm(self, recipe: Recipe) -> Recipe:
        """The recipe of step 3 with IRM, without weight decay: the loss has an L2 term."""
        return recipe.replace(
            optimizer="adam",
            learning_rate=self.irm_learning_rate,
            weight_decay=0.0,
            schedule="constant",
            clip_norm=None,
        )

    def environments(self, g: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Step 2: the weight of each sample (N,), and the fraction of samples whose u moved by more than 0.5."""
        start = torch.randn(len(g), generator=generator, device=g.device, dtype=g.dtype)
        u = start.clone()
        optimizer = torch.optim.Adam([u], self.ei_learning_rate, maximize=True, fused=True)
        factor = len(g) if self.scale_by_n else 1
        for _ in range(self.ei_steps):
            w = u.sigmoid()
            gap = (w * g).mean() - ((1 - w) * g).mean()
            u.grad = factor / len(g) * gap * g * w * (1 - w)  # gradient of the objective
            optimizer.step()
        return u.sigmoid(), ((u - start).abs() > 0.5).float().mean()

    def loss(self, nets: Nets, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The loss of GroupDRO."""
        losses = cross_entropy(nets.net(batch.x), batch.y)
        value, q = group_dro(losses, batch.group, state["q"], step_size=self.step_size)
        return value, {**state, "q": q}

    def irm_loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """The loss of IRM: mean losses of the environments, penalty (squared mean g of each), and L2 term."""
        logits = nets.net(batch.x).float()
        members = torch.stack([~batch.hard, batch.hard]).double()  # (2, B)
        there = members.sum(1).clamp_max(1)

        def means(values: Tensor) -> Tensor:
            return (members * values).sum(1) / members.sum(1).clamp_min(1)

        risk = (means(cross_entropy(logits, batch.y)) * there).sum() / there.sum()
        penalty = (means(scale_gradient(logits, batch.y)) ** 2 * there).sum() / there.sum()
        weight = torch.where(batch.step < self.penalty_start * batch.n_steps, 1.0, self.penalty_weight)
        size = torch.stack([parameter.square().sum() for parameter in nets.net.parameters()]).sum()
        return (risk + weight * penalty + self.irm_l2 * size) / weight.clamp_min(1)
