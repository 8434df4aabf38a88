"""GroupDRO, EIIL, BPA, resampling with the truth, and PGD's other scores, against values by hand and slow loops."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from debiasbench.errors import BenchmarkError
from debiasbench.grid import expand
from debiasbench.losses import group_dro, scale_gradient
from debiasbench.methods import registry as methods
from debiasbench.samples import Samples, Splits
from debiasbench.testing import Tiny
from debiasbench.testing import make_task as tiny_task

# ---- GroupDRO -------------------------------------------------------------------------------------------------------


def test_a_step_of_groupdro():
    """Trap 31: four groups, losses .2, .5, 1, 3, step size .01."""
    losses = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
    value, q = group_dro(losses, torch.arange(4), torch.full((4,), 0.25, dtype=torch.float64), step_size=0.01)
    assert q.tolist() == pytest.approx([0.247560, 0.248303, 0.249548, 0.254589], abs=1e-6)
    assert float(value) == pytest.approx(1.186979, abs=1e-6)


def test_groupdro_against_a_loop():
    """Means over the group's samples in the batch; an absent group has loss 0, and its weight is only renormalised."""
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(9, generator=generator, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 2, 2, 0, 3, 3, 3, 0, 2])
    old = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    value, q = group_dro(losses, group, old, step_size=0.5)
    means = [losses.detach()[group == g].mean() if (group == g).any() else torch.tensor(0.0) for g in range(4)]
    expected = [old[g] * np.exp(0.5 * float(means[g])) for g in range(4)]
    expected = [float(value / sum(expected)) for value in expected]
    assert q.tolist() == pytest.approx(expected)
    assert float(value.detach()) == pytest.approx(sum(w * float(m) for w, m in zip(expected, means, strict=True)))
    (gradient,) = torch.autograd.grad(value, losses)
    counts = torch.bincount(group, minlength=4)
    assert gradient.tolist() == pytest.approx([expected[g] / int(counts[g]) for g in group.tolist()])
    assert not q.requires_grad


def test_the_adjustment_moves_the_weights_and_not_the_loss():
    losses, q = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5])
    value, moved = group_dro(losses, torch.arange(2), q, step_size=0.1, adjustment=torch.tensor([0.0, 2.0]))
    assert moved[1] > moved[0]
    assert float(value) == pytest.approx(1.0)


def test_groups_are_drawn_equally_often(new_method):
    """Batches hold all groups (label, bias) equally often; groups without samples weigh nothing."""
    method = new_method("groupdro")
    task = tiny_task(method)
    seen = {}
    train = task.train

    def noted(net, loss, **options):
        seen.update(options)
        return train(net, loss, **options)

    task.train = noted
    method.fit(task)
    group, share = seen["columns"]["group"], seen["sample"]
    assert group.tolist() == (10 * task.y + task.splits.train.bias[:, 0]).tolist()
    masses = [float(share[group == g].sum() / share.sum()) for g in group.unique()]
    assert masses == pytest.approx([1 / len(masses)] * len(masses))
    there = torch.bincount(group, minlength=40) > 0
    assert torch.equal(seen["state"]["q"] > 0, there)
    assert float(seen["state"]["q"].sum()) == pytest.approx(1)


def test_two_sides(new_method):
    method = new_method("groupdro", groups="sides")
    task = tiny_task(method)
    group, n_groups = method.groups_of(task)
    assert n_groups == 2
    assert torch.equal(group.bool(), task.splits.train.conflicting[:, 0])


@pytest.mark.parametrize("name", ["groupdro", "resample-oracle"])
def test_what_needs_bias_labels_declines_where_there_are_none(name):
    """No labels of the bias, or several biases."""
    reasons = {
        skip.dataset_title: skip.reason for skip in expand([name], ["bar", "mbmnist", "cmnist5k"], seeds=1).skips
    }
    assert set(reasons) == {"bar", "mbmnist"}
    assert "mbmnist has 7" in reasons["mbmnist"]


def test_comments_have_groups_but_no_sides():
    grid = expand(["groupdro", "groupdro:groups=sides", "resample-oracle"], ["civilcomments"], seeds=1)
    assert [cell.method_title for cell in grid.cells] == ["groupdro"]
    assert "give groupdro:groups=cells" in grid.skips[0].reason


