"""GEORGE: clusters of a first network's features within classes, and GroupDRO on them."""

import numpy as np
import pytest
import torch
from reference import (
    SlowGroups,
    after_epoch,
    images,
    logits_of,
    masses,
    plain_loss,
    replay,
    small_splits,
    task_for,
)
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from debiasbench.methods import registry as methods
from debiasbench.testing import Tiny
from debiasbench.testing import make_task as tiny_task

GEORGE = __import__(methods.get("george")[0].__module__, fromlist=["mean_silhouette"])


# ---- the whole method -----------------------------------------------------------------------------------------------


def slow_silhouettes(points, cluster):
    """Of each sample, one by one; 0 where it is alone."""
    values = []
    for place in range(len(points)):
        distance = np.linalg.norm(points - points[place], axis=1)
        own = cluster == cluster[place]
        inner = distance[own].sum() / (own.sum() - 1) if own.sum() > 1 else 0.0
        outer = min(distance[cluster == name].mean() for name in np.unique(cluster) if name != cluster[place])
        values.append((outer - inner) / max(outer, inner) if own.sum() > 1 else 0.0)
    return np.array(values)


def slow_clusters(features, y, seed):
    """Of each class, the mixture whose clusters have the largest mean of mean silhouettes; of equals the larger."""
    unit = np.array([one / np.sqrt((one**2).sum()) for one in features])
    group = np.zeros(len(y), dtype=int)
    for label in range(4):
        members = np.flatnonzero(np.array(y) == label)
        points = PCA(2, random_state=seed).fit_transform(unit[members])
        scores = {}
        for k in range(2, min(10, len(members) - 1) + 1):
            found = GaussianMixture(k, n_init=3, random_state=seed).fit_predict(points)
            silhouettes = slow_silhouettes(points, found)
            score = np.mean([silhouettes[found == name].mean() for name in np.unique(found)])
            if score >= max(scores, default=-2):
                scores[score] = found
        group[members] = 10 * label + scores[max(scores)]
    return group


def slow_accuracy(net, task):
    """On validation."""
    x, y = task.splits.valid.x.to(torch.float32) / 255, task.splits.valid.y.tolist()
    return sum(int(logits_of(net, one).argmax()) == label for one, label in zip(x, y, strict=True)) / len(y)


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "adam in float64"),
        ({"first_epoch": "last", "adjustment": 3.0, "uniform": True, "step_size": 0.1}, "sgd in float32"),
    ],
    indirect=["way"],
    ids=["adam in float64, default", "sgd in float32, as on CelebA"],
)
def test_george_equals_a_loop_over_samples(new_method, way, agree, options):
    """Section 4.8: the first network's best epoch, normalised features, clusters, and GroupDRO with them."""
    method = new_method("george", reduction="pca", **options)
    task = task_for(method, way, splits=small_splits(64, seed=5))
    method.fit(task)
    first, second = task.runs
    replay(first, plain_loss, way(), agree)
    accuracies = [slow_accuracy(after_epoch(first, epoch)["net"], task) for epoch in range(3)]
    net = after_epoch(first, 2 if options else accuracies.index(max(accuracies)))["net"]
    assert options or accuracies.index(max(accuracies)) < 2
    features = [net.features(x[None])[0].detach().numpy() for x, _ in images(task)]
    (work,) = task.work
    agree("features", work.given[0], [torch.from_numpy(one) for one in features])
    seed = int(torch.randint(2**31, (), generator=work.generator))
    group = torch.from_numpy(slow_clusters(features, task.y.tolist(), seed))
    assert torch.equal(second.options["columns"]["group"], group)
    assert len(group.unique()) > 8
    if options:
        drawn = masses(second.options["sample"], group)
        agree("drawn", list(drawn.values()), [1 / len(drawn)] * len(drawn))
    else:
        assert second.options["sample"] is None
    slow = SlowGroups(group, step_size=method.step_size, adjustment=method.adjustment)
    replay(second, slow, way(), agree)


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_the_silhouette_of_a_clustering_is_the_mean_over_clusters(monkeypatch):
    """Trap 29: sizes 90 and 10 with silhouettes .9 and .1 score .5, not .82."""
    cluster = np.array([0] * 90 + [1] * 10)
    monkeypatch.setattr("sklearn.metrics.silhouette_samples", lambda _, shuffled: np.where(shuffled == 0, 0.9, 0.1))
    assert GEORGE.mean_silhouette(np.zeros((100, 2)), cluster, 1000, 0) == pytest.approx(0.5)
    assert GEORGE.mean_silhouette(np.zeros((100, 2)), np.zeros(100), 1000, 0) == -1


def kept_parts(points, cluster, losses, valid, valid_cluster, *, of_the_part=True):
    """Each class' parts that the published rule keeps; otherwise a part is compared with its whole cluster."""
    parts, valid_parts = np.empty(len(cluster), int), np.empty(len(valid_cluster), int)
    for k in np.unique(cluster):
        mixture = GaussianMixture(5, n_init=3, random_state=0)
        found = mixture.fit_predict(points[cluster == k])
        parts[cluster == k] = 10 + 5 * k + found
        valid_parts[valid_cluster == k] = 10 + 5 * k + mixture.predict(valid[valid_cluster == k])
    before, after = slow_silhouettes(points, cluster), slow_silhouettes(points, parts)
    result = set()
    for part in np.unique(parts):
        members, parent = parts == part, cluster == (part - 10) // 5
        better = after[members].mean() > before[members if of_the_part else parent].mean()
        enough = members.sum() >= max(25, 0.005 * len(points)) and (valid_parts == part).sum() >= 25
        if better and after[members].mean() > 0 and losses[members].mean() >= losses[parent].mean() and enough:
            result.add(int(part))
    return result


