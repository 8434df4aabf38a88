"""DFR: a last layer from balanced subsets of the validation samples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import plain_loss, replay, small_splits, task_for

from debiasbench.methods import registry as methods

DFR = __import__(methods.get("dfr")[0].__module__, fromlist=["balanced_subset"])


# ---- the whole method -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "way"), [("subsets", "sgd in float32"), ("weights", "adam in float64")], indirect=["way"]
)
def test_dfr_equals_plain_training_with_another_last_layer(new_method, way, agree, balance):
    """The features that the layer is fitted to, in dataset order, and the layer that predicts."""
    method = new_method("dfr", groups="sides", strength=0.3, balance=balance)
    task = task_for(method, way, splits=small_splits(128))
    net = method.fit(task)
    (run,) = task.runs
    head = [net.head.weight, net.head.bias]
    reference = replay(run, plain_loss, way(), agree)["net"]
    (work,) = task.work
    valid, y, group, of_train = work.given
    for found, samples in ((valid, task.splits.valid), (of_train, task.splits.train)):
        x = samples.x.to(torch.float32) / 255
        agree("features", found, [reference.features(one[None])[0] for one in x])
    bias = task.splits.valid.bias[:, 0]
    assert torch.equal(y, task.splits.valid.y)
    assert torch.equal(group.bool(), y != bias)
    agree("last layer", head, list(work.result[:2]))


# ---- the last layer -------------------------------------------------------------------------------------------------


def with_groups(n, n_classes, *, d=4, conflicts=0.2, seed=0):
    """Features of a validation split and of a training split (in other units), labels, and groups (label, side)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    side = (torch.rand(n, generator=generator) < conflicts).long()
    features = torch.randn(n, d, generator=generator, dtype=torch.float64) * 3 + 5
    features[:, 0] += 2 * y
    features[:, 1] += 4 * (side + y)
    of_train = 7 * torch.randn(2 * n, d, generator=generator, dtype=torch.float64) - 1
    return features, y, side + 2 * y, of_train


def standardised(features, of_train):
    """By loops: mean and deviation (of the whole, not of a sample) of each training feature."""
    mean = [sum(column) / len(column) for column in of_train.T.tolist()]
    square = [
        sum((value - at) ** 2 for value in column) / len(column)
        for column, at in zip(of_train.T.tolist(), mean, strict=True)
    ]
    mean, deviation = torch.tensor(mean, dtype=torch.float64), torch.tensor(square, dtype=torch.float64).sqrt()
    return (features - mean) / deviation, mean, deviation


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_last_layer_of_dfr_is_the_weighted_logistic_regression(new_method, agree, n_classes):
    """Its gradient is zero: of the weighted cross-entropy on standardised features plus the penalty."""
    features, y, group, of_train = with_groups(90, n_classes)
    method = new_method("dfr", strength=0.5, balance="weights")
    weight, bias, strength = method.last_layer(features, y, group, of_train, generator=torch.Generator())
    scaled, mean, deviation = standardised(features, of_train)
    slope = (weight * deviation).requires_grad_()
    start = (bias + weight @ mean).requires_grad_()
    counts = torch.bincount(group)
    each = 90 / int((counts > 0).sum()) / counts[group]
    logits = scaled @ slope.T + start
    assert torch.allclose(logits, features @ weight.T + bias)
    size = (slope[1] ** 2).sum() if n_classes == 2 else (slope**2).sum()
    value = (each * F.cross_entropy(logits, y, reduction="none")).sum() + size / (2 * 0.5)
    value.backward()
    rows = slice(1, 2) if n_classes == 2 else slice(None)
    for slopes in (slope.grad[rows], start.grad[rows]):
        agree("slope", 1 + slopes, torch.ones_like(slopes), tolerance=0.05)
    assert float(strength) == 0.5


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_sparse_regression_is_at_its_optimum(agree, n_classes):
    """One class against the rest: where a weight is 0 the loss is less steep than the penalty, else equally."""
    features, y, _, of_train = with_groups(90, n_classes, d=12)
    x = standardised(features, of_train)[0].numpy()
    strength = 0.2
    slope, start = DFR.sparse_regression(x, y.numpy(), strength, np.random.default_rng(0))
    assert slope.shape == (n_classes, 12)
    assert (slope == 0).any()
    assert (slope != 0).any()
    rows = [1] if n_classes == 2 else range(3)
    if n_classes == 2:
        assert not slope[0].any()
        assert start[0] == 0
    for label in rows:
        for place in range(13):  # the intercept is one more weight, with the same penalty
            values = x[:, place] if place < 12 else np.ones(90)
            value = slope[label, place] if place < 12 else start[label]
            gradient = 0.0
            for sample in range(90):
                p = 1 / (1 + np.exp(-(x[sample] @ slope[label] + start[label])))
                gradient += strength * (p - float(y[sample] == label)) * values[sample]
            if value:
                agree("slope", gradient, -np.sign(value), tolerance=0.02)
            else:
                assert abs(gradient) < 1.02


