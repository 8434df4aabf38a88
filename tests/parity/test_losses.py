"""Losses and per-sample quantities that methods share, and PGD's scores: given numbers, autograd, slow references."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from debiasbench.evaluation.metrics import adjusted_accuracy
from debiasbench.losses import class_maxima, cross_entropy, gce, gradient_norm, relative_difficulty, smoothed

# Fixture A: probabilities, label and features of one sample
LOGITS = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
LABEL = torch.tensor([1])
FEATURES = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
RESIDUAL = [0.7, -0.8, 0.1]

NORMS = {
    "l1": {"norm": "l1"},
    "l2": {"norm": "l2"},
    "l2sq": {"norm": "l2sq"},
    "linf": {"norm": "linf"},
    "lp:0.7": {"norm": "lp", "order": 0.7},
}


class FixedNet:
    """A network whose features and logits are given."""

    def __init__(self, features, logits):
        self._features, self._logits = features, logits

    def features(self, x):
        return self._features

    def head(self, features):
        assert features is self._features
        return self._logits


def pgd_scores(method, features, logits, y):
    """The scores that PGD gives to samples with these features and logits."""
    return method.scores(FixedNet(features, logits), torch.zeros(len(y)), y)


def entry_norm(tensor, name):
    """The norm of all entries of a gradient, written out."""
    entries = [abs(float(entry)) for entry in tensor.flatten()]
    if name == "l1":
        return sum(entries)
    if name == "l2":
        return math.sqrt(sum(entry**2 for entry in entries))
    if name == "l2sq":
        return sum(entry**2 for entry in entries)
    if name == "linf":
        return max(entries)
    return sum(entry**0.7 for entry in entries) ** (1 / 0.7)


@pytest.mark.parametrize(
    ("norm", "weight_only", "with_bias"),
    [
        ("l2", 5.33854, 5.44426),
        ("l2sq", 28.5, 29.64),
        ("l1", 11.2, 12.8),
        ("linf", 3.2, 3.2),
        ("lp:0.7", 22.3382, 29.2773),
    ],
)
def test_scores_of_fixture_a(new_method, norm, weight_only, with_bias):
    """Trap 1: the norm of the last layer's gradient, without and with the layer's bias."""
    for bias, expected in ((False, weight_only), (True, with_bias)):
        score = pgd_scores(new_method("pgd", **NORMS[norm], score_bias=bias), FEATURES, LOGITS, LABEL)
        assert score.shape == (1,)
        assert score.item() == pytest.approx(expected, rel=3e-6)


def test_score_with_bias_is_larger_by_the_known_factor():
    """Trap 1: in the L2 norm, weight-only and with-bias differ by sqrt(1 + 1 / |z|^2)."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 6, generator=generator).double() * 0.2
    logits = torch.randn(50, 4, generator=generator).double()
    y = torch.randint(0, 4, (50,), generator=generator)
    ratio = gradient_norm(z, logits, y, order=2, bias=True) / gradient_norm(z, logits, y, order=2, bias=False)
    torch.testing.assert_close(ratio, torch.sqrt(1 + 1 / (z**2).sum(1)), rtol=1e-12, atol=0)
    fixture = [gradient_norm(FEATURES, LOGITS, LABEL, order=2, bias=bias).item() for bias in (True, False)]
    assert fixture[0] / fixture[1] == pytest.approx(1.0198, abs=1e-4)


@pytest.fixture(scope="module")
def scored_batch(make_task):
    """A SimConv1 in eval mode, 32 inputs, and each sample's cross-entropy gradient for the last layer."""
    from debiasbench.data.augment import to_input

    task = make_task()
    net = task.new_net()
    with torch.no_grad():  # a network with some opinion, and batch statistics unlike the initial ones
        net.train()
        for rows in task.x.split(50):
            net(to_input(rows, task.recipe))
        net.head.weight.mul_(20)
    net.eval()
    x, y = (
        to_input(task.x[:32], task.recipe),
        task.y[torch.randperm(32, generator=torch.Generator().manual_seed(0))],
    )
    gradients = []
    for place in range(32):
        loss = F.cross_entropy(net(x[place : place + 1]), y[place : place + 1])
        gradients.append(torch.autograd.grad(loss, [net.head.weight, net.head.bias]))
    return net, x, y, gradients


