"""DFR: deep feature reweighting, last-layer retraining (Kirichenko, Izmailov, Wilson; ICLR 2023).

The method knows the labels and the bias of every validation sample, and trains on these samples. So it is an oracle
baseline and not a competitor (tables mark it), and no rule that selects on validation is applied to it.
1. Train a network with cross-entropy.
2. Fit a new last layer to its features of the validation samples, so that all (label, bias) groups weigh the same:
   a) Standardise the features by the mean and standard deviation of the training samples' features.
   b) Draw a subset with equally many samples of each group, as many as the smallest has, and fit a logistic regression
      with an L1 penalty to it (liblinear; with more than two classes, each against the rest). Do this twenty times, and
      average the weights.
   c) Choose the strength of the penalty among seven: fit each to a balanced subset of one half of the validation
      samples, and take the one with the best accuracy in the worst group of the other half; of equals, the weakest
      penalty. Here, features are standardised by that subset.

This is the authors' procedure with the defaults of their script. Where ours departs: halves are drawn within each
group, so that every group is in both; groups without any validation sample are left out, where their script stops.

With tens of groups and a few conflicting samples, this procedure is impossible: a group of one sample has no halves,
and small subsets lack classes. That is an error, and its message says what to give instead. `groups=sides` has two
groups, aligned and conflicting samples. `strength=` leaves out c. `balance=weights` is our substitute for b and c: one
logistic regression for all classes at once, on all samples, with groups balanced by weights and an L2 penalty of
`strength` (1 if none is given). Datasets of ten classes use it by default. Version 1 had only this substitute, and
standardised by the validation samples. On three synthetic sets with few groups, some of them small, the authors'
procedure is 4 to 19 points better in the worst group.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from debiasbench.errors import BenchmarkError
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Dataset, Method, Predict, Task, above, one_of
from debiasbench.samples import Samples

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # from the authors' script, in its order
N_SUBSETS = 20
Layer = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,)


class DFR(Method):
    """Retrain the last layer on group-balanced validation data."""

    name = "dfr"
    display = "DFR"
    version = 2
    needs_bias_labels = True
    trains_on_validation = True
    citation = """@inproceedings{kirichenko2023dfr,
  title={Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations},
  author={Kirichenko, Polina and Izmailov, Pavel and Wilson, Andrew Gordon},
  booktitle={International Conference on Learning Representations}, year={2023}}"""
    by_dataset = {
        name: {"balance": "weights"}  # up to a hundred groups, most of them with one validation sample or none
        for name in ("cmnist5k", "cmnist", "ccifar", "tiny")
    }

    groups: str = one_of("cells", "sides", default="cells")  # cells: (label, bias); sides: aligned and conflicting
    balance: str = one_of("subsets", "weights", default="subsets")
    strength: float | None = above(0, default=None)  # inverse of the penalty, scikit-learn's C; none: see step 2c

    def decline(self, dataset: Dataset) -> str | None:
        """The dataset must have one bias, which is known for each sample."""
        if self.groups == "sides" and not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting: give dfr:groups=cells"
        return self.decline_groups(dataset)

    def fit(self, task: Task) -> Predict:
        """The two steps."""
        valid = task.validation
        group = self.groups_of(valid)
        self.check_groups(valid.y, group, task.n_classes)  # before anything trains
        net = task.new_net()
        task.train(net, mean_cross_entropy, reuse=True)
        features = task.each(lambda x, _: net.features(x), split="valid")
        of_train = task.each(lambda x, _: net.features(x))
        weight, bias, strength = task.once(self.last_layer, features, valid.y, group, of_train)
        task.log(strength=strength)
        net.head.load_state_dict({"weight": weight, "bias": bias})
        task.evaluate(net, {"net": net})
        return net

    def groups_of(self, samples: Samples) -> Tensor:
        """The group of each sample, int64 (N,)."""
        if self.groups == "sides":
            return samples.conflicting[:, 0].long()
        return samples.y * (int(samples.bias.max()) + 1) + samples.bias[:, 0]

    def check_groups(self, y: Tensor, group: Tensor, n_classes: int) -> None:
        """Refuse validation samples to which the requested last layer cannot be fitted: y, group (N,).

        Raises:
            BenchmarkError: a class has no sample, or a group is too small for halves.
        """
        if len(y.unique()) < n_classes:
            raise BenchmarkError("Some classes have no validation sample: DFR cannot fit a last layer for them.")
        sizes = group.unique(return_counts=True)[1]
        if self.balance == "subsets" and self.strength is None and int(sizes.min()) < 2:
            sides = "dfr:groups=sides, " if self.groups == "cells" else ""
            raise BenchmarkError(
                f"{int((sizes < 2).sum())} of the {len(sizes)} groups have a single validation sample, so the strength "
                f"of DFR's penalty cannot be chosen on halves: give {sides}dfr:balance=weights or dfr:strength=0.1."
            )

    def last_layer(
        self, features: Tensor, y: Tensor, group: Tensor, of_train: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step 2, from validation features (N, D), labels and groups (N,), and training features (M, D).

        Returns the weight (C, D) and bias (C,) of the layer, and the strength of the penalty, ().
        """
        from sklearn.preprocessing import StandardScaler

        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator, device=generator.device)))
        x, labels, groups = features.double().cpu().numpy(), y.cpu().numpy(), group.cpu().numpy()
        scaler = StandardScaler().fit(of_train.double().cpu().numpy())
        scaled = scaler.transform(x)
        if self.balance == "weights":
            strength = self.strength or 1.0
            slope, start = weighted_regression(scaled, labels, groups, strength)
        else:
            strength = self.strength or chosen_strength(x, labels, groups, rng)
            subsets = [balanced_subset(labels, groups, rng) for _ in range(N_SUBSETS)]
            layers = [sparse_regression(scaled[rows], labels[rows], strength, rng) for rows in subsets]
            slope, start = (np.mean(parts, axis=0) for parts in zip(*layers, strict=True))
        slope = slope / scaler.scale_
        start = start - slope @ scaler.mean_
        return torch.from_numpy(slope).to(features), torch.from_numpy(start).to(features), torch.tensor(strength)


