"""Oracle resampling: draws by the true conflict flags, to show what a score of conflicting samples could reach.

One network is trained with cross-entropy, on batches in which aligned and conflicting samples are equally frequent.
The method knows the bias of every training sample, so it is an oracle baseline and not a competitor (tables mark it).
It is not an upper bound: another fraction may do better. The opposite baseline is `pgd:score=random`, which knows
nothing.
"""

import torch
from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, between
from debiasbench.search import uniform


class ResampleOracle(Method):
    """Sampling with a fixed fraction of bias-conflicting samples."""

    name = "resample-oracle"
    display = "Oracle resampling"
    needs_bias_labels = True

    search = {"share": uniform(0.1, 0.9, source="chosen here: both kinds of samples are drawn")}

    share: float = between(0, 1, default=0.5)  # fraction of conflicting samples among those drawn

    def decline(self, dataset: Dataset) -> str | None:
        """It must be known which samples conflict, and with one bias."""
        if dataset.conflict_ratio == 0:
            return f"no sample of {dataset.name} conflicts at a ratio of 0"
        if not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting"
        return self.decline_groups(dataset)

    def fit(self, task: Task) -> Predict:
        """One stage."""
        conflicting = task.conflicting[:, 0]
        n_conflict = int(conflicting.sum())
        if not 0 < n_conflict < task.n_samples:
            raise RuntimeError(f"{n_conflict} of {task.n_samples} training samples conflict: there are no two sides.")
        share = torch.where(
            conflicting, self.share / n_conflict, (1 - self.share) / (task.n_samples - n_conflict)
        ).double()
        task.log(score=share)
        net = task.new_net()
        task.train(net, self.loss, sample=share, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(nets.net(batch.x), batch.y).mean()