def test_of_equally_good_clusterings_the_larger_is_taken(new_method, monkeypatch):
    """Section 4.8: all have the same score here."""
    monkeypatch.setattr(GEORGE, "mean_silhouette", lambda *_: 0.5)
    points, _ = blobs((0, 0), (9, 0), n=6)
    found, _ = new_method("george").clusters_of_class(points, 0)
    assert len(np.unique(found)) == 10


def test_over_clustering_against_a_loop():
    """A part is kept if its own samples' silhouettes rose: its cluster's mean would keep others."""
    differs = 0
    for seed in range(3):
        generator = np.random.default_rng(seed)
        points, valid = generator.normal(size=(600, 2)) * [3, 1], generator.normal(size=(400, 2)) * [3, 1]
        cluster, valid_cluster = (points[:, 0] > 1).astype(int), (valid[:, 0] > 1).astype(int)
        losses = generator.random(600)
        found = GEORGE.with_parts(points, cluster, losses, valid, valid_cluster, 10_000, 0)
        expected = kept_parts(points, cluster, losses, valid, valid_cluster)
        assert set(found[found >= 10].tolist()) == expected
        differs += expected != kept_parts(points, cluster, losses, valid, valid_cluster, of_the_part=False)
    assert differs


def test_features_are_divided_by_their_length(new_method):
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    assert new_method("george").vectors(features) == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))
    assert (new_method("george", normalize=False).vectors(features) == features.numpy()).all()


@pytest.mark.parametrize(("accuracies", "best"), [([0.2, 0.5, 0.5, 0.4], 1), ([0.1, 0.2, 0.3, 0.4], 3)])
def test_the_first_network_is_of_the_first_best_epoch(new_method, monkeypatch, accuracies, best):
    """Its weights after each epoch are kept by the test, and the validation accuracy is given."""
    method = new_method("george", reduction="pca")
    task = tiny_task(method, recipe=Tiny.recipe.replace(epochs=4))
    net, weights = task.new_net(), []

    def accuracy(function, *, split):
        assert split == "valid"
        x, y = task.splits.valid.x[:4].float() / 255, task.splits.valid.y[:4]
        net.eval()
        assert torch.equal(function(x, y), net(x).argmax(1) == y)
        weights.append(net.head.weight.detach().clone())
        return torch.arange(10) < 10 * accuracies[len(weights) - 1]

    monkeypatch.setattr(task, "each", accuracy)
    method.train_to_best_epoch(task, net)
    assert len(weights) == 4
    assert [torch.equal(net.head.weight, one) for one in weights].index(True) == best


def blobs(*places, n=60, seed=0):
    """Points around places (n a place, spread 1), and the number of each point's place."""
    number = np.repeat(np.arange(len(places)), n)
    return np.array(places)[number] + np.random.default_rng(seed).normal(size=(len(number), 2)), number


def test_parts_of_clusters_are_kept_by_the_four_conditions():
    """One cluster of five far blobs, of which the last is small, the first easy, and the second rare on validation."""

    def silhouette(cluster, k):
        return slow_silhouettes(points, cluster)[cluster == k].mean()

    places = [(0, 0), (100, 0), (0, 100), (100, 100), (200, 200), (-400, -400)]
    points, blob = blobs(*places)
    kept = (blob != 4) | (np.arange(len(blob)) % 3 == 0)  # 20 of blob 4: below the fewest
    points, blob = points[kept], blob[kept]
    cluster = (blob == 5).astype(int)  # cluster 1 is one blob: splitting it improves nothing
    losses = np.where(blob == 0, 0.1, 1.0)
    valid, valid_blob = blobs(*places, n=30, seed=1)
    some = (valid_blob != 1) | (np.arange(len(valid_blob)) % 2 == 0)  # 15 of blob 1
    valid, valid_cluster = valid[some], (valid_blob[some] == 5).astype(int)
    found = GEORGE.with_parts(points, cluster, losses, valid, valid_cluster, 10_000, 0)
    for number in (2, 3):
        (part,) = np.unique(found[blob == number])
        assert part >= 10
        members = np.isin(found, [part])
        assert (members == (blob == number)).all()
        assert silhouette(np.where(members, 99, cluster), 99) > silhouette(cluster, 0)
    for number in (0, 1, 4):
        assert (found[blob == number] == 0).all(), number
    assert (found[blob == 5] == 1).all()
    values = GEORGE.silhouettes(points, cluster, 10_000, 0)
    assert values[cluster == 0].mean() == pytest.approx(silhouette(cluster, 0))


def test_over_clustering_runs_within_classes(new_method):
    method = new_method("george", reduction="pca", over_cluster=True)
    task = tiny_task(method)
    method.fit(task)
    assert task.journal.epochs
    points, blob = blobs((0, 0), (60, 0), (0, 60), (60, 60), n=80)
    y = torch.from_numpy((blob > 1).astype("int64"))
    features = torch.from_numpy(points)
    of_class = torch.ones(len(y))
    generator = torch.Generator().manual_seed(0)
    whole = new_method("george", reduction="none", over_cluster=True, normalize=False)
    group = whole.clusters(features, y, of_class, features, y, generator=generator)
    assert torch.equal(group // 60, y)
    assert len(group.unique()) >= 4
