"""PGD whose biased network is trained for a few epochs: does its bias explain what our PGD lacks at 5 % conflicts?

At 5 %, the biased network in the PGD paper's Table 7 is far more biased than ours after 100 epochs: see "PGD's biased
network" in docs/reproduction.md. All but the length of step 1 is PGD's.
"""

from debiasbench.methods import Predict, Task, at_least
from debiasbench.methods.pgd import PGD


class ShortPGD(PGD):
    """PGD with a short first stage."""

    name = "short-pgd"

    bias_epochs: int = at_least(1, default=3)  # of step 1

    def fit(self, task: Task) -> Predict:
        """The three steps, the first for `bias_epochs`."""
        net = task.new_net()
        task.stage(net, self.biased_loss).run(epochs=self.bias_epochs)  # of the ordinary schedule
        score = self.scored(task, net)
        task.log(score=score)
        task.train(net, self.debiased_loss, sample=score / score.sum(), predict=net, proxy=net)
        return net