def test_tables_mark_methods_that_know_the_bias(new_method):
    for name in ("groupdro", "resample-oracle"):
        assert new_method(name).needs_bias_labels


# ---- EIIL -----------------------------------------------------------------------------------------------------------


def test_the_gradient_for_a_factor_on_the_logits():
    """Trap 27: f = (2, 0) gives -0.238406 for y = 0 and 1.761594 for y = 1."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    assert scale_gradient(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-0.238406, 1.761594], abs=1e-6)
    sure = torch.tensor([[20.0, 0.0]])  # float32: the two terms agree in all their digits
    assert float(scale_gradient(sure, torch.tensor([0]))[0]) == pytest.approx(-20 * np.exp(-20), rel=1e-5)


def test_the_gradient_against_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (7,), generator=generator)
    for row in range(7):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(F.cross_entropy(scale * logits[row : row + 1], y[row : row + 1]), scale)
        assert float(scale_gradient(logits, y)[row]) == pytest.approx(float(expected))


def binary_logits(n, margin, *, errors=0.05):
    """Logits of two classes with a fraction of errors, each as sure as the rest."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < errors
    side = torch.where(wrong, 1 - y, y)
    size = margin + torch.randn(n, generator=generator)
    logits = torch.stack([torch.where(side == 0, size, 0.0), torch.where(side == 1, size, 0.0)], 1)
    return logits, y


def test_environments_are_the_sign_of_the_gradient_and_the_error_set(new_method):
    """Trap 27: of two classes, one environment is exactly what the reference network gets wrong."""
    logits, y = binary_logits(500, 4.0)
    g = scale_gradient(logits, y)
    weight, moved = new_method("eiil").environments(g, generator=torch.Generator().manual_seed(1))
    second = weight > 0.5
    hard = second if g[second].mean() > g[~second].mean() else ~second
    assert torch.equal(hard, g > 0)
    assert torch.equal(hard, logits.argmax(1) != y)
    assert moved > 0.95


def test_without_the_factor_n_confident_samples_stay_where_they_began(new_method):
    """Trap 28: gradients below Adam's epsilon; times N none is."""
    logits, y = binary_logits(20_000, 12.0)
    g = scale_gradient(logits, y)
    moved = {
        scaled: float(
            new_method("eiil", scale_by_n=scaled).environments(g, generator=torch.Generator().manual_seed(1))[1]
        )
        for scaled in (False, True)
    }
    assert moved[False] < 0.95 < moved[True]


def test_an_empty_environment_is_told(new_method):
    """A reference network that gets all alike leaves nothing to tell apart."""
    method = new_method("eiil", ei_steps=1)
    task = tiny_task(method)
    method_of_one_side = SimpleNamespace(**{name: getattr(method, name) for name in ("ref_epochs",)})
    method_of_one_side.environments = lambda g, **_: (torch.ones_like(g), torch.tensor(1.0))
    with pytest.raises(RuntimeError, match=r"environments is empty: after 1 epochs.*Lower ref_epochs"):
        type(method).fit(method_of_one_side, task)


def test_eiil_runs_and_tells_what_it_found(new_method):
    method = new_method("eiil", ei_steps=500)
    task = tiny_task(method)
    method.fit(task)
    assert task.journal.columns["selected"].dtype == torch.bool
    assert 0 <= task.journal.values["moved"] <= 1
    score = task.journal.columns["score"]
    assert score[task.journal.columns["selected"]].mean() > score[~task.journal.columns["selected"]].mean()


