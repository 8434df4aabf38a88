"""BPA: clusters of features, and weights by the clusters' sizes and last losses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import images, logits_of, plain_loss, replay, samples_of, slow_ce, task_for

from debiasbench.methods import registry as methods

BPA = __import__(methods.get("bpa")[0].__module__, fromlist=["members_of"])


class SlowBPA:
    """Section 4.9 with dictionaries: a refresh after every tenth step of an epoch, and at its end."""

    def __init__(self, cluster, momentum=None):
        self.cluster, self.momentum, self.losses, self.place = cluster, momentum, {}, (0, 0)
        self.weight = {k: len(cluster) / cluster.count(k) for k in set(cluster)}

    def refresh(self):
        if len(self.losses) < len(self.cluster):
            return
        means = {
            k: sum(self.losses[i] for i, of in enumerate(self.cluster) if of == k) / self.cluster.count(k)
            for k in set(self.cluster)
        }
        for k, mean in means.items():
            new = len(self.cluster) / self.cluster.count(k) * mean / sum(means.values())
            old = self.weight[k]
            self.weight[k] = new if self.momentum is None else self.momentum * new + (1 - self.momentum) * old

    def weights(self, index):
        raw = [self.weight[self.cluster[i]] for i in index]
        raw = [one * len(raw) / sum(raw) for one in raw]
        if self.momentum is None:  # as released: what it reads as the old value is the new one
            raw = [one * math.exp(0.05 * one) for one in raw]
        return [one * len(raw) / sum(raw) for one in raw]

    def __call__(self, nets, batch):
        epoch, n_done = self.place
        if batch.epoch != epoch:
            self.refresh()
            epoch, n_done = int(batch.epoch), 0
        elif n_done and n_done % 10 == 0:
            self.refresh()
        self.place = (epoch, n_done + 1)
        index = batch.index.tolist()
        losses = [slow_ce(logits_of(nets["net"], x), y) for x, y in samples_of(batch)]
        value = sum(weight * loss for weight, loss in zip(self.weights(index), losses, strict=True)) / len(index)
        self.losses |= {sample: loss.item() for sample, loss in zip(index, losses, strict=True)}
        return value


@pytest.mark.parametrize(
    ("smoothing", "way"), [("exponential", "sgd in float32"), ("average", "adam in float64")], indirect=["way"]
)
def test_bpa_equals_a_loop_over_samples(new_method, way, agree, smoothing):
    """Three epochs of 16 steps; the weights are N / N_k until each sample was seen."""
    method = new_method("bpa", smoothing=smoothing, clusters=3)
    task = task_for(method, way, batch_size=2, learning_rate=0.01)
    method.fit(task)
    base, run = task.runs
    net = replay(base, plain_loss, way(0.01), agree)["net"]
    cluster = run.options["state"]["cluster"].tolist()
    check_clusters(net, task, cluster)
    slow = SlowBPA(cluster, None if smoothing == "exponential" else 0.3)
    replay(run, slow, way(0.01), agree)
    assert len({tuple(slow.weights([sample, (sample + 1) % 32])) for sample in range(32)}) > 8
    slow_last = [slow.weight[k] for k in cluster]
    agree("weights of clusters", task.journal.columns["score"], slow_last)


def check_clusters(net, task, cluster):
    """Clusters are of one class, and each sample is nearest to the middle of its own, of features of length 1."""
    features = [net.features(x[None])[0].detach() for x, _ in images(task)]
    unit = [one / one.square().sum().sqrt() for one in features]
    assert [k // 3 for k in cluster] == task.y.tolist()
    middles = {k: sum(u for u, of in zip(unit, cluster, strict=True) if of == k) / cluster.count(k) for k in cluster}
    for one, own in zip(unit, cluster, strict=True):
        distances = {k: float((one - middle).square().sum()) for k, middle in middles.items() if k // 3 == own // 3}
        assert distances[own] <= min(distances.values()) + 1e-9


def test_weights_of_a_batch(new_method):
    """Trap 30: equal weights are 1; the authors' smoothing of (1.5, 0.5); the mean is 1."""
    official, paper = new_method("bpa"), new_method("bpa", smoothing="average")
    assert official.normalised(torch.full((5,), 3.0)).tolist() == pytest.approx([1.0] * 5)
    raw = torch.tensor([1.5, 0.5], dtype=torch.float64)
    assert official.normalised(raw).tolist() == pytest.approx([1.518514, 0.481486], abs=1e-6)
    assert paper.normalised(raw).tolist() == pytest.approx([1.5, 0.5])
    many = torch.rand(40, generator=torch.Generator().manual_seed(0))
    for method in (official, paper):
        assert float(method.normalised(many).mean()) == pytest.approx(1, abs=1e-6)


