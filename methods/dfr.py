"""DFR: deep feature reweighting, last-layer retraining (Kirichenko, Izmailov, Wilson; ICLR 2023).

Knows the labels and the bias of every validation sample, and trains on them: an oracle baseline, not a competitor
(tables mark it), and no rule that selects on validation chooses for it.
1. Train a network with cross-entropy.
2. Fit a new last layer to its features of the validation samples, in which all groups (label, bias) weigh the same.

Where ours departs from the authors' code: groups are balanced by weights, not by drawing equal subsets ten times and
averaging (with tens of groups and a few conflicting samples a subset would lack whole classes); the penalty is L2 with
a fixed strength, not L1 with one that is chosen on a half of the validation samples.
"""

import torch
from torch import Tensor

from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Dataset, Method, Predict, Task, above, one_of


class DFR(Method):
    """A new last layer from group-balanced validation data."""

    name = "dfr"
    needs_bias_labels = True
    trains_on_validation = True
    citation = """@inproceedings{kirichenko2023dfr,
  title={Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations},
  author={Kirichenko, Polina and Izmailov, Pavel and Wilson, Andrew Gordon},
  booktitle={International Conference on Learning Representations}, year={2023}}"""

    groups: str = one_of("cells", "sides", default="cells")  # (label, bias), or aligned and conflicting
    strength: float = above(0, default=1.0)  # inverse, of the L2 penalty: scikit-learn's C

    def decline(self, dataset: Dataset) -> str | None:
        """Groups are those of one known bias."""
        if self.groups == "sides" and not dataset.defines_conflicts:
            return f"no sample of {dataset.name} is aligned or conflicting: give dfr:groups=cells"
        return self.decline_groups(dataset)

    def fit(self, task: Task) -> Predict:
        """The two steps."""
        net = task.new_net()
        task.train(net, mean_cross_entropy, reuse=True)
        features = task.each(lambda x, _: net.features(x), split="valid")
        valid = task.validation
        if len(valid.y.unique()) < task.n_classes:
            raise RuntimeError("Some classes have no validation sample: DFR cannot fit a last layer for them.")
        cells = valid.y * (int(valid.bias.max()) + 1) + valid.bias[:, 0]
        group = valid.conflicting[:, 0].long() if self.groups == "sides" else cells
        weight, bias = task.once(self.last_layer, features, valid.y, group)
        net.head.load_state_dict({"weight": weight, "bias": bias})
        task.evaluate(net, {"net": net})
        return net

    def last_layer(
        self, features: Tensor, y: Tensor, group: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Step 2: features (N, D), labels and groups (N,) -> weight (C, D) and bias (C,)."""
        from sklearn.linear_model import LogisticRegression

        del generator  # nothing is drawn
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        scaled = ((features - mean) / deviation).double().cpu().numpy()
        _, place, counts = group.unique(return_inverse=True, return_counts=True)
        balanced = (len(group) / len(counts) / counts[place]).double().cpu().numpy()
        fitted = LogisticRegression(C=self.strength, max_iter=5000).fit(scaled, y.cpu().numpy(), balanced)
        slope, start = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
        if len(fitted.classes_) == 2:  # one row: for the second class, against the first
            slope, start = torch.cat([0 * slope, slope]), torch.cat([0 * start, start])
        slope, start = slope.to(features), start.to(features)
        slope = slope / deviation
        return slope, start - slope @ mean