class SlowIRM:
    """IRMv1 as its authors train it: the penalty by autograd, L2 inside what is divided, Adam written out."""

    def __init__(self, net, *, penalty_weight, l2, rate):
        self.net, self.penalty_weight, self.l2, self.rate = net, penalty_weight, l2, rate
        self.first = [torch.zeros_like(parameter) for parameter in net.parameters()]
        self.second = [torch.zeros_like(parameter) for parameter in net.parameters()]

    def loss(self, x, y, hard, *, switched):
        risks, penalties = [], []
        for side in (~hard, hard):
            if not side.any():
                continue
            factor = torch.ones((), requires_grad=True, dtype=torch.float64)
            risk = F.cross_entropy(factor * self.net(x[side]), y[side])
            (slope,) = torch.autograd.grad(risk, factor, create_graph=True)
            risks.append(risk)
            penalties.append(slope**2)
        weight = self.penalty_weight if switched else 1.0
        value = sum(risks) / len(risks) + weight * sum(penalties) / len(penalties)
        for parameter in self.net.parameters():
            for one in parameter.flatten():
                value = value + self.l2 * one**2
        return value / weight

    def step(self, value, number):
        gradients = torch.autograd.grad(value, list(self.net.parameters()))
        for index, (parameter, gradient) in enumerate(zip(self.net.parameters(), gradients, strict=True)):
            self.first[index] = 0.9 * self.first[index] + 0.1 * gradient
            self.second[index] = 0.999 * self.second[index] + 0.001 * gradient**2
            mean, size = self.first[index] / (1 - 0.9**number), self.second[index] / (1 - 0.999**number)
            with torch.no_grad():
                parameter -= self.rate * mean / (size.sqrt() + 1e-8)
        return gradients


class InFloat64(torch.nn.Linear):
    """A linear network whose logits stay in float64, also where a loss asks for float32."""

    def forward(self, x):
        logits = super().forward(x)
        logits.float = lambda: logits
        return logits


def test_irm_against_a_loop(new_method):
    """Ten steps, of which four come before the switch; one batch lacks an environment."""
    from debiasbench.training.updates import new_optimizer

    method = new_method("eiil", backend="irm", penalty_weight=50.0, irm_learning_rate=0.05, irm_l2=0.3)
    generator = torch.Generator().manual_seed(3)
    ours, theirs = InFloat64(6, 4, dtype=torch.float64), InFloat64(6, 4, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    optimizer = new_optimizer({"net": ours}, method.recipe_of_irm(Tiny().recipe))
    slow = SlowIRM(theirs, penalty_weight=50.0, l2=0.3, rate=0.05)
    for step in range(10):
        x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        y = torch.randint(4, (12,), generator=generator)
        hard = torch.ones(12, dtype=torch.bool) if step == 6 else torch.arange(12) % 3 == 0
        batch = SimpleNamespace(x=x, y=y, hard=hard, step=torch.tensor(step), n_steps=torch.tensor(10))
        value = method.irm_loss(SimpleNamespace(net=ours), batch, {})
        expected = slow.loss(x, y, hard, switched=step >= 4)
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5), step
        optimizer.zero_grad()
        value.backward()
        gradients = slow.step(expected, step + 1)
        for parameter, gradient in zip(ours.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9)
        optimizer.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_irm_trains_with_the_optimiser_of_its_authors(new_method):
    """Adam at a constant rate, and no decay besides that of the loss, whatever the dataset has."""
    own = Tiny().recipe.replace(optimizer="sgd", weight_decay=0.1, schedule="step", clip_norm=1.0)
    recipe = new_method("eiil", backend="irm").recipe_of_irm(own)
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adam", 4.8986e-4, 0.0)
    assert (recipe.schedule, recipe.clip_norm, recipe.epochs) == ("constant", None, own.epochs)


def test_irm_draws_both_environments_equally_often(new_method, monkeypatch):
    method = new_method("eiil", backend="irm", ei_steps=500)
    task = tiny_task(method)
    seen = []
    train = task.train
    monkeypatch.setattr(task, "train", lambda *a, **o: (seen.append(o), train(*a, **o))[1])
    method.fit(task)
    assert seen[-1]["recipe"] == method.recipe_of_irm(task.recipe)
    sample, hard = seen[-1]["sample"], task.journal.columns["selected"]
    assert float(sample[hard].sum()) == pytest.approx(float(sample[~hard].sum()))
    assert sample[hard].unique().numel() == sample[~hard].unique().numel() == 1


# ---- BPA ------------------------------------------------------------------------------------------------------------


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


BPA = __import__(methods.get("bpa")[0].__module__, fromlist=["members_of"])


def cluster_state(last_loss, cluster, n_clusters):
    cluster = torch.tensor(cluster)
    size = torch.bincount(cluster, minlength=n_clusters).double()
    weight = torch.where(size > 0, len(cluster) / size.clamp_min(1), 0.0)
    return {
        "last_loss": torch.tensor(last_loss, dtype=torch.float64), "cluster": cluster, "weight": weight,
        "members": BPA.members_of(cluster, n_clusters), "epoch": torch.tensor(0), "epoch_step": torch.tensor(0),
    }  # fmt: skip


