"""CNC: correct-n-contrast (Zhang, Sohoni, Zhang, Finn, Ré; ICML 2022).

1. Train a first network for a few epochs, so that it follows the bias. Its predictions stand for the bias.
2. Train a new network on sets of samples. An anchor is a sample that the first network predicts correctly. Its
   positives have the same label but another prediction; its negatives have other labels but the same prediction. With s
   for the cosine similarity divided by a temperature, the loss of an anchor is the mean over its positives of
   -log(e^s / (sum over positives and negatives of e^s)).
3. The whole loss is contrastive_weight times that, plus (1 - contrastive_weight) times cross-entropy on all samples of
   the sets.

A slice is the samples of one label that are predicted correctly. As in the released code, sets take their anchors from
each slice in turn, and each sample is an anchor at most once in an epoch. So all slices provide equally many anchors,
and an epoch ends at the latest with the smallest slice.

Otherwise the default follows the paper: predictions are argmaxima, the network trains in train mode, gradients are
zeroed at each step, and the weights of the two terms sum to 1. `preset=official` has the second, swapped term of the
released code: the first positive is the anchor, the anchors are its positives, and its negatives are correctly
predicted samples of the class that the first positive is taken for. This makes the contrastive weight 1.5, beside 0.25
for cross-entropy. If every sample of a class is predicted correctly, any of them can be a positive; then the second
negatives are of the anchor's own class, as in the released code.

Length: by default an epoch has about as many samples as the data, as for every method here. `epoch=anchors` counts as
the released code does: `anchor_fraction` of the smallest slice gives one set each, which on Colored MNIST makes 85 or
128 times as many samples. With it, `preset=official` trains for the number of epochs in the authors' README (3 on
Colored MNIST, 15 on CelebA, 10 on CivilComments), with their optimisers and no schedule (CivilComments: linear), also
in step 1.

Both the default and `preset=official` depart from the released code:
- By default, it makes slices with UMAP and a mixture model, and matches them to classes by trying all permutations.
  This is impossible with ten classes.
- Its sets shrink to the smallest number of positives of a class and negatives of a slice. Ours keep their size, and
  samples are drawn with replacement where there are fewer. A slice without an anchor stops its training; ours leaves
  that slice out.
- Without second negatives, its cross-entropy counts the anchors twice. All published commands have second negatives.
- It keeps the encoder in eval mode, and accumulates the gradients of the classifier over an epoch.
- It runs one set after the other, and sums the gradients of `sets` of them in each step: 32 (Colored MNIST, CelebA) or
  128 (CivilComments). Here the sets of a step go through the network together, because a set is mostly of one label:
  batch normalisation by the statistics of single sets gave a network that fails in eval mode (24 % on cmnist5k). Where
  32 sets would need too much memory, `sets` is as many as fill a batch of the recipe. On CelebA this is a single set,
  although its ResNet has batch normalisation too. This was not tried; `sets=4` needs four times the memory.
- Its step 1 has weight decay 0.0005 on Colored MNIST; for the other datasets, its first network is a download.

Settings from the authors' README: `n_each` 32, temperature 0.05 and 32 sets for Colored MNIST (there the ten digits
make five classes, and the network is another); 64 and 0.05 for CelebA; 16 and 0.1 for CivilComments. On cmnist5k 32
sets of 32 would be most of an epoch, so it has 8 sets of 16; the 8 was chosen on a split with known bias, with version
2 (docs/reproduction.md). For other datasets nothing is published, and ours are not tuned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, above, at_least, between, one_of
from debiasbench.recipe import Recipe
from debiasbench.search import log_uniform, uniform, whole

# the authors' README
OFFICIAL_MNIST = {
    "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 32, "epochs": 3,
    "schedule": "constant", "augment": False,
}  # fmt: skip
OFFICIAL_CELEBA = {
    "optimizer": "sgd", "learning_rate": 1e-5, "momentum": 0.9, "weight_decay": 0.1, "epochs": 15,
    "schedule": "constant",
}  # fmt: skip
OFFICIAL_COMMENTS = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.01, "epochs": 10}


class CNC(Method):
    """Contrastive learning between samples that a first network gets right and wrong."""

    name = "cnc"
    display = "CNC"
    version = 3  # version 1: one set in a step; version 2: anchors drawn by frequency
    cost = 1.2
    gives_proxies = True
    citation = """@inproceedings{zhang2022cnc,
  title={Correct-N-Contrast: A Contrastive Approach for Improving Robustness to Spurious Correlations},
  author={Zhang, Michael and Sohoni, Nimit S and Zhang, Hongyang R and Finn, Chelsea and R{\\'e}, Christopher},
  booktitle={International Conference on Machine Learning}, year={2022}}"""
    presets = {
        "official": {
            "two_sided": True, "epoch": "anchors",
            "recipes": {
                "cmnist": OFFICIAL_MNIST, "cmnist5k": OFFICIAL_MNIST, "celeba": OFFICIAL_CELEBA,
                "civilcomments": OFFICIAL_COMMENTS,
            },
        },
    }  # fmt: skip
    by_dataset = {
        "cmnist": {"n_each": 32, "sets": 32}, "cmnist5k": {"sets": 8},
        "celeba": {"n_each": 64, "anchor_fraction": 0.1}, "civilcomments": {"temperature": 0.1, "anchor_fraction": 0.1},
    }  # fmt: skip
    tuned = {"cmnist5k": {"sets": 8}}

    search = {
        "first_epochs": whole(1, 10, source="chosen here: up to twice the default"),
        "temperature": log_uniform(0.01, 0.5, source="chosen here: a factor of ten around the published value"),
        "contrastive_weight": uniform(0.1, 0.9, source="chosen here: both terms count"),
    }

    first_epochs: int = at_least(1, default=5)  # of step 1
    n_each: int = at_least(2, default=16)  # anchors in a set, and as many positives and negatives
    temperature: float = above(0, default=0.05)
    contrastive_weight: float = between(0, 1, default=0.75)
    two_sided: bool = False
    sets: int | None = at_least(1, default=None)  # in a step; none: as many as fill a batch of the recipe
    epoch: str = one_of("data", "anchors", default="data")  # whether all data or the anchors determine its length
    anchor_fraction: float = between(0, 1, default=1.0)  # of the smallest slice in an epoch; of epoch=anchors

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """A batch cannot be split, because anchors are compared with positives and negatives of the same set."""
        return self.decline_accumulation(recipe, f"accumulate={recipe.accumulate} would take its sets of samples apart")

    def relative_cost(self, dataset: Dataset) -> float:
        """Step 1, and the second training; with epoch=anchors, as if all slices were equally large."""
        second = self.anchor_fraction * self.n_parts * self.n_each if self.epoch == "anchors" else 1
        return second + self.first_epochs / dataset.own_recipe.epochs

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        first = task.new_net()
        task.stage(first, mean_cross_entropy).run(epochs=self.first_epochs)
        predicted = task.each(lambda x, _: first(x).argmax(1))
        wrong = predicted != task.y
        if not wrong.any():
            raise RuntimeError(
                f"CNC's first network gets everything right after {self.first_epochs} epochs: there is nothing to "
                "contrast. Lower first_epochs."
            )
        task.log(selected=wrong)
        sets = self.sets or max(1, round(task.recipe.batch_size / (self.n_parts * self.n_each)))
        fraction = self.anchor_fraction if self.epoch == "anchors" else None
        layout = Layout(task.y.cpu(), predicted.cpu(), self.n_each, n_parts=self.n_parts, sets=sets, fraction=fraction)
        net = task.new_net()
        task.train(net, self.loss, sample=layout, predict=net, proxy=first)
        return net

    @property
    def n_parts(self) -> int:
        """How many parts a set has: anchors, positives, negatives; if two-sided, negatives of the first positive."""
        return 4 if self.two_sided else 3

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 3 on a batch of sets, one behind the other, each of `n_parts` times `n_each` samples."""
        features = nets.net.features(batch.x).float()
        # similarities of 8 bits are rough after division by a temperature
        with torch.autocast(features.device.type, enabled=False):
            return self.loss_of(nets.net.head(features), features, batch.y)

    def loss_of(self, logits: Tensor, features: Tensor, y: Tensor) -> Tensor:
        """The weighted sum of the two terms, from logits (B, C), features (B, D) and labels y (B,)."""
        value = cross_entropy(logits, y).mean()
        parts = F.normalize(features, dim=1).unflatten(0, (-1, self.n_parts, self.n_each)).unbind(1)  # (S, n, D) each
        anchors, positives, negatives = parts[:3]
        contrast = contrastive(anchors[:, 0], positives, negatives, self.temperature)
        if self.two_sided:
            contrast = contrast + contrastive(positives[:, 0], anchors, parts[3], self.temperature)
        return self.contrastive_weight * contrast.mean() + (1 - self.contrastive_weight) * value


def contrastive(anchor: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """-mean over positives of log(e^s / sum of all e^s), for unit vectors: (S, D), (S, P, D), (S, M, D) -> (S,)."""
    similar, other = ((samples @ anchor[:, :, None])[..., 0] / temperature for samples in (positives, negatives))
    return (torch.logsumexp(torch.cat([similar, other], 1), 1, keepdim=True) - similar).mean(1)


class Layout:
    """Sets of samples as batches, with anchors from each slice in turn.

    When called with a generator, it returns the batches of an epoch as indices. Each batch has `sets` sets. A set has
    `n_each` anchors of one label, as many positives and negatives, and with four parts as many negatives of the first
    positive.

    Args:
        y: labels, int64 (N,).
        predicted: classes that the first network predicts, int64 (N,).
        n_each: number of samples in each part.
        n_parts: 3, or 4 with the negatives of the first positive.
        sets: number of sets in each batch.
        fraction: fraction of the smallest slice whose samples become the first anchor of a set in each epoch. None: so
            many that an epoch has about as many samples as the data, and at most the whole smallest slice.
    """

    def __init__(
        self,
        y: Tensor,
        predicted: Tensor,
        n_each: int,
        *,
        n_parts: int,
        sets: int = 1,
        fraction: float | None = None,
    ) -> None:
        self.y, self.predicted, self.n_each, self.n_parts, self.sets = y, predicted, n_each, n_parts, sets
        right = predicted == y
        labels = range(1 + int(torch.maximum(y, predicted).max()))
        own, taken_for = [y == label for label in labels], [predicted == label for label in labels]
        rightly = [indices(one & right) for one in own]
        self.slices = [anchors for anchors in rightly if len(anchors)]
        self.anchors = Pools(rightly)
        self.positives = Pools([indices(one & ~right, instead=one) for one in own])
        others = [indices(~one) for one in own]
        self.negatives = Pools([indices(~one & taken, instead=~one) for one, taken in zip(own, taken_for, strict=True)])
        self.second = Pools(rightly + others)
        smallest = min(len(anchors) for anchors in self.slices)
        if fraction is None:
            self.n_rounds = min(smallest, round(len(y) / (n_parts * n_each * len(self.slices))))
        else:
            self.n_rounds = round(fraction * smallest)
        self.n_rounds = max(1, self.n_rounds)  # each round has one set for each slice

    @property
    def n_sets(self) -> int:
        """The number of sets in an epoch."""
        return self.n_rounds * len(self.slices)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.n_sets // self.sets)

    def __call__(self, generator: torch.Generator) -> list[Tensor]:
        """The batches of one epoch."""
        chosen = [
            anchors[torch.randperm(len(anchors), generator=generator)[: self.n_rounds]] for anchors in self.slices
        ]
        anchor = torch.stack(chosen, 1).flatten()  # one from each slice in turn
        label = self.y[anchor]
        positives = self.positives.drawn(label, self.n_each, generator)
        parts = [
            anchor[:, None],
            self.anchors.drawn(label, self.n_each - 1, generator),
            positives,
            self.negatives.drawn(label, self.n_each, generator),
        ]
        if self.n_parts == 4:  # correctly predicted samples of the class that the first positive is taken for
            slice_of_first = self.predicted[positives[:, 0]]
            n_labels = len(self.anchors.size)
            pool = torch.where(self.anchors.size[slice_of_first] > 0, slice_of_first, n_labels + label)
            parts.append(self.second.drawn(pool, self.n_each, generator))
        return [some.flatten() for some in torch.cat(parts, 1).split(self.sets)]


def indices(members: Tensor, instead: Tensor | None = None) -> Tensor:
    """The indices of the members, bool (N,), or of `instead` if there are no members."""
    return torch.nonzero(members if instead is None or members.any() else instead)[:, 0]


class Pools:
    """Lists of indices, to draw from for many sets at once; `size`, int64 (P,), is the length of each list."""

    def __init__(self, pools: list[Tensor]) -> None:
        self.all = torch.cat(pools)
        self.size = torch.tensor([len(pool) for pool in pools])
        self.start = self.size.cumsum(0) - self.size

    def drawn(self, pool: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` indices from each given pool, int64 (S,) -> (S, n); with replacement only if a pool has fewer.

        Drawing without replacement uses Floyd's algorithm: sample k is one of the first size - n + k + 1, or the last
        of these if it is already taken. Then the samples get a random order. It takes n steps, whatever the size.
        """
        size = self.size[pool]
        places = torch.full((len(pool), n), -1)
        for k in range(n):
            last = size - n + k
            place = (torch.rand(len(pool), generator=generator, dtype=torch.float64) * (last + 1)).long()
            taken = (places == place[:, None]).any(1)
            places[:, k] = torch.where(taken, last, place)
        order = torch.rand(len(pool), n, generator=generator).argsort(1)
        again = (torch.rand(len(pool), n, generator=generator, dtype=torch.float64) * size[:, None]).long()
        places = torch.where(size[:, None] >= n, places.gather(1, order), again)
        return self.all[self.start[pool][:, None] + places]