def members(group: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The row indices of each group in random order; group is (N,)."""
    for name in np.unique(group):
        yield rng.permutation(np.flatnonzero(group == name))


def balanced_subset(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row indices with equally many samples of each group, from labels and groups (N,).

    Raises:
        BenchmarkError: the subset lacks a class.
    """
    found = list(members(group, rng))
    smallest = min(map(len, found))
    rows = np.concatenate([some[:smallest] for some in found])
    if len(np.unique(y[rows])) < len(np.unique(y)):
        raise BenchmarkError(
            f"A subset with {smallest} of each of the {len(found)} groups of validation samples lacks whole classes: "
            "DFR cannot balance by subsets here, give dfr:balance=weights."
        )
    return rows


def chosen_strength(x: np.ndarray, y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> float:
    """Step 2c: the strength that is best for the worst group of a half; features (N, D), labels and groups (N,)."""
    from sklearn.preprocessing import StandardScaler

    parts = [np.split(rows, [len(rows) // 2]) for rows in members(group, rng)]
    held_out, rest = (np.concatenate(half) for half in zip(*parts, strict=True))
    rows = rest[balanced_subset(y[rest], group[rest], rng)]
    scaler = StandardScaler().fit(x[rows])
    seen, held = scaler.transform(x[rows]), scaler.transform(x[held_out])

    def worst(strength: float) -> float:
        slope, start = sparse_regression(seen, y[rows], strength, rng)
        right = np.unique(y)[(held @ slope.T + start).argmax(1)] == y[held_out]
        return min(float(right[group[held_out] == name].mean()) for name in np.unique(group))

    return max(STRENGTHS, key=worst)  # of equals, the first


def sparse_regression(x: np.ndarray, y: np.ndarray, strength: float, rng: np.random.Generator) -> Layer:
    """Logistic regression with an L1 penalty, each class against the rest; x (N, D), y (N,)."""
    from sklearn import __version__
    from sklearn.linear_model import LogisticRegression

    # scikit-learn 1.8 changed how a penalty is named
    lasso = {"penalty": "l1"} if tuple(map(int, __version__.split(".")[:2])) < (1, 8) else {"l1_ratio": 1.0}
    labels = np.unique(y)
    layers = []
    for label in labels[1:] if len(labels) == 2 else labels:
        seed = int(rng.integers(2**31))  # liblinear visits features in random order
        model = LogisticRegression(C=strength, solver="liblinear", max_iter=1000, random_state=seed, **lasso)
        model.fit(x, y == label)
        layers.append((model.coef_[0], model.intercept_[0]))
    slope, start = (np.stack(part) for part in zip(*layers, strict=True))
    return of_two_classes(slope, start)


def weighted_regression(x: np.ndarray, y: np.ndarray, group: np.ndarray, strength: float) -> Layer:
    """Logistic regression for all classes, with an L2 penalty and groups of equal weight; x (N, D), y, group (N,)."""
    from sklearn.linear_model import LogisticRegression

    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    weight = len(group) / len(counts) / counts[place]
    fitted = LogisticRegression(C=strength, max_iter=5000).fit(x, y, weight)
    return of_two_classes(fitted.coef_, fitted.intercept_)


def of_two_classes(slope: np.ndarray, start: np.ndarray) -> Layer:
    """One row for each class; for two classes, scikit-learn gives one row only: the second class against the first."""
    if len(slope) > 1:
        return slope, start
    return np.concatenate([0 * slope, slope]), np.concatenate([0 * start, start])
