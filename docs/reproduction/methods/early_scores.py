"""PGD with the scores of a biased network after a few epochs; step 3 goes on from one that has trained to the end.

A control for `short-pgd`: there, a short step 1 changes both the scores and the weights from which step 3 goes on. Here
only the scores change.
"""

from debiasbench.methods import Predict, Task, at_least
from debiasbench.methods.pgd import PGD


class EarlyScores(PGD):
    """PGD with the scores of a biased network that was trained for a few epochs."""

    name = "early-scores"

    score_epochs: int = at_least(1, default=3)  # of the network that gives the scores

    def fit(self, task: Task) -> Predict:
        """Step 1 twice, in full and short; scores from the short one, step 3 from the full one."""
        net = task.new_net()
        task.train(net, self.biased_loss, reuse=True)
        short = task.new_net()
        task.stage(short, self.biased_loss).run(epochs=self.score_epochs)  # of the ordinary schedule
        score = self.scored(task, short)
        task.log(score=score)
        task.train(net, self.debiased_loss, sample=score / score.sum(), predict=net)
        return net
