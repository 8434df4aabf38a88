"""GCE: the biased network of PGD, trained alone and evaluated after every epoch.

No debiasing: this shows when in its training the first network of PGD (Ahn, Kim, Yun; ICLR 2023, Algorithm 1, step 1)
is how biased. LfF and Disen train a network with the same loss beside another.
"""

from torch import Tensor

from debiasbench.losses import mean_gce
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, between, one_of


class GCE(Method):
    """A network trained with generalised cross-entropy, which favours what is easy."""

    name = "gce"

    alpha: float = between(0, 1, default=0.7)  # exponent; 0 is cross-entropy
    gce_form: str = one_of("paper", "official", default="paper")

    def fit(self, task: Task) -> Predict:
        """One network, one stage."""
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """GCE of the batch."""
        return mean_gce(nets, batch, state, alpha=self.alpha, form=self.gce_form)
