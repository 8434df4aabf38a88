"""RWY, SUBY, RWG, SUBG: plain training on balanced data (Idrissi, Arjovsky, Pezeshki, Lopez-Paz; CLeaR 2022).

One network is trained with cross-entropy on data in which all classes (Y) or all (label, bias) groups (G) are equally
frequent:
- `rwy`, `rwg`: samples are drawn with replacement, each in proportion to 1 / (size of its class or group);
- `suby`, `subg` (`use=subset`): each class or group is reduced to the size of the smallest; this subset is drawn once.

`rwg` and `subg` know the bias of every training sample, so they are oracle baselines and not competitors (tables mark
them). Expected from the paper on Waterbirds, CelebA, MultiNLI and CivilComments: these two are about as good in the
worst group as GroupDRO. Where classes are equally large, as on cmnist5k, `rwy` and `suby` are plain training. Our
results: docs/reproduction.md.

Where ours departs: groups without training samples are left out, as in groupdro. An epoch of a subset has only the
samples of the subset, so training takes as many epochs as on all data, but fewer steps. `groups=sides` has only two
groups, aligned and conflicting samples: on data with many labels, the smallest (label, bias) group may be a single
sample (as on cmnist5k), and then a subset keeps only one sample of each group.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from debiasbench.losses import balancing, mean_cross_entropy
from debiasbench.methods import Dataset, Method, Predict, Task, one_of

CITATION = """@inproceedings{idrissi2022simple,
  title={Simple Data Balancing Achieves Competitive Worst-Group-Accuracy},
  author={Idrissi, Badr Youbi and Arjovsky, Martin and Pezeshki, Mohammad and Lopez-Paz, David},
  booktitle={Conference on Causal Learning and Reasoning}, year={2022}}"""


class Balanced(Method):
    """Plain training on data in which all groups are equally frequent."""

    use: str = one_of("resample", "subset", default="resample")

    @abstractmethod
    def groups_of(self, task: Task) -> Tensor:
        """The index of the class or group of each training sample, int64 (N,)."""

    def fit(self, task: Task) -> Predict:
        """One network, one stage."""
        group = self.groups_of(task)
        net = task.new_net()
        sample = balancing(group) if self.use == "resample" else task.once(self.subset, group)
        task.train(net, mean_cross_entropy, sample=sample, predict=net)
        return net

    def subset(self, group: Tensor, *, generator: torch.Generator) -> Tensor:
        """How often each sample appears, int64 (N,): 1 or 0. Each group, (N,), keeps as many as the smallest has."""
        sizes = torch.bincount(group)
        order = torch.randperm(len(group), generator=generator, device=group.device)
        order = order[group[order].argsort(stable=True)]  # sorted by group, shuffled within each
        place = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[group[order]]
        return torch.zeros_like(group).scatter(0, order, (place < sizes[sizes > 0].min()).long())


class RWY(Balanced):
    """Plain training, with all classes sampled equally often."""

    name = "rwy"
    display = "RWY"
    citation = CITATION
    alias_display = {"suby": "SUBY"}
    aliases = {"suby": {"use": "subset"}}

    def groups_of(self, task: Task) -> Tensor:
        """The classes."""
        return task.y


class RWG(Balanced):
    """Plain training, with all (label, bias) groups sampled equally often."""

    name = "rwg"
    display = "RWG"
    needs_bias_labels = True
    citation = CITATION
    alias_display = {"subg": "SUBG"}
    aliases = {"subg": {"use": "subset"}}

    groups: str = one_of("cells", "sides", default="cells")  # cells: (label, bias); sides: aligned and conflicting

    def decline(self, dataset: Dataset) -> str | None:
        """The dataset must have one bias, which is known for each sample."""
        if self.groups == "sides" and not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting: give rwg:groups=cells"
        return self.decline_groups(dataset)

    def groups_of(self, task: Task) -> Tensor:
        """The (label, bias) groups, or the two sides."""
        if self.groups == "sides":
            return task.conflicting[:, 0].long()
        return task.y * (int(task.bias.max()) + 1) + task.bias[:, 0]
