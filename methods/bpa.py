"""BPA: unsupervised learning of debiased representations with pseudo-attributes (Seo, Lee, Han; CVPR 2022).

1. Train a base network with cross-entropy.
2. Cluster its features within each class, by k-means with cosine distance. The clusters stand for the unknown bias.
3. Train a new network. Each sample is weighted by N / N_k times the mean loss of its cluster, divided by the sum of all
   clusters' mean losses. So small and hard clusters weigh more.

Step 3 keeps the last loss of each sample. From these losses, it refreshes the clusters' mean losses when an epoch
begins and after every ten steps of the epoch. Until each sample has been seen once, the weights are N / N_k. The
weights of a batch have mean 1.

The default is the authors' code. Its smoothing has no memory, because it reads back the value it has just written: w
becomes w exp(0.05 w), normalised. `preset=paper` has the moving average that the paper describes, over the clusters'
weights; the new value counts 0.3. Where ours departs: k-means is scikit-learn's, on features of unit length.

Version 1 counted the ten steps from the beginning of the stage, and it added up the losses of a cluster in an order
that is not fixed on CUDA.
"""

import torch
from torch import Tensor

from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Batch, Method, Nets, Predict, State, Task, at_least, between, one_of
from debiasbench.search import whole

REFRESH = 10  # steps


class BPA(Method):
    """Bias pseudo-attributes: training reweighted by feature clusters."""

    name = "bpa"
    display = "BPA"
    version = 2
    cost = 2.0
    gives_proxies = True
    citation = """@inproceedings{seo2022bpa,
  title={Unsupervised Learning of Debiased Representations with Pseudo-Attributes},
  author={Seo, Seonguk and Lee, Joon-Young and Han, Bohyung},
  booktitle={Conference on Computer Vision and Pattern Recognition}, year={2022}}"""
    presets = {"paper": {"smoothing": "average"}}

    search = {"clusters": whole(2, 32, log=True, source="chosen here: a factor of four around the published value")}

    clusters: int = at_least(2, default=8)  # in each class
    smoothing: str = one_of("exponential", "average", default="exponential")
    momentum: float = between(0, 1, default=0.3)  # of smoothing=average: how much the new value counts

    def fit(self, task: Task) -> Predict:
        """The three steps."""
        base = task.new_net()
        task.train(base, mean_cross_entropy, reuse=True)
        features = task.each(lambda x, _: base.features(x))
        cluster = task.once(self.cluster, features, task.y)
        size = torch.bincount(cluster, minlength=self.clusters * task.n_classes)
        net = task.new_net()
        state = {
            "last_loss": task.column(float("nan")), "cluster": cluster, "members": members_of(cluster, len(size)),
            "epoch": torch.tensor(0), "epoch_step": torch.tensor(0),
            "weight": torch.where(size > 0, task.n_samples / size.clamp_min(1), 0.0),
        }  # fmt: skip
        state = task.train(net, self.loss, state=state, predict=net, proxy=base)
        task.log(score=state["weight"][cluster])
        return net

    def cluster(self, features: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Step 2: the cluster of each sample, int64 (N,), numbered `clusters` y + index within the class."""
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        unit = torch.nn.functional.normalize(features.float(), dim=1).cpu().numpy()
        labels = y.cpu()
        result = torch.empty_like(labels)
        for label in labels.unique().tolist():
            members = torch.nonzero(labels == label)[:, 0]
            n_clusters = min(self.clusters, len(members))
            with threadpool_limits(1):  # several threads would add in no fixed order
                found = KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(unit[members.numpy()])
            result[members] = self.clusters * label + torch.from_numpy(found).long()
        return result.to(y.device)

    def loss(self, nets: Nets, batch: Batch, state: State) -> tuple[Tensor, State]:
        """Step 3; the weights do not yet include the losses of this batch."""
        losses = cross_entropy(nets.net(batch.x), batch.y)
        begins = batch.epoch != state["epoch"]
        weight = torch.where(begins, self.refreshed(state), state["weight"])
        n_done = torch.where(begins, 0, state["epoch_step"]) + 1
        state = {**state, "epoch": batch.epoch, "epoch_step": n_done, "weight": weight}
        value = (self.normalised(weight[state["cluster"][batch.index]]) * losses).mean()
        state["last_loss"] = state["last_loss"].index_put((batch.index,), losses.detach().to(state["last_loss"].dtype))
        return value, {**state, "weight": torch.where(n_done % REFRESH == 0, self.refreshed(state), weight)}

    def refreshed(self, state: State) -> Tensor:
        """The clusters' weights (K,) from the last losses; unchanged until every sample has been seen."""
        table, members = state["last_loss"], state["members"]
        there = members >= 0
        size = there.sum(1)
        # gathers and sums along rows, because scatter-add has no fixed order on CUDA
        total = torch.where(there, torch.nan_to_num(table)[members.clamp_min(0)].double(), 0.0).sum(1)
        mean = total / size.clamp_min(1)
        weight = torch.where(size > 0, len(table) / size.clamp_min(1), 0.0) * mean / mean.sum().clamp_min(1e-30)
        weight = weight.to(state["weight"].dtype)
        if self.smoothing == "average":
            weight = self.momentum * weight + (1 - self.momentum) * state["weight"]
        return torch.where(torch.isnan(table).any(), state["weight"], weight)

    def normalised(self, weight: Tensor) -> Tensor:
        """Weights (B,) of mean 1; the authors' smoothing has no memory, and makes large weights a little larger."""
        weight = weight / weight.mean().clamp_min(1e-30)  # mean 0: all clusters of the batch are fitted exactly
        if self.smoothing == "exponential":
            weight = weight * torch.exp(0.05 * weight)
        return weight / weight.mean().clamp_min(1e-30)


def members_of(cluster: Tensor, n_clusters: int) -> Tensor:
    """The samples of each cluster, int64 (K, size of the largest), padded with -1; cluster is int64 (N,)."""
    size = torch.bincount(cluster, minlength=n_clusters)
    order = cluster.argsort(stable=True)
    row = cluster[order]
    place = torch.arange(len(cluster), device=cluster.device) - (size.cumsum(0) - size)[row]
    members = torch.full((n_clusters, int(size.max())), -1, device=cluster.device)
    members[row, place] = order
    return members