def cluster_state(last_loss, cluster, n_clusters):
    cluster = torch.tensor(cluster)
    size = torch.bincount(cluster, minlength=n_clusters).double()
    weight = torch.where(size > 0, len(cluster) / size.clamp_min(1), 0.0)
    return {
        "last_loss": torch.tensor(last_loss, dtype=torch.float64), "cluster": cluster, "weight": weight,
        "members": BPA.members_of(cluster, n_clusters), "epoch": torch.tensor(0), "epoch_step": torch.tensor(0),
    }  # fmt: skip


def test_weights_of_clusters_against_a_loop(new_method, agree):
    """N / N_k times the fraction of the mean losses; with memory, 0.3 of it; cluster 2 has no samples."""
    losses, cluster = [0.2, 0.4, 1.0, 3.0, 0.6], [0, 0, 1, 3, 0]
    state = cluster_state(losses, cluster, 4)
    means = {k: np.mean([v for v, c in zip(losses, cluster, strict=True) if c == k]) for k in set(cluster)}
    expected = [5 / cluster.count(k) * means[k] / sum(means.values()) if k in means else 0.0 for k in range(4)]
    agree("weights", new_method("bpa").refreshed(state), expected)
    old = state["weight"].tolist()
    remembered = [0.3 * new + 0.7 * before for new, before in zip(expected, old, strict=True)]
    agree("weights", new_method("bpa", smoothing="average").refreshed(state), remembered)


def test_weights_wait_until_every_sample_was_seen(new_method):
    state = cluster_state([0.2, float("nan"), 1.0], [0, 0, 1], 2)
    assert new_method("bpa").refreshed(state).tolist() == pytest.approx([1.5, 3.0])


def test_the_ten_steps_are_counted_anew_in_each_epoch(new_method):
    """After 13 steps of the first epoch, the tenth of the second is step 22 of the stage, which is none of its tens."""
    method = new_method("bpa")
    state = cluster_state([1.0, 1.0, 4.0, 4.0], [0, 0, 1, 1], 2)
    refreshed = []
    for number in range(26):
        logits = torch.randn(2, 2, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        batch = SimpleNamespace(
            x=None, y=torch.tensor([0, 1]), index=torch.tensor([0, 2]), step=torch.tensor(number),
            epoch=torch.tensor(number // 13),
        )  # fmt: skip
        before = state["weight"]
        _, state = method.loss(SimpleNamespace(net=lambda _, logits=logits: logits), batch, state)
        if not torch.equal(before, state["weight"]):
            refreshed.append(number)
    assert refreshed == [9, 13, 22]


def test_the_losses_of_a_cluster_are_not_added_up_in_places(new_method):
    """As adding into places has no determined order on CUDA: bit-equal runs would differ there."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.append(function.name())
            return function(*arguments, **(options or {}))

    seen, state = [], cluster_state([1.0, 2.0, 4.0], [0, 0, 1], 2)
    with Noting():
        new_method("bpa").refreshed(state)
    assert any("sum" in name for name in seen)
    assert not [name for name in seen if "scatter" in name or "index_add" in name or "put" in name]
