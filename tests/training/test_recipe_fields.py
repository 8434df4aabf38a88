"""Recipe fields that change a step: gradients added up over the parts of a batch, and smoothed labels."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from debiasbench import losses
from debiasbench.data.augment import to_input
from debiasbench.errors import BenchmarkError
from debiasbench.losses import cross_entropy, gce, label_smoothing, mean_cross_entropy
from debiasbench.recipe import Recipe
from debiasbench.training.batches import Batch

PLAIN = {"augment": False, "crop_scale": None, "rotation": 0.0, "saturation": 0.0, "hue": 0.0}
QUICK = {"net": "mlp", **PLAIN}


def same(one, other, **tolerance):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a.double(), b.double(), **(tolerance or {"rtol": 0, "atol": 0})) for a, b in pairs)


def trained(make_task, loss=mean_cross_entropy, **recipe):
    task = make_task(**{**QUICK, "epochs": 2, "batch_size": 48, **recipe})
    net = task.new_net()
    task.train(net, loss, predict=net)
    return task, net


# ---- gradients added up ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 5, 24])
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_parts_of_a_batch_add_up_to_its_step(make_task, accumulate, clip_norm):
    """200 samples in batches of 48: the last, of 8, has fewer parts, and 48 in 5 parts are of unlike size."""
    whole, net = trained(make_task, clip_norm=clip_norm)
    parts, other = trained(make_task, clip_norm=clip_norm, accumulate=accumulate)
    assert same(net, other, rtol=1e-4, atol=1e-6)
    assert not same(net, other)  # another order of additions
    assert parts.journal.stages[0].losses == pytest.approx(whole.journal.stages[0].losses, rel=1e-5)


def test_a_network_with_batch_statistics_sees_parts(make_task):
    """The step of a plain loop over the parts, whose batch normalisation knows a part alone."""
    task = make_task(**PLAIN, epochs=1, steps=1, batch_size=32, accumulate=4)
    net = task.new_net()
    plain, seen = copy.deepcopy(net).train(), []

    def loss(nets, batch, state):
        seen.append(batch.index)
        if len(seen) == 1:
            torch.default_generator.manual_seed(5)  # of the dropout
        return mean_cross_entropy(nets, batch, state)

    task.train(net, loss)
    assert [len(index) for index in seen] == [8, 8, 8, 8]
    torch.default_generator.manual_seed(5)
    optimizer = torch.optim.SGD(
        plain.parameters(), task.recipe.learning_rate, momentum=0.9, weight_decay=task.recipe.weight_decay, fused=True
    )
    for index in seen:
        (cross_entropy(plain(to_input(task.x[index], task.recipe)), task.y[index]).mean() / 4).backward()
    optimizer.step()
    assert same(net, plain, rtol=1e-5, atol=1e-7)


def test_parts_hold_the_rows_of_the_batch_and_what_is_common():
    n = 11
    batch = Batch(
        (0, 1, 2, 3), x=torch.rand(n, 3, 2, 2), y=torch.arange(n), index=torch.arange(n) + 100, lam=torch.rand(n),
        views=torch.rand(2, n, 3, 2, 2), step=torch.tensor(4), epoch=torch.tensor(1), n_steps=torch.tensor(9),
        y_all=torch.arange(3),
    )  # fmt: skip
    for n_parts, sizes in ((1, [11]), (2, [6, 5]), (5, [3, 3, 3, 2]), (8, [2, 2, 2, 2, 3]), (11, [2, 2, 2, 2, 3])):
        parts = list(batch.parts(n_parts))
        assert [len(part.index) for part in parts] == sizes
        for name in ("x", "y", "index", "lam"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
        assert torch.equal(torch.cat([part.views for part in parts], 1), batch.views)
        assert all(part.y_all is batch.y_all and part.step is batch.step for part in parts)
        assert all(sorted(part.perm.tolist()) == list(range(len(part.index))) for part in parts)


def test_state_goes_from_part_to_part(make_task):
    def counting(nets, batch, state):
        ones = torch.ones(len(batch.index))
        value = mean_cross_entropy(nets, batch, state)
        return value, {"seen": state["seen"].index_add(0, batch.index, ones), "parts": state["parts"] + 1}

    task = make_task(**QUICK, epochs=1, batch_size=100, accumulate=5)
    net = task.new_net()
    end = task.train(net, counting, state={"seen": task.column(0.0), "parts": torch.zeros(())})
    assert torch.equal(end["seen"], torch.ones(task.n_samples))
    assert end["parts"] == 10


def test_terms_are_added_up_over_parts(make_task):
    def terms(nets, batch, state):
        logits = nets.net(batch.x)
        return {"ce": cross_entropy(logits, batch.y).mean(), "size": 0.01 * logits.square().mean()}

    _, net = trained(make_task, terms)
    _, other = trained(make_task, terms, accumulate=4)
    assert same(net, other, rtol=1e-4, atol=1e-6)


def test_accumulation_is_declined_where_samples_belong_together(make_task):
    task = make_task(**QUICK, accumulate=2)
    nets = {"a": task.new_net(), "b": task.new_net()}
    for options in (
        {"turns": ("a", "b")},
        {"recipe": {"a": task.recipe.replace(learning_rate=0.1)}},
        {"combine": lambda gradients: gradients["one"]},
    ):
        with pytest.raises(BenchmarkError, match=r"accumulate=2 .* train it with accumulate=1"):
            task.stage(nets, mean_cross_entropy, **options)
    with pytest.raises(BenchmarkError, match="lays out its own, whose samples belong together"):
        task.train(nets["a"], mean_cross_entropy, sample=lambda _: [torch.arange(8)])
    with pytest.raises(BenchmarkError, match="accumulate=2 and label_smoothing=0 would be ignored"):
        task.batches(epochs=1)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(128, 65), (128, 65536), (2, 2), (3, 2)])
def test_a_part_has_two_samples(batch_size, accumulate):
    with pytest.raises(BenchmarkError, match=f"at most {batch_size // 2} with batch_size={batch_size}"):
        Recipe(batch_size=batch_size, accumulate=accumulate)
    Recipe(batch_size=128, accumulate=64)


# ---- smoothed labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.05, 0.3, 1.0])
def test_smoothed_cross_entropy_is_the_mean_over_smoothed_labels(amount):
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 1, 0])
    with label_smoothing(amount):
        ours = cross_entropy(logits, y)
    for row, value in enumerate(ours):
        log_p = [float(logits[row, k] - logits[row].logsumexp(0)) for k in range(4)]
        target = [amount / 4 + (1 - amount) * (k == y[row]) for k in range(4)]
        assert math.isclose(float(value), -sum(t * p for t, p in zip(target, log_p, strict=True)), rel_tol=1e-5)
    assert torch.equal(cross_entropy(logits, y), F.cross_entropy(logits, y, reduction="none"))  # outside: none


def test_labels_are_smoothed_in_losses_and_not_in_scores(make_task):
    seen = {}

    def loss(nets, batch, state):
        trained_on = nets.net(batch.x)
        logits = trained_on.detach()
        seen["loss"] = cross_entropy(logits, batch.y) - F.cross_entropy(logits, batch.y, reduction="none")
        seen["gce"] = gce(logits, batch.y, 0.7) - (1 - logits.softmax(1).gather(1, batch.y[:, None])[:, 0] ** 0.7) / 0.7
        return cross_entropy(trained_on, batch.y).mean()

    task, net = trained(make_task, loss, label_smoothing=0.2, epochs=1)
    assert float(seen["loss"].abs().max()) > 1e-3
    assert float(seen["gce"].abs().max()) < 1e-5
    scores = task.each(lambda x, y: cross_entropy(net(x), y) - F.cross_entropy(net(x), y, reduction="none"))
    assert not scores.any()
    assert not losses._smoothing[1:]


def test_smoothing_trains_another_network_and_none_the_same(make_task):
    _, net = trained(make_task)
    _, none = trained(make_task, label_smoothing=0.0)
    _, smoothed = trained(make_task, label_smoothing=0.1)
    assert same(net, none)
    assert not same(net, smoothed)


def test_a_loss_that_would_ignore_smoothing_is_refused(make_task):
    def own(nets, batch, state):
        return F.cross_entropy(nets.net(batch.x), batch.y)

    with pytest.raises(BenchmarkError, match=r"label_smoothing=0\.1, and the loss .* does not use debiasbench\.losses"):
        trained(make_task, own, label_smoothing=0.1)
    task = make_task(**QUICK, epochs=1, label_smoothing=0.1)
    first = task.new_net()
    task.train(first, own)  # of a stage whose network nobody predicts with, such as one by GCE, it is no question
    assert len(losses._smoothing) == 1


def test_both_fields_together(make_task):
    _, net = trained(make_task, label_smoothing=0.1)
    _, other = trained(make_task, label_smoothing=0.1, accumulate=3)
    assert same(net, other, rtol=1e-4, atol=1e-6)
