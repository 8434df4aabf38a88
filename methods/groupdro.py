"""GroupDRO: distributionally robust neural networks for group shifts (Sagawa, Koh, Hashimoto, Liang; ICLR 2020).

The method knows the bias of every training sample, so it is an oracle baseline and not a competitor (tables mark it).
1. Batches are drawn with replacement so that all (label, bias) groups are equally frequent.
2. With each batch, the weight q_g of a group grows with its mean loss L_g: q_g is multiplied by
   exp(step_size (L_g + C / sqrt(N_g))).
3. The loss of the batch is the sum of q_g L_g.

`balanced=false` leaves out step 1, and each sample appears once in an epoch. Then only the weights balance the groups,
and the weight of a group that appears in few batches seldom changes.

Where ours departs from the authors' code: the adjustment C / sqrt(N_g) never changes the logged loss, and it also
applies if one C is given for all groups. Groups without training samples are left out. `groups=sides` has only two
groups, aligned and conflicting samples: on data with many labels the (label, bias) groups are tiny (80 conflicting
samples in 90 groups of cmnist5k).
"""

from torch import Tensor

from debiasbench.losses import balancing, cross_entropy, group_dro, group_dro_state
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, above, at_least, one_of
from debiasbench.search import log_uniform, uniform


class GroupDRO(Method):
    """Group distributionally robust optimisation, with true bias labels."""

    name = "groupdro"
    display = "GroupDRO"
    needs_bias_labels = True
    citation = """@inproceedings{sagawa2020groupdro,
  title={Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for Worst-Case
    Generalization},
  author={Sagawa, Shiori and Koh, Pang Wei and Hashimoto, Tatsunori B. and Liang, Percy},
  booktitle={International Conference on Learning Representations}, year={2020}}"""

    search = {
        "step_size": log_uniform(0.001, 0.1, source="chosen here: a factor of ten around the published value"),
        "adjustment": uniform(0, 5, source="chosen here: as george's"),
    }

    groups: str = one_of("cells", "sides", default="cells")  # cells: (label, bias); sides: aligned and conflicting
    balanced: bool = True  # draw all groups equally often
    step_size: float = above(0, default=0.01)  # of q; 0.1 in BalancingGroups
    adjustment: float = at_least(0, default=0.0)  # C of the generalisation adjustment C / sqrt(N_g)

    def decline(self, dataset: Dataset) -> str | None:
        """The dataset must have one bias, which is known for each sample."""
        if self.groups == "sides" and not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting: give groupdro:groups=cells"
        return self.decline_groups(dataset)

    def fit(self, task: Task) -> Predict:
        """One stage, with a weight for each group."""
        group, n_groups = self.groups_of(task)
        net = task.new_net()
        task.train(
            net, self.loss, sample=balancing(group) if self.balanced else None, columns={"group": group},
            state=group_dro_state(group, n_groups, self.adjustment), predict=net,
        )  # fmt: skip
        return net

    def groups_of(self, task: Task) -> tuple[Tensor, int]:
        """The group of each training sample, int64 (N,), and the number of possible groups."""
        if self.groups == "sides":
            return task.conflicting[:, 0].long(), 2
        n_values = max(task.dataset.n_bias_values, int(task.bias.max()) + 1)
        return task.y * n_values + task.bias[:, 0], task.n_classes * n_values

    def loss(self, nets: Nets, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The weighted sum of the groups' mean losses."""
        losses = cross_entropy(nets.net(batch.x), batch.y)
        value, q = group_dro(losses, batch.group, state["q"], step_size=self.step_size, adjustment=state["adjustment"])
        return value, {**state, "q": q}