@pytest.mark.parametrize("score_bias", [False, True], ids=["weight", "weight and bias"])
@pytest.mark.parametrize("norm", NORMS)
def test_scores_equal_autograd_on_a_real_network(new_method, scored_batch, agree, norm, score_bias):
    """Trap 1: the closed form is the norm of the gradient that one backward pass a sample finds."""
    net, x, y, gradients = scored_batch
    with torch.no_grad():
        scores = new_method("pgd", **NORMS[norm], score_bias=score_bias).scores(net, x, y)
    expected = []
    for weight, bias in gradients:
        parts = torch.cat([weight.flatten(), bias]) if score_bias else weight
        expected.append(entry_norm(parts, norm))
    agree("scores", scores / torch.tensor(expected, dtype=torch.float64), [1.0] * 32)
    assert scores.max() > 1.2 * scores.min()  # the samples differ, so that the comparison says something


def test_squared_norm_is_squared_before_normalisation(new_method):
    """Trap 2: h sums to 1, and h of L2^2 is the renormalised square of h of L2."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(500, 8, generator=generator)
    logits = torch.randn(500, 5, generator=generator)
    y = torch.randint(0, 5, (500,), generator=generator)
    distributions = {}
    for norm in ("l2", "l2sq"):
        score = pgd_scores(new_method("pgd", norm=norm), z, logits, y)
        distributions[norm] = score / score.sum()
        assert distributions[norm].sum().item() == pytest.approx(1, abs=1e-6)
    squared = distributions["l2"] ** 2
    torch.testing.assert_close(distributions["l2sq"], squared / squared.sum(), rtol=1e-9, atol=0)
    assert not torch.allclose(distributions["l2sq"], squared, rtol=0.1)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_score_is_of_cross_entropy_and_not_of_gce(new_method, alpha):
    """Trap 4: as p_y falls to 0 the score rises to its maximum, |z| times 1 to sqrt 2; it does not vanish."""
    method = new_method("pgd", norm="l2", score_bias=False, alpha=alpha)
    z = torch.tensor([[3.0, 4.0]]).repeat(6, 1)
    p_y = torch.tensor([0.999, 0.5, 0.1, 1e-3, 1e-6, 1e-12], dtype=torch.float64)
    y = torch.zeros(6, dtype=torch.int64)
    for rest, limit in (((1.0,), math.sqrt(2)), ((0.5, 0.5), math.sqrt(1.5))):
        others = (1 - p_y)[:, None] * torch.tensor(rest, dtype=torch.float64)
        score = pgd_scores(method, z, torch.cat([p_y[:, None], others], 1).log(), y)
        assert (score.diff() > 0).all()
        assert score[-1].item() == pytest.approx(5 * limit, rel=1e-6)
        assert 5 <= score[-1] <= 5 * math.sqrt(2) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("form", "value", "gradient"),
    [
        ("paper", 0.965527, [0.226892, -0.259305, 0.032413]),
        ("official", 0.365168, [0.158824, -0.181514, 0.022689]),
    ],
)
def test_gce_value_and_gradient_of_fixture_a(form, value, gradient):
    """Trap 5: the paper's loss, and the official one whose gradient is alpha times as large."""
    logits = LOGITS.clone().requires_grad_()
    loss = gce(logits, LABEL, 0.7, form)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([gradient], dtype=torch.float64), rtol=0, atol=1e-6)


def test_gce_of_a_batch_equals_its_definition(agree):
    """Trap 5: both forms sample by sample, written out from p_y, values and gradients."""
    generator = torch.Generator().manual_seed(2)
    logits = 2 * torch.randn(40, 6, generator=generator).double()
    y = torch.randint(0, 6, (40,), generator=generator)
    p = logits.softmax(1)
    for alpha in (0.3, 0.7, 1.0):
        for form, factor in (("paper", 1.0), ("official", alpha)):
            free = logits.clone().requires_grad_()
            loss = gce(free, y, alpha, form)
            (slope,) = torch.autograd.grad(loss.sum(), free)
            for place in range(40):
                p_y = float(p[place, y[place]])
                paper = (1 - p_y**alpha) / alpha
                agree("loss", loss[place], paper if form == "paper" else -alpha * p_y**alpha * math.log(p_y))
                expected = factor * p_y**alpha * (p[place] - F.one_hot(y[place], 6))
                agree("gradients", slope[place], expected)