def test_weights_of_clusters_against_a_loop(new_method):
    """N / N_k times the fraction of the mean losses; with memory, 0.3 of it; cluster 2 has no samples."""
    losses, cluster = [0.2, 0.4, 1.0, 3.0, 0.6], [0, 0, 1, 3, 0]
    state = cluster_state(losses, cluster, 4)
    means = {k: np.mean([v for v, c in zip(losses, cluster, strict=True) if c == k]) for k in set(cluster)}
    expected = [5 / cluster.count(k) * means[k] / sum(means.values()) if k in means else 0.0 for k in range(4)]
    assert new_method("bpa").refreshed(state).tolist() == pytest.approx(expected)
    old = state["weight"].tolist()
    remembered = [0.3 * new + 0.7 * before for new, before in zip(expected, old, strict=True)]
    assert new_method("bpa", smoothing="average").refreshed(state).tolist() == pytest.approx(remembered)


def test_weights_wait_until_every_sample_was_seen(new_method):
    state = cluster_state([0.2, float("nan"), 1.0], [0, 0, 1], 2)
    assert new_method("bpa").refreshed(state).tolist() == pytest.approx([1.5, 3.0])


class SlowBPA:
    """The authors' training with dictionaries: a refresh after every tenth step of an epoch, and at its end."""

    def __init__(self, cluster, momentum=None):
        self.cluster, self.momentum, self.losses = cluster, momentum, {}
        self.weight = {k: len(cluster) / cluster.count(k) for k in set(cluster)}

    def refresh(self):
        if len(self.losses) < len(self.cluster):
            return
        means = {
            k: np.mean([self.losses[i] for i, of in enumerate(self.cluster) if of == k]) for k in set(self.cluster)
        }
        for k, mean in means.items():
            new = len(self.cluster) / self.cluster.count(k) * mean / sum(means.values())
            self.weight[k] = (
                new if self.momentum is None else self.momentum * new + (1 - self.momentum) * self.weight[k]
            )

    def weights(self, index):
        raw = np.array([self.weight[self.cluster[i]] for i in index])
        raw = raw / raw.mean()
        if self.momentum is None:
            raw = raw * np.exp(0.05 * raw)
        return raw / raw.mean()


@pytest.mark.parametrize("smoothing", ["exponential", "average"])
def test_bpa_against_a_loop(new_method, smoothing):
    """Three epochs of 23 steps: values, gradients, and weights that are used before they are refreshed."""
    method = new_method("bpa", smoothing=smoothing)
    generator = torch.Generator().manual_seed(0)
    n, n_steps = 69, 23
    cluster = torch.randint(5, (n,), generator=generator).tolist()
    slow = SlowBPA(cluster, None if smoothing == "exponential" else 0.3)
    state = cluster_state([float("nan")] * n, cluster, 6)  # cluster 5 has no samples
    y = torch.randint(3, (n,), generator=generator)
    for epoch in range(3):
        order = torch.randperm(n, generator=generator).reshape(n_steps, 3)
        for number, index in enumerate(order, epoch * n_steps):
            logits = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
            batch = SimpleNamespace(
                x=None, y=y[index], index=index, step=torch.tensor(number), epoch=torch.tensor(epoch)
            )
            value, state = method.loss(SimpleNamespace(net=lambda _, logits=logits: logits), batch, state)
            losses = -logits.log_softmax(1)[range(3), y[index]]
            expected = (torch.from_numpy(slow.weights(index.tolist())) * losses).mean()
            assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5), number
            (one,), (other,) = (torch.autograd.grad(each, logits, retain_graph=True) for each in (value, expected))
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
            slow.losses |= dict(zip(index.tolist(), losses.tolist(), strict=True))
            if (number - epoch * n_steps + 1) % 10 == 0:
                slow.refresh()
        slow.refresh()


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


def test_the_samples_of_each_cluster():
    found = BPA.members_of(torch.tensor([2, 0, 2, 2, 0]), 4)
    assert found.tolist() == [[1, 4, -1], [-1, -1, -1], [0, 2, 3], [-1, -1, -1]]


