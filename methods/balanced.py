"""RWY, SUBY, RWG, SUBG: balanced data, and nothing else (Idrissi, Arjovsky, Pezeshki, Lopez-Paz; CLeaR 2022).

One network is trained with cross-entropy on data in which all classes (Y) or all groups of label and bias (G) are
equally frequent:
- `rwy`, `rwg`: samples are drawn with replacement, each in proportion to 1 / (size of its class or group);
- `suby`, `subg` (`use=subset`): of each class or group as many samples as the smallest has, drawn once, and no others.

Those with G know the bias of every training sample: oracle baselines, not competitors (tables mark them). Expected by
the paper on Waterbirds, CelebA, MultiNLI and CivilComments: those with G about as good in the worst group as GroupDRO.
Where classes are equally large, as on cmnist5k, those with Y are plain training. Ours: docs/reproduction.md.

Where ours departs: groups without training samples are left out, here as in groupdro. An epoch of a subset has only its
samples, so a subset trains for as many epochs as all data and for fewer steps. `groups=sides` has two groups only,
aligned and conflicting samples: on data with many labels the smallest of all groups is a single sample (cmnist5k), and
what is left of the others with it.
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
        """What is balanced: a number for each training sample, int64 (N,)."""

    def fit(self, task: Task) -> Predict:
        """One network, one stage."""
        group = self.groups_of(task)
        net = task.new_net()
        sample = balancing(group) if self.use == "resample" else task.once(self.subset, group)
        task.train(net, mean_cross_entropy, sample=sample, predict=net)
        return net

    def subset(self, group: Tensor, *, generator: torch.Generator) -> Tensor:
        """How often each sample comes, int64 (N,): once or never; as many of each group, (N,), as the smallest has."""
        sizes = torch.bincount(group)
        order = torch.randperm(len(group), generator=generator, device=group.device)
        order = order[group[order].argsort(stable=True)]  # group by group, and shuffled within each
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
        """Classes."""
        return task.y


class RWG(Balanced):
    """Plain training, with all (label, bias) groups sampled equally often."""

    name = "rwg"
    display = "RWG"
    needs_bias_labels = True
    citation = CITATION
    alias_display = {"subg": "SUBG"}
    aliases = {"subg": {"use": "subset"}}

    groups: str = one_of("cells", "sides", default="cells")  # (label, bias), or aligned and conflicting

    def decline(self, dataset: Dataset) -> str | None:
        """Groups are those of one known bias."""
        if self.groups == "sides" and not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting: give rwg:groups=cells"
        return self.decline_groups(dataset)

    def groups_of(self, task: Task) -> Tensor:
        """Pairs of label and bias, or the two sides."""
        if self.groups == "sides":
            return task.conflicting[:, 0].long()
        return task.y * (int(task.bias.max()) + 1) + task.bias[:, 0]