@pytest.mark.parametrize("form", ["paper", "official"])
def test_gce_with_alpha_zero_is_cross_entropy(form):
    """Trap 5: alpha = 0 gives cross-entropy, not zero."""
    logits = LOGITS.clone().requires_grad_()
    loss = gce(logits, LABEL, 0.0, form)
    assert loss.item() == pytest.approx(1.609438, abs=1e-6)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([RESIDUAL], dtype=torch.float64), rtol=0, atol=1e-12)


def test_gce_of_the_paper_tends_to_cross_entropy():
    """Trap 5: alpha -> 0 goes to cross-entropy without a jump, in float32 as well."""
    logits = LOGITS.float()
    losses = [gce(logits, LABEL, alpha, "paper").item() for alpha in (1e-1, 1e-3, 1e-5, 1e-7)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(1.609438, abs=1e-5)


@pytest.mark.parametrize("form", ["paper", "official"])
def test_gce_has_finite_gradients_at_the_extremes(form):
    """Trap 5: certain right and certain wrong predictions give finite values and gradients."""
    logits = torch.tensor([[80.0, 0.0], [-80.0, 0.0], [300.0, 0.0], [-300.0, 0.0]]).requires_grad_()
    loss = gce(logits, torch.zeros(4, dtype=torch.int64), 0.7, form)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(("p_aligned", "gradient_mass", "loss_mass"), [(0.999, 0.87, 0.96), (0.99, 0.40, 0.70)])
def test_mass_on_conflicting_samples(new_method, p_aligned, gradient_mass, loss_mass):
    """Trap 12: 270 conflicting samples of 54,000 get most of the distribution, with equal |z|."""
    n_conflict, n = 270, 54_000
    p = torch.empty(n, 10, dtype=torch.float64)
    p[:] = (1 - p_aligned) / 9
    p[:, 0] = p_aligned
    p[:n_conflict] = 1e-12
    p[:n_conflict, 0], p[:n_conflict, 1] = 0.01, 0.99  # the biased network names the other class
    z = torch.ones(n, 4, dtype=torch.float64)
    y = torch.zeros(n, dtype=torch.int64)
    for score, mass in (("gradnorm", gradient_mass), ("loss", loss_mass)):
        values = pgd_scores(new_method("pgd", score=score), z, p.log(), y)
        h = values / values.sum()
        assert h[:n_conflict].sum().item() == pytest.approx(mass, abs=0.005)


def test_scores_are_never_zero(new_method):
    """Equation 1 divides by the sum: a sample that is certainly right keeps a score of at least 1e-8."""
    logits = torch.tensor([[500.0, 0.0], [0.0, 0.0]])
    for options in ({}, {"score": "loss"}, {"norm": "linf"}):
        score = pgd_scores(new_method("pgd", **options), torch.ones(2, 2), logits, torch.zeros(2, dtype=torch.int64))
        assert score[0].item() == pytest.approx(1e-8, rel=1e-6)
        assert score[1] > 0.1


def test_moving_average_starts_at_the_first_loss():
    """Trap 18: losses 2, 4, 1 give 2, 2.6, 2.12; a start at zero would give 0.6, 1.62, 1.434."""
    table = torch.full((3,), float("nan"))
    seen = []
    for loss in (2.0, 4.0, 1.0):
        table = smoothed(table, torch.tensor([1]), torch.tensor([loss]), 0.7)
        seen.append(table[1].item())
    assert seen == pytest.approx([2, 2.6, 2.12], abs=1e-6)
    assert torch.isnan(table[[0, 2]]).all()


def test_moving_average_of_a_table_equals_a_loop(agree):
    """Trap 18: rows in any order, each with its own history; the old table is left as it was."""
    generator = torch.Generator().manual_seed(3)
    table = torch.full((20,), float("nan"))
    reference = [None] * 20
    for _ in range(6):
        index = torch.randperm(20, generator=generator)[:7]
        value = torch.rand(7, generator=generator).requires_grad_()
        before = table.clone()
        new = smoothed(table, index, value, 0.7)
        assert torch.equal(torch.nan_to_num(table, -1), torch.nan_to_num(before, -1))
        assert not new.requires_grad
        table = new
        for place, loss in zip(index.tolist(), value.tolist(), strict=True):
            old = reference[place]
            reference[place] = loss if old is None else 0.7 * old + 0.3 * loss
    assert None in reference
    agree("averages", table, [math.nan if expected is None else expected for expected in reference])


def test_class_maxima_are_over_the_whole_class():
    """Trap 19: the maximum of each class over the whole table; what was not visited counts as 0."""
    nan = float("nan")
    table = torch.tensor([0.5, 2.0, nan, 1.0, nan, 0.25])
    y_all = torch.tensor([0, 1, 0, 0, 2, 1])
    assert torch.equal(class_maxima(table, y_all, 4), torch.tensor([1.0, 2.0, 0.0, 0.0]))


def test_relative_difficulty_of_the_example():
    """Trap 19: normalised by class maxima W = (.395, .395, .5); raw it would be (.714, .714, .793)."""
    b, d = torch.tensor([0.05, 0.05, 2.3]), torch.tensor([0.02, 0.02, 0.6])
    everyone, one_class = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    raw = b / (b + d)
    assert raw.tolist() == pytest.approx([0.714, 0.714, 0.793], abs=1e-3)
    weight = relative_difficulty(b, d, everyone, one_class, 1)
    assert weight.tolist() == pytest.approx([0.395, 0.395, 0.5], abs=1e-3)
    # of a batch without the sample that holds the maximum: still the class's maximum
    weight = relative_difficulty(b, d, torch.tensor([1]), one_class, 1)
    assert weight.tolist() == pytest.approx([0.395], abs=1e-3)


def test_relative_difficulty_equals_a_loop(agree):
    """Trap 19: against a loop over samples, with unvisited samples and several classes."""
    generator = torch.Generator().manual_seed(4)
    y_all = torch.randint(0, 4, (60,), generator=generator)
    b, d = torch.rand(60, generator=generator) * 3, torch.rand(60, generator=generator)
    b[::5], d[::5] = float("nan"), float("nan")
    index = torch.randperm(60, generator=generator)[:25]
    weight = relative_difficulty(b, d, index, y_all, 4)

    def relative(table, place):
        values = [0.0 if math.isnan(value) else value for value in table.tolist()]
        members = [values[other] for other in range(60) if y_all[other] == y_all[place]]
        return values[place] / max(members)

    expected = []
    for place in index.tolist():
        share_b, share_d = relative(b, place), relative(d, place)
        expected.append(share_b / (share_b + share_d + 1e-8))
    agree("W", weight, expected)
    assert (weight == 0).any()  # the unvisited ones


def test_relative_difficulty_has_no_gradient_and_is_finite_at_the_start():
    """Traps 19 and 20: no gradient through W; tables of zeros or of no visits give 0 and not nan."""
    b, d = torch.rand(5, requires_grad=True), torch.rand(5, requires_grad=True)
    y_all, everyone = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    assert not relative_difficulty(b, d, everyone, y_all, 2).requires_grad
    for table in (torch.zeros(5), torch.full((5,), float("nan"))):
        assert torch.equal(relative_difficulty(table, table, everyone, y_all, 2), torch.zeros(5))


def test_adjusted_accuracy_of_waterbirds():
    """Trap 34: group accuracies weighted by the training groups; the plain mean would be .81."""
    groups, counts = np.array([0.99, 0.70, 0.60, 0.95]), np.array([3498, 184, 56, 1057])
    assert counts.sum() == 4795
    assert adjusted_accuracy(groups, counts) == pytest.approx(0.9655, abs=5e-5)
    assert groups.mean() == pytest.approx(0.81)


def test_cross_entropy_is_per_sample():
    """Every loss is built on this: one value a sample, -log p_y."""
    assert cross_entropy(LOGITS.repeat(3, 1), torch.tensor([0, 1, 2])).tolist() == pytest.approx(
        [-math.log(0.7), -math.log(0.2), -math.log(0.1)]
    )
