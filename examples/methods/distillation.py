"""Distillation: follow a teacher, less confidently where the bias suffices (Utama, Moosavi, Gurevych; ACL 2020).

1. Train a teacher with cross-entropy.
2. Train a biased network with generalised cross-entropy (GCE), which favours what is easy: the bias.
3. Train a student to predict the teacher's probabilities, flattened: p_j^(1 - beta), normalised, where beta is the
   biased network's probability of the label. Where beta is 0, the student follows the teacher; where it is 1, the
   student learns to be unsure.

Teacher and biased network are frozen in step 3, and see the same images as the student. The authors' biased model uses
known, hand-made features of the bias; ours is that of LfF and PGD. The authors call the method confidence
regularisation.
"""

from functools import partial

from torch import Tensor

from debiasbench.losses import mean_cross_entropy, mean_gce
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, between
from debiasbench.recipe import Recipe


class Distillation(Method):
    """A student that learns from a teacher and a biased network."""

    name = "distillation"
    cost = 3.5

    alpha: float = between(0, 1, default=0.7)  # exponent of GCE in step 2

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """The student does not learn from labels, so there are none to smooth."""
        return (
            "its student learns from a teacher, not from labels: it trains with label_smoothing=0"
            if recipe.label_smoothing
            else None
        )

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        teacher, biased, student = task.new_net(), task.new_net(), task.new_net()
        task.train(teacher, mean_cross_entropy, reuse=True)
        task.train(biased, partial(mean_gce, alpha=self.alpha, form="paper"), reuse=True)
        task.train(student, self.loss, frozen={"teacher": teacher, "biased": biased}, predict=student)
        return student

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 3: cross-entropy with the flattened probabilities."""
        beta = nets.biased(batch.x).softmax(1).gather(1, batch.y[:, None])  # (B, 1)
        target = ((1 - beta) * nets.teacher(batch.x).log_softmax(1)).softmax(1)  # (B, C)
        return -(target * nets.net(batch.x).log_softmax(1)).sum(1).mean()
