"""Two views: contrastive pretraining without labels, then training with them (SimCLR: Chen et al., ICML 2020).

1. Pretrain an encoder. Two augmented views of each image in a batch make 2B views. Each view must find the other view
   of its image among all other views, by cosine similarity divided by a temperature. The similarity is that of the
   outputs of a projection of two layers, which is then discarded.
2. Train the encoder and a new last layer with cross-entropy.

Step 1 uses no labels, so the encoder has no reason to prefer what predicts them. Both steps use the dataset's recipe,
not SimCLR's own augmentation, batches and optimiser.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, above, at_least


class TwoViews(Method):
    """Contrastive pretraining, then cross-entropy."""

    name = "two-views"
    cost = 3.0
    inputs = ("images",)

    first_epochs: int | None = at_least(1, default=None)  # of step 1; none: as many as step 2 has
    width: int = at_least(2, default=64)  # of the projection's output
    temperature: float = above(0, default=0.5)

    def fit(self, task: Task) -> Predict:
        """The two steps."""
        encoder = task.new_net(head=False)
        n = encoder.n_features
        hidden, projection = task.new_head(n, n), task.new_head(n, self.width)
        nets = {"encoder": encoder, "hidden": hidden, "projection": projection}
        task.train(nets, self.contrast, views=2, epochs=self.first_epochs)
        task.train({"encoder": encoder, "head": task.new_head(n, task.n_classes)}, self.loss, predict=self.predict)
        return self.predict

    def contrast(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 1: rows i and i + B are the two views of one image."""
        features = nets.encoder.features(batch.views.flatten(0, 1))  # (2B, D)
        z = F.normalize(nets.projection(F.relu(nets.hidden(features))), dim=1)
        row = torch.arange(len(z), device=z.device)
        itself = row[:, None] == row
        similarity = (z @ z.T / self.temperature).masked_fill(itself, -torch.inf)
        return F.cross_entropy(similarity, row.roll(len(z) // 2))  # torch's: these are no labels to smooth

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Step 2."""
        return cross_entropy(self.predict(nets, batch.x), batch.y).mean()

    def predict(self, nets: Nets, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return nets.head(nets.encoder.features(x))