def test_clusters_are_of_one_class_and_follow_the_angle(new_method):
    """No cluster holds two labels; the length of the features does not matter."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    side = torch.arange(60) // 3 % 2
    direction = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[side]
    features = direction * (1 + 20 * torch.rand(60, 1, generator=generator))
    method = new_method("bpa", clusters=2)
    found = method.cluster(features, y, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found // 2, y)
    for label in range(3):
        members = y == label
        agreement = (found[members] % 2 == side[members]).float().mean()
        assert agreement in (0.0, 1.0)
    assert torch.equal(found, method.cluster(features, y, generator=torch.Generator().manual_seed(1)))


def test_a_class_with_fewer_samples_than_clusters(new_method):
    features = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    found = new_method("bpa", clusters=5).cluster(features, y, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found // 5, y)
    assert len(found[y == 1].unique()) == 3


# ---- sampling with the truth, and other scores ----------------------------------------------------------------------


def test_the_oracle_draws_conflicting_samples_half_of_the_time(new_method):
    method = new_method("resample-oracle")
    task = tiny_task(method)
    method.fit(task)
    share, conflicting = task.journal.columns["score"], task.splits.train.conflicting[:, 0]
    assert float(share[conflicting].sum()) == pytest.approx(0.5)
    assert len(share[conflicting].unique()) == len(share[~conflicting].unique()) == 1


@pytest.mark.parametrize("score", ["loss", "error", "el2n", "eiil"])
def test_scores_of_pgd_against_a_loop(new_method, score):
    """Sample by sample, from the softmax."""
    method = new_method("pgd", score=score)
    task = tiny_task(method)
    net = task.new_net().eval()
    x, y = torch.rand(12, 3, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    with torch.no_grad():
        found, logits = method.scores(net, x, y), net(x).double().numpy()
    for row in range(12):
        p = np.exp(logits[row] - logits[row].max())
        p /= p.sum()
        label = int(y[row])
        expected = {
            "loss": -np.log(p[label]),
            "error": float(p.argmax() != label),
            "el2n": np.sqrt(sum((p[c] - (c == label)) ** 2 for c in range(4))),
            "eiil": float(sum(p * logits[row]) - logits[row][label]),
        }[score]
        assert float(found[row]) == pytest.approx(max(expected, 1e-8), rel=1e-4, abs=1e-7)


def test_random_scores_follow_the_seed_and_nothing_else(new_method):
    """Uniform in (0, 1), equal for equal seeds, and no sample's label or image matters."""
    scores = {}
    for name, seed, alpha in (("one", 0, 0.7), ("again", 0, 0.1), ("other", 1, 0.7)):
        method = new_method("pgd", score="random", alpha=alpha)
        task = tiny_task(method, seed=seed)
        method.fit(task)
        scores[name] = task.journal.columns["score"]
    assert torch.equal(scores["one"], scores["again"])
    assert not torch.equal(scores["one"], scores["other"])
    assert 0.4 < float(scores["one"].mean()) < 0.6
    assert bool((scores["one"] > 0).all())


def test_the_papers_ablations_are_names():
    """Tables 8 to 10, and the lower bound."""
    names = ["pgd-loss", "pgd-reweight", "pgd-single-stage", "pgd-random"]
    cells = expand(names, ["cmnist5k"], seeds=1).cells
    assert [cell.method_title for cell in cells] == [
        "pgd:score=loss", "pgd:use=reweight", "pgd:use=single-stage", "pgd:score=random",
    ]  # fmt: skip


def test_bias_labels_of_two_sides_only_reach_who_declares_them(new_method):
    task = tiny_task(new_method("vanilla"))
    with pytest.raises(PermissionError, match="needs_bias_labels"):
        _ = task.conflicting


def test_the_dataset_says_what_conflicts(new_method):
    """A dataset that says what conflicts is followed, not the equality of values."""
    splits = Tiny().build(None)
    train = splits.train
    conflict = torch.zeros(len(train), 1, dtype=torch.bool)
    conflict[:5] = True
    changed = Splits(Samples(train.x, train.y, train.bias, conflict), splits.valid, splits.test)
    method = new_method("groupdro", groups="sides")
    task = tiny_task(method, splits=changed)
    assert int(method.groups_of(task)[0].sum()) == 5


# ---- GEORGE ---------------------------------------------------------------------------------------------------------

GEORGE = __import__(methods.get("george")[0].__module__, fromlist=["mean_silhouette"])


