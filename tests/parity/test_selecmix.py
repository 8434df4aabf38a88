"""SelecMix: an encoder of the bias by contrast, partners that contradict it, and mixtures with the partner's label."""

import math
from types import SimpleNamespace

import pytest
import torch
from reference import SlowWeights, logits_of, replay, samples_of, slow_ce, slow_gce, task_for

from debiasbench.methods import registry as methods

SELECMIX = __import__(methods.get("selecmix")[0].__module__, fromlist=["mixed"])


def unit(features):
    return [one / (one**2).sum() ** 0.5 for one in features]


def slow_contrast(z, y, temperature, q):
    """The mean over samples with another one of their label of the mean over these of (1 - P^q) / q."""
    values = []
    for i, own in enumerate(z):
        others = [j for j in range(len(z)) if j != i]
        total = sum(((own @ z[j]) / temperature).exp() for j in others)
        p = [((own @ z[j]) / temperature).exp() / total for j in others if y[j] == y[i]]
        if p:
            values.append(sum((1 - one**q) / q if q else -one.log() for one in p) / len(p))
    return sum(values) / max(len(values), 1)


def slow_partners(z, y, coin):
    """Of the same label and least similar below a half, else of another and most similar; or what there is."""
    partners = []
    for i in range(len(z)):
        similar = {j: float(z[i] @ z[j]) for j in range(len(z)) if j != i}
        same, others = [j for j in similar if y[j] == y[i]], [j for j in similar if y[j] != y[i]]
        if (coin[i] < 0.5 and same) or not others:
            partners.append(min(same, key=similar.get))
        else:
            partners.append(max(others, key=similar.get))
    return partners


class SlowSelecMix:
    """The loss of a batch, sample by sample, on plain training or on LfF."""

    def __init__(self, method, y_all):
        self.method, self.kinds = method, set()
        self.weights = SlowWeights(y_all, method.smoothing) if method.name == "selecmix-lff" else None

    def __call__(self, nets, batch):
        samples, y = samples_of(batch), batch.y.tolist()
        z = unit([nets["encoder"].features(x[None])[0] for x, _ in samples])
        partners = slow_partners([one.detach() for one in z], y, batch.coin.tolist())
        self.kinds |= {y[i] == y[j] for i, j in enumerate(partners)}
        weight = [1.0] * len(y)
        value = slow_contrast(z, y, self.method.temperature, self.method.q)
        if self.weights:
            b, d = (
                [slow_ce(logits_of(nets[n], x), label).item() for x, label in samples] for n in ("biased", "debiased")
            )
            weight = self.weights.step(batch.index, b, d)
            gces = [
                slow_gce(logits_of(nets["biased"], x), label, self.method.alpha, "official") for x, label in samples
            ]
            value = value + sum(gces) / len(y)
        for i, j in enumerate(partners):
            mixture = batch.share[i] * batch.x[i] + (1 - batch.share[i]) * batch.x[j]  # an image, of float32
            value = value + weight[j] * slow_ce(logits_of(nets["debiased"], mixture), y[j]) / len(y)
        return value


@pytest.mark.parametrize(
    ("name", "options", "way"),
    [
        ("selecmix", {}, "sgd in float32"),
        ("selecmix", {"q": 0.0, "temperature": 0.5}, "adam in float64"),
        ("selecmix-lff", {}, "sgd in float32"),
        ("selecmix-lff", {"q": 0.3, "alpha": 0.4, "smoothing": 0.9}, "adam in float64"),
    ],
    indirect=["way"],
)
def test_selecmix_equals_a_loop_over_samples(new_method, way, agree, name, options):
    method = new_method(name, **options)
    task = task_for(method, way)
    method.fit(task)
    (run,) = task.runs
    assert all(0 <= float(one) <= 0.5 for step in run.steps for one in step.batch.share)
    slow = SlowSelecMix(method, task.y)
    replay(run, slow, way(), agree)
    assert slow.kinds == {True, False}
    if name == "selecmix-lff":
        expected = [slow.weights.weight(sample) for sample in range(task.n_samples)]
        agree("W", task.journal.columns["score"], expected)


def batch_of(y, *, coin, share=0.25):
    """Images that hold their place in the batch."""
    places = torch.arange(len(y), dtype=torch.float32)
    return SimpleNamespace(
        x=places[:, None, None, None].expand(-1, 3, 2, 2), y=torch.tensor(y), coin=torch.full((len(y),), coin),
        share=torch.full((len(y),), share),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("y", "coin", "expected"),
    [
        ([0, 0, 0, 1], 0.1, [2, 2, 0, 2]),  # least similar of the label; the last is alone and takes the other kind
        ([0, 0, 0, 1], 0.9, [3, 3, 3, 2]),  # most similar of another label
        ([0, 0, 1, 1], 0.9, [2, 2, 1, 1]),
        ([5, 5, 5, 5], 0.9, [3, 3, 0, 0]),  # there is no other label
    ],
)
def test_partners_contradict_the_bias(y, coin, expected):
    """Features at 0, 20, 50 and 90 degrees: what is near is similar."""
    angles = torch.tensor([0.0, 20.0, 50.0, 90.0]) * math.pi / 180
    z = torch.stack([angles.cos(), angles.sin()], 1)
    x, partner = SELECMIX.mixed(z, batch_of(y, coin=coin))
    assert partner.tolist() == expected
    wanted = [0.25 * place + 0.75 * other for place, other in enumerate(expected)]
    assert x[:, 0, 0, 0].tolist() == wanted


def test_the_contrast_of_equal_features(new_method):
    """P is 1 / (B - 1) for each: (1 - 3^-0.7) / 0.7 of four, and log 3 without a preference for what is easy."""
    z, y = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 1, 1])
    assert float(new_method("selecmix").contrast(z, y)) == pytest.approx((1 - 3**-0.7) / 0.7)
    assert float(new_method("selecmix", q=0.0).contrast(z, y)) == pytest.approx(math.log(3))
    assert float(new_method("selecmix").contrast(z, torch.arange(4))) == 0  # none has another of its label
