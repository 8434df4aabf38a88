"""GroupDRO, EIIL, BPA, GEORGE, DFR, resampling with the truth, and PGD's other scores; loops: tests/parity."""

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
    moved = {}
    for scaled in (False, True):
        method = new_method("eiil", scale_by_n=scaled, ei_steps=1000)  # in which a sample can move by one
        moved[scaled] = float(method.environments(g, generator=torch.Generator().manual_seed(1))[1])
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


BPA = __import__(methods.get("bpa")[0].__module__, fromlist=["members_of"])


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
    """Tables 8 to 10, and the lower bound; and DPR, which is PGD with another score."""
    names = ["pgd-loss", "pgd-reweight", "pgd-single-stage", "pgd-random", "dpr"]
    cells = expand(names, ["cmnist5k"], seeds=1).cells
    assert [cell.method_title for cell in cells] == [
        "pgd:score=loss", "pgd:use=reweight", "pgd:use=single-stage", "pgd:score=random",
        "pgd:score=disagreement",
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