def test_the_silhouette_of_a_clustering_is_the_mean_over_clusters(monkeypatch):
    """Trap 29: sizes 90 and 10 with silhouettes .9 and .1 score .5, not .82."""
    cluster = np.array([0] * 90 + [1] * 10)
    monkeypatch.setattr("sklearn.metrics.silhouette_samples", lambda _, shuffled: np.where(shuffled == 0, 0.9, 0.1))
    assert GEORGE.mean_silhouette(np.zeros((100, 2)), cluster, 1000, 0) == pytest.approx(0.5)
    assert GEORGE.mean_silhouette(np.zeros((100, 2)), np.zeros(100), 1000, 0) == -1


def test_clusters_are_found_within_classes(new_method):
    """Three blobs in one class and two in the other, and no cluster across."""
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0], [40, 0], [0, 40], [0, 0], [40, 40]])
    blob = np.repeat(np.arange(5), 40)
    features = torch.from_numpy(centres[blob] + generator.normal(size=(200, 2)))
    y = torch.from_numpy((blob > 2).astype("int64"))
    method = new_method("george", reduction="none", normalize=False)
    group = method.clusters(features, y, generator=torch.Generator().manual_seed(0))
    assert torch.equal(group // 10, y)
    pairs = {(int(g), int(b)) for g, b in zip(group, blob, strict=True)}
    assert len(pairs) == 5
    assert len({g for g, _ in pairs}) == 5
    assert torch.equal(group, method.clusters(features, y, generator=torch.Generator().manual_seed(0)))


def test_pca_is_used_only_when_asked_for(new_method, monkeypatch):
    """Without umap-learn the default declines, with a reason; it never becomes another method."""
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert "reduction=pca" in new_method("george").decline(Tiny())
    assert new_method("george", reduction="pca").decline(Tiny()) is None


def blobs(*places, n=60, seed=0):
    """Points around places (n a place, spread 1), and the number of each point's place."""
    number = np.repeat(np.arange(len(places)), n)
    return np.array(places)[number] + np.random.default_rng(seed).normal(size=(len(number), 2)), number


def slow_silhouette(points, cluster, k):
    """The mean silhouette of one cluster, sample by sample."""
    values = []
    for place in np.flatnonzero(cluster == k):
        distance = np.linalg.norm(points - points[place], axis=1)
        own = distance[cluster == k].sum() / ((cluster == k).sum() - 1)
        other = min(distance[cluster == name].mean() for name in np.unique(cluster) if name != k)
        values.append((other - own) / max(own, other))
    return float(np.mean(values))


def test_parts_of_clusters_are_kept_by_the_four_conditions():
    """One cluster of five far blobs, of which the last is small, the first easy, and the second rare on validation."""
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
        assert slow_silhouette(points, np.where(members, 99, cluster), 99) > slow_silhouette(points, cluster, 0)
    for number in (0, 1, 4):
        assert (found[blob == number] == 0).all(), number
    assert (found[blob == 5] == 1).all()
    values = GEORGE.silhouettes(points, cluster, 10_000, 0)
    assert values[cluster == 0].mean() == pytest.approx(slow_silhouette(points, cluster, 0))


def slow_silhouettes(points, cluster):
    """Of each sample, one by one."""
    values = []
    for place in range(len(points)):
        distance = np.linalg.norm(points - points[place], axis=1)
        own = cluster == cluster[place]
        inner = distance[own].sum() / (own.sum() - 1) if own.sum() > 1 else 0.0
        outer = min(distance[cluster == name].mean() for name in np.unique(cluster) if name != cluster[place])
        values.append((outer - inner) / max(outer, inner) if own.sum() > 1 else 0.0)
    return np.array(values)


def kept_parts(points, cluster, losses, valid, valid_cluster, *, of_the_part=True):
    """Each class' parts that the published rule keeps; otherwise a part is compared with its whole cluster."""
    parts, valid_parts = np.empty(len(cluster), int), np.empty(len(valid_cluster), int)
    for k in np.unique(cluster):
        found, mixture = GEORGE.mixed(points[cluster == k], 5, 0)
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


def test_george_runs_with_pca(new_method):
    method = new_method("george", reduction="pca")
    task = tiny_task(method)
    method.fit(task)
    assert 8 <= task.journal.values["n_clusters"] <= 40
    assert task.journal.epochs


def test_umap_gives_two_dimensions_and_follows_the_seed(new_method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("umap")
        features = np.random.default_rng(0).normal(size=(60, 8))
        method = new_method("george")
        (first, to_points), (again, _) = method.reduced(features, 3), method.reduced(features, 3)
        others = to_points(features[:5])
    assert others.shape == (5, 2)
    assert first.shape == (60, 2)
    assert (first == again).all()


# ---- DFR ------------------------------------------------------------------------------------------------------------


DFR = __import__(methods.get("dfr")[0].__module__, fromlist=["balanced_subset"])


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
def test_the_last_layer_of_dfr_is_the_weighted_logistic_regression(new_method, n_classes):
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
    assert slope.grad[rows].abs().max() < 0.05
    assert start.grad[rows].abs().max() < 0.05
    assert float(strength) == 0.5


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_sparse_regression_is_at_its_optimum(n_classes):
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
                assert gradient == pytest.approx(-np.sign(value), abs=0.02)
            else:
                assert abs(gradient) < 1.02


def test_the_last_layer_of_dfr_is_the_mean_over_twenty_balanced_subsets(new_method, monkeypatch):
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
        assert weight[label].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        start = sum(start[label] for _, start in layers) / 20
        assert float(bias[label]) == pytest.approx(start - float(mean @ weight[label]), rel=1e-5)
    again = method.last_layer(features, y, group, of_train, generator=torch.Generator().manual_seed(0))
    other = method.last_layer(features, y, group, of_train, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again[0], weight)
    assert not torch.equal(other[0], weight)


def test_the_strength_is_the_best_for_the_worst_group_of_a_half(monkeypatch):
    """Halves have no sample in common and half of each group; the first of equals is taken."""
    features, y, group, _ = with_groups(120, 2, conflicts=0.25)
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
    worst = {}
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
    assert len(set(worst.values())) > 1
    assert chosen == max(worst, key=worst.get)


def advanced(groups, n_groups):
    """The generator as it is after the halves were drawn."""
    rng = np.random.default_rng(0)
    for name in range(n_groups):
        rng.permutation(np.flatnonzero(groups == name))
    return rng


def worst_group(weight, bias, features, y, group):
    """Accuracy in the worst group."""
    right = (features @ weight.T + bias).argmax(1) == y
    return min(float(right[group == name].double().mean()) for name in group.unique())


def synthetic(n, conflicts, generator, *, n_classes, d, core, spurious, scales=False):
    """Noise of `d` features, of which a few tell the label and a few, more strongly, the bias -> x, y, group."""
    y = torch.randint(n_classes, (n,), generator=generator)
    other = (y + torch.randint(1, n_classes, (n,), generator=generator)) % n_classes
    bias = torch.where(torch.rand(n, generator=generator) < conflicts, other, y)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x[:, :n_classes] += core * (2 * F.one_hot(y, n_classes) - 1)
    x[:, n_classes : 2 * n_classes] += spurious * (2 * F.one_hot(bias, n_classes) - 1)
    return x * torch.linspace(-3, 3, d, dtype=torch.float64).exp() if scales else x, y, bias + n_classes * y


@pytest.mark.parametrize(
    "kind",
    [
        {"n_classes": 2, "d": 300, "core": 1.5, "spurious": 3.0},
        {"n_classes": 2, "d": 64, "core": 1.0, "spurious": 4.0, "scales": True},
        {"n_classes": 3, "d": 100, "core": 2.5, "spurious": 4.0},
    ],
    ids=["few of many features", "features of unequal scale", "three classes"],
)
def test_dfr_as_published_finds_the_few_features_that_matter(new_method, kind):
    """Where weights on all samples and L2 fit the noise of the small groups."""
    accuracies = {"subsets": [], "weights": []}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, y, group = synthetic(600, 0.1, generator, **kind)
        test, labels, groups = synthetic(4000, 0.5, generator, **kind)
        of_train = synthetic(2000, 0.05, generator, **kind)[0]
        for balance, found in accuracies.items():
            method = new_method("dfr", balance=balance)
            weight, bias, _ = method.last_layer(x, y, group, of_train, generator=torch.Generator().manual_seed(seed))
            found.append(worst_group(weight, bias, test, labels, groups))
    assert np.mean(accuracies["subsets"]) > np.mean(accuracies["weights"]) + 0.02


def test_dfr_says_what_to_give_where_a_group_has_no_halves(new_method):
    """Before anything trains; with a strength, weights or two sides there is nothing to halve that cannot be."""
    task = tiny_task(new_method("dfr"))
    with pytest.raises(
        BenchmarkError, match=r"single validation sample.*give dfr:groups=sides, dfr:balance=weights or"
    ):
        new_method("dfr").fit(task)
    assert not task.journal.stages
    valid = task.validation
    for options in ({"groups": "sides"}, {"strength": 0.1}, {"balance": "weights"}):
        method = new_method("dfr", **options)
        method.check_groups(valid.y, method.groups_of(valid), 4)
    with pytest.raises(BenchmarkError, match="no validation sample"):
        new_method("dfr").check_groups(torch.zeros(6), torch.zeros(6), 2)


def test_a_subset_without_a_class_is_refused():
    """Three classes and two groups of which the smaller is of one class: what balances it has two."""
    y, group = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 0, 1])
    with pytest.raises(BenchmarkError, match=r"1 of each of the 2 groups.*lacks whole classes.*balance=weights"):
        DFR.balanced_subset(y, group, np.random.default_rng(0))


