"""BAM: bias amplification, then upsampling of the mistakes (Li, Liu, Hu; TMLR 2024).

1. Train a network f for T epochs with the cross-entropy of f(x_i) + amplification b_i. Each sample i has its own vector
   b_i of C numbers, which starts at 0 and is learnt, too. b memorises what f finds hard, so f keeps to the bias.
2. Collect the error set E: the training samples that f alone, without b, gets wrong.
3. Train the *same* network further, without b, on the data with the samples of E repeated mu times.

Where ours departs: in step 3 the paper continues with the optimiser and schedule of step 1; here both start afresh, as
in all methods with two stages. The paper ends at the epoch where the class accuracies on validation differ least, which
is the selection rule class_gap (docs/metrics.md); the headline here is the last epoch. T is the recipe's number of
epochs unless it is given, and mu is 1 / (conflict ratio), like JTT's lambda_up; the paper chooses both on validation.
An empty error set is an error.

The default amplification is the paper's for Waterbirds, where it comes with T = 20, mu = 140 and 150 epochs. The
network's optimiser also trains b, including weight decay. How fast b memorises depends on this optimiser: with SGD at
rate r and batches of B, each visit moves amplification b_i by about amplification^2 r / B times the error, and by ten
times that with momentum 0.9.

Expected in the worst group of Waterbirds: about as good as JTT, or some points better (the paper). Our results on
cmnist5k, where amplifications from 0.3 to 50 hardly differ: docs/reproduction.md.
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
        """Unless mu is given, the conflict ratio must be known and not 0."""
        if self.mu is None and not dataset.conflict_ratio:
            ratio = dataset.conflict_ratio
            reason = "unknown" if ratio is None else f"{ratio:g}"
            return f"mu is 1 / (conflict ratio), and the ratio of {dataset.name} is {reason}: give bam:mu="
        return None

    def relative_cost(self, dataset: Dataset) -> float:
        """Step 1, and step 3 with the copies of E, assuming that E has exactly the conflicting samples."""
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
        mu = self.mu or round(1 / task.conflict_ratio)  # known, or else the dataset was declined
        task.train(net, mean_cross_entropy, sample=1 + (mu - 1) * wrong.long(), predict=net, proxy=net)
        return net

    def amplified_loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 1: cross-entropy, with each sample's own vector added to its logits."""
        own = self.amplification * nets.memory.value[batch.index]
        return cross_entropy(nets.net(batch.x) + own, batch.y).mean()
