"""BAM: bias amplification, then more of its mistakes (Li, Liu, Hu; TMLR 2024).

1. Train a network f for T epochs with the cross-entropy of f(x_i) + amplification b_i, where b_i are C numbers of
   sample i alone, learnt as well, 0 at the start: what f finds hard is memorised in b, and f keeps to the bias.
2. Collect the error set E: the training samples that f alone gets wrong.
3. Go on training the *same* network, without b, on the data with the samples of E repeated mu times.

Where ours departs: the paper goes on in step 3 with what it has, here optimiser and schedule start afresh, as in all
methods of two stages; and it ends at the epoch of smallest difference between the accuracies of the classes on
validation, which is the selection rule class_gap (docs/metrics.md), while the last epoch is the headline here. T is the
recipe's number of epochs unless it is given, and mu is 1 / (conflict ratio), as JTT's lambda_up; in the paper both are
chosen on validation. An empty error set is an error.

The amplification is the paper's (on Waterbirds, with T = 20, mu = 140 and 150 epochs). b has the network's optimiser,
its decay included. How fast it memorises depends on that: by SGD with rate r and batches of B, a visit moves
amplification b_i by about amplification^2 r / B times the error, ten times that with momentum 0.9.

Expected in the worst group of Waterbirds: about JTT's or some points above it (the paper). Ours on cmnist5k, where
the amplification hardly matters from 0.3 to 50: docs/reproduction.md.
"""

from torch import Tensor

from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Batch, Dataset, Method, Nets, Predict, State, Task, at_least
from debiasbench.search import choice, log_uniform


class BAM(Method):
    """Bias amplification: auxiliary variables memorise hard samples; the network's mistakes are then upsampled."""

    name = "bam"
    display = "BAM"
    gives_proxies = True
    citation = """@article{li2024bam,
  title={Bias Amplification Enhances Minority Group Performance},
  author={Li, Gaotang and Liu, Jiarui and Hu, Wei},
  journal={Transactions on Machine Learning Research}, year={2024}}"""

    search = {
        "amplification": log_uniform(5, 500, source="chosen here: a factor of ten around the published value"),
        "mu": choice(
            None, 5, 20, 50, 140, source="chosen here: none, as by default, and up to the paper's of Waterbirds"
        ),
    }

    amplification: float = at_least(0, default=50.0)  # lambda in the paper; 0: an error set like JTT's
    T: int | None = at_least(1, default=None)  # epochs of step 1; none: the recipe's
    mu: int | None = at_least(1, default=None)  # none: 1 / (conflict ratio of the dataset), rounded

    def decline(self, dataset: Dataset) -> str | None:
        """1 / ratio must exist, unless mu is given."""
        if self.mu is None and not dataset.conflict_ratio:
            ratio = dataset.conflict_ratio
            reason = "unknown" if ratio is None else f"{ratio:g}"
            return f"mu is 1 / (conflict ratio), and the ratio of {dataset.name} is {reason}: give bam:mu="
        return None

    def relative_cost(self, dataset: Dataset) -> float:
        """Step 1, and step 3 with the copies of E, which is what conflicts if E is what it should be."""
        ratio, epochs = dataset.conflict_ratio or 0.04, dataset.own_recipe.epochs
        return (self.T or epochs) / epochs + 1 + (self.mu or 1 / ratio) * ratio

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        net = task.new_net()
        memory = task.new_parameter(task.n_samples, task.n_classes)
        task.stage({"net": net, "memory": memory}, self.amplified_loss).run(epochs=self.T)
        wrong = task.each(lambda x, y: net(x).argmax(1) != y)
        if not wrong.any():
            raise RuntimeError("The error set of BAM is empty: raise its amplification, or lower T.")
        task.log(selected=wrong)
        mu = self.mu or round(1 / task.conflict_ratio)  # known, or the dataset was declined
        task.train(net, mean_cross_entropy, sample=1 + (mu - 1) * wrong.long(), predict=net, proxy=net)
        return net

    def amplified_loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 1: cross-entropy with each sample's own vector."""
        own = self.amplification * nets.memory.value[batch.index]
        return cross_entropy(nets.net(batch.x) + own, batch.y).mean()