def test_dfr_as_published_runs(new_method):
    """With two groups that are large enough, and with many of one sample where the strength is given."""
    splits = Tiny().build(None)
    splits = Splits(splits.train, splits.train, splits.test)
    for method in (new_method("dfr", groups="sides"), new_method("dfr", strength=0.3)):
        task = tiny_task(method, splits=splits)
        method.fit(task)
        assert task.journal.values["strength"] in (pytest.approx(value) for value in DFR.STRENGTHS)
        assert task.journal.epochs


@pytest.mark.parametrize("name", ["cmnist5k", "cmnist", "ccifar"])
def test_dfr_balances_by_weights_where_there_are_a_hundred_groups(name):
    (cell,) = expand(["dfr"], [name], seeds=1).cells
    assert (cell.method_parameters["balance"], cell.method_parameters["groups"]) == ("weights", "cells")


def test_dfr_changes_the_last_layer_alone_and_selects_nothing_on_validation(new_method):
    from debiasbench.running.runner import result_of

    method = new_method("dfr", groups="sides", balance="weights")
    task = tiny_task(method)
    predictor = method.fit(task)
    assert predictor is task.predictor
    assert len(task.journal.epochs) == 1
    plain = tiny_task(new_method("vanilla"))
    new_method("vanilla").fit(plain)
    ours, theirs = predictor.state_dict(), plain.all_nets()[0].state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == ["head.weight", "head.bias"]
    result, _ = result_of(task)
    assert result.selection["last"] == 0
    assert result.selection["val_acc"] is result.selection["val_loss"] is result.selection["group_val"] is None


