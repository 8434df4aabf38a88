"""SelecMix: mix pairs of samples that contradict the bias (Hwang, Lee, Kwak, Oh, Teney, Kim, Zhang; NeurIPS 2022).

A biased encoder and a network learn together. In each step
1. the encoder is trained with a supervised contrastive loss whose every pair is weighted by its own probability to the
   power q: as in generalised cross-entropy, what is easy counts most, which is the bias;
2. each sample gets a partner from the batch that contradicts its bias: of its label and least similar to it in the
   encoder's features, or of another label and most similar;
3. the network is trained with cross-entropy on (lam / 2) x + (1 - lam / 2) x', lam ~ Beta(1, 1), and the label of the
   partner x', which is the greater part.

Ours: a fair coin for each sample says which of the two kinds of partner it gets, and the encoder has no projection
head. Temperature and q are not tuned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Beta

from debiasbench.losses import cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, above, at_least


class SelecMix(Method):
    """Mixing with a partner that contradicts the bias."""

    name = "selecmix"
    cost = 2.0
    inputs = ("images",)  # token numbers cannot be mixed

    q: float = at_least(0, default=0.7)  # exponent of a pair's probability; 0 is the plain contrastive loss
    temperature: float = above(0, default=0.1)

    def fit(self, task: Task) -> Predict:
        """One stage with both networks, whose noise is declared."""
        nets = {"biased": task.new_net(head=False), "net": task.new_net()}
        task.train(nets, self.loss, noise={"lam": Beta(1.0, 1.0), "coin": Bernoulli(0.5)}, predict=nets["net"])
        return nets["net"]

    def loss(self, nets: Nets, batch: Batch, state: State) -> Tensor:
        """Steps 1 to 3."""
        features = F.normalize(nets.biased.features(batch.x), dim=1)
        similarity = features @ features.T  # (B, B)
        same = batch.y[:, None] == batch.y  # (B, B)
        contrast = self.contrast(similarity, same)

        unlike = similarity.masked_fill(~same, torch.inf).argmin(1)
        alike = similarity.masked_fill(same, -torch.inf).argmax(1)
        partner = torch.where(batch.coin > 0.5, unlike, alike)

        part = batch.lam[:, None, None, None] / 2
        mixed = part * batch.x + (1 - part) * batch.x[partner]
        return contrast + cross_entropy(nets.net(mixed), batch.y[partner]).mean()

    def contrast(self, similarity: Tensor, same: Tensor) -> Tensor:
        """Step 1: -p^q log p of each sample and its positives, p among all others, averaged over both."""
        alone = torch.eye(len(same), dtype=torch.bool, device=same.device)
        positive = (same & ~alone).to(similarity.dtype)
        log_p = (similarity / self.temperature).masked_fill(alone, -torch.inf).log_softmax(1).masked_fill(alone, 0.0)
        pairs = -(self.q * log_p).exp().detach() * log_p
        return ((positive * pairs).sum(1) / positive.sum(1).clamp_min(1)).mean()