def test_the_last_layer_of_dfr_is_the_mean_over_twenty_balanced_subsets(new_method, monkeypatch, agree):
    features, y, group, of_train = with_groups(90, 3)
    smallest = int(torch.bincount(group).min())
    subsets, layers, fit = [], [], DFR.sparse_regression

    def noted(x, labels, strength, rng):
        subsets.append(x)
        layers.append(fit(x, labels, strength, rng))
        return layers[-1]

    monkeypatch.setattr(DFR, "sparse_regression", noted)
    method = new_method("dfr", strength=0.3)
    weight, bias, _ = method.last_layer(features, y, group, of_train, generator=torch.Generator().manual_seed(0))
    scaled, mean, deviation = standardised(features, of_train)
    rows = [[int((scaled - torch.from_numpy(row)).abs().sum(1).argmin()) for row in x] for x in subsets]
    assert len(rows) == 20
    for some in rows:
        assert len(set(some)) == len(some)
        assert torch.bincount(group[some], minlength=6).tolist() == [smallest] * 6
    assert len({tuple(sorted(some)) for some in rows}) > 15
    for label in range(3):
        expected = sum(slope[label] for slope, _ in layers) / 20 / deviation.numpy()
        agree("weight", weight[label], torch.from_numpy(expected))
        start = sum(start[label] for _, start in layers) / 20
        agree("bias", bias[label], start - float(mean @ weight[label]))
    again = method.last_layer(features, y, group, of_train, generator=torch.Generator().manual_seed(0))
    other = method.last_layer(features, y, group, of_train, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again[0], weight)
    assert not torch.equal(other[0], weight)


@pytest.mark.parametrize("seed", [4, 9])  # 9: three are equal
def test_the_strength_is_the_best_for_the_worst_group_of_a_half(monkeypatch, seed):
    """Halves have no sample in common and half of each group; the first of equals is taken."""
    features, y, group, _ = with_groups(120, 2, conflicts=0.25, seed=seed)
    x, labels, groups = features.numpy(), y.numpy(), group.numpy()
    seen, fit = {}, DFR.sparse_regression

    def noted(scaled, given, strength, rng):
        seen[strength] = (scaled, *fit(scaled, given, strength, rng))
        return seen[strength][1:]

    monkeypatch.setattr(DFR, "sparse_regression", noted)
    chosen = DFR.chosen_strength(x, labels, groups, np.random.default_rng(0))
    assert tuple(seen) == (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    rng = np.random.default_rng(0)  # the same halves, once more
    held, rest = [], []
    for name in range(4):
        rows = rng.permutation(np.flatnonzero(groups == name))
        held += rows[: len(rows) // 2].tolist()
        rest += rows[len(rows) // 2 :].tolist()
    assert not set(held) & set(rest)
    smallest = min((groups[rest] == name).sum() for name in range(4))
    trained = seen[1.0][0]
    assert len(trained) == 4 * smallest
    assert abs(trained.mean(0)).max() < 1e-6
    worst, overall = {}, {}
    order = np.concatenate(
        [np.array(rest)[found[:smallest]] for found in DFR.members(groups[rest], advanced(groups, 4))]
    )
    mean, deviation = x[order].mean(0), x[order].std(0)
    for strength, (_, slope, start) in seen.items():
        right = {name: [] for name in range(4)}
        for row in held:
            logits = slope @ ((x[row] - mean) / deviation) + start
            right[groups[row]].append(int(logits.argmax()) == labels[row])
        worst[strength] = min(np.mean(values) for values in right.values())
        overall[strength] = sum(sum(values) for values in right.values()) / len(held)
    assert chosen == max(worst, key=worst.get)
    assert chosen != max(overall, key=overall.get)


def advanced(groups, n_groups):
    """The generator as it is after the halves were drawn."""
    rng = np.random.default_rng(0)
    for name in range(n_groups):
        rng.permutation(np.flatnonzero(groups == name))
    return rng