def test_validation_labels_reach_only_who_declares_them(new_method):
    with pytest.raises(PermissionError, match="trains_on_validation"):
        _ = tiny_task(new_method("pgd")).validation


def test_dfr_never_trains_on_the_test_split(new_method):
    """Where the "validation" split is the test split, as in LfF's generator."""
    splits = Tiny().build(None)
    method = new_method("dfr", groups="sides")
    task = tiny_task(method, splits=Splits(splits.train, splits.test, splits.test))
    with pytest.raises(BenchmarkError, match="here they are the test samples"):
        method.fit(task)


@pytest.mark.parametrize("name", ["groupdro", "resample-oracle", "dfr"])
def test_unknown_biases_are_no_groups(new_method, name):
    splits = Tiny().build(None)
    parts = []
    for part in (splits.train, splits.valid):
        bias = part.bias.clone()
        bias[:3] = -1
        parts.append(Samples(part.x, part.y, bias))
    method = new_method(name)
    task = tiny_task(method, splits=Splits(*parts, splits.test))
    with pytest.raises(BenchmarkError, match=r"needs the bias of every (training|validation) sample; 3 have none"):
        method.fit(task)


def test_group_losses_are_not_rounded_under_autocast():
    """As under bf16 on a GPU."""
    losses, group = torch.rand(64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    q = torch.full((4,), 0.25)
    plain = group_dro(losses, group, q, step_size=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = group_dro(losses, group, q, step_size=0.01)
    assert torch.equal(plain[0], rounded[0])
    assert torch.equal(plain[1], rounded[1])
