"""What a stage can do beyond one network and one loss, each against a plain loop.

Frozen networks, recipes by network, turns, noise, views, learnt tensors, terms, snapshots, columns in place of images,
and loops of a method's own.
"""

import copy
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debiasbench.data.augment import augmented, to_input
from debiasbench.errors import BenchmarkError, DivergedError
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method
from debiasbench.randomness import derived_generator
from debiasbench.running.runner import result_of
from debiasbench.samples import Samples, Splits
from debiasbench.schedule import learning_rate_at
from debiasbench.testing import Tiny, lint_loss, sample_batch
from debiasbench.testing import make_task as new_task

QUICK = {"net": "mlp", "augment": False, "crop_scale": None, "rotation": 0.0, "saturation": 0.0, "hue": 0.0}


def ce(nets, batch, state):
    return cross_entropy(nets.net(batch.x), batch.y).mean()


def same(one, other, **tolerance):
    """Whether two networks have equal weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a.double(), b.double(), **(tolerance or {"rtol": 0, "atol": 0})) for a, b in pairs)


def noted(task, loss):
    """A loss that notes the indices of its batches."""
    seen = []

    def noting(nets, batch, state):
        seen.append(batch.index)
        return loss(nets, batch, state)

    return noting, seen


def images(task, index):
    return to_input(task.x[index], task.recipe)


# ---- frozen networks -------------------------------------------------------------------------------------------------


def distil(nets, batch, state):
    """Follow a teacher."""
    return F.kl_div(nets.net(batch.x).log_softmax(1), nets.teacher(batch.x).softmax(1), reduction="batchmean")


def test_a_frozen_network_is_in_eval_mode_and_stays_as_it_is(make_task):
    task = make_task(epochs=1)  # SimConv: dropout and batch statistics
    teacher, net = task.new_net(), task.new_net()
    before, modes = copy.deepcopy(teacher), []

    def loss(nets, batch, state):
        modes.append(
            (nets.teacher.training, nets.net.training, any(p.requires_grad for p in nets.teacher.parameters()))
        )
        return distil(nets, batch, state)

    task.train(net, loss, frozen={"teacher": teacher}, predict=net)
    assert set(modes) == {(False, True, False)}
    assert same(teacher, before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    task.train(teacher, ce, epochs=1)  # it may be trained again afterwards
    assert not same(teacher, before)


def test_distillation_equals_a_plain_loop(make_task):
    task = make_task(**QUICK, epochs=2)
    teacher, net = task.new_net(), task.new_net()
    plain = copy.deepcopy(net)
    loss, seen = noted(task, distil)
    task.train(net, loss, frozen={"teacher": teacher})
    optimizer = torch.optim.SGD(
        plain.parameters(), 0.02, momentum=0.9, weight_decay=task.recipe.weight_decay, fused=True
    )
    n = len(seen) // 2
    for step, index in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(task.recipe, (step // n) / 2)
        x = images(task, index)
        with torch.no_grad():
            target = teacher(x).softmax(1)
        optimizer.zero_grad()
        F.kl_div(plain(x).log_softmax(1), target, reduction="batchmean").backward()
        optimizer.step()
    assert same(net, plain, rtol=1e-5, atol=1e-7)


def test_a_network_is_trained_or_frozen(make_task):
    task = make_task(**QUICK)
    net = task.new_net()
    with pytest.raises(ValueError, match="either trained or frozen"):
        task.stage(net, ce, frozen={"net": net})
    with pytest.raises(BenchmarkError, match=r"were not made by task\.new_net"):
        task.stage(net, ce, frozen={"teacher": nn.Linear(2, 2)})


# ---- proxies of the bias ---------------------------------------------------------------------------------------------


def slow_worst(task, predicted, proxy):
    """The lowest accuracy of the cells of ten validation samples and more."""
    y, cells = task.splits.valid.y.tolist(), {}
    for label, one, kind in zip(y, predicted.tolist(), proxy.tolist(), strict=True):
        cells.setdefault((label, kind), []).append(one == label)
    return min(sum(hits) / len(hits) for hits in cells.values() if len(hits) >= 10)


def squares():
    """A task whose validation split has cells of ten samples."""
    dataset = Tiny(rho=0.4)
    parts = dataset.build(None)
    splits = Splits(parts.train, parts.train, parts.test)
    recipe = Tiny.recipe.replace(epochs=2)
    return new_task(EveryMethod(), dataset=dataset, splits=splits, recipe=recipe)


class EveryMethod(Method):
    name = "every-method"

    def fit(self, task):
        raise NotImplementedError


def predictions(net, samples, recipe):
    with torch.no_grad():
        return net.eval()(to_input(samples.x, recipe)).argmax(1)


@pytest.mark.parametrize("kind", ["another network", "the network itself", "a function"])
def test_epochs_are_judged_by_proxies_of_before_the_stage(kind):
    task = squares()
    biased, net = task.new_net(), task.new_net()
    task.train(biased, ce, epochs=4)
    if kind == "the network itself":
        net = biased
    valid = task.splits.valid
    before = predictions(biased, valid, task.recipe)
    proxy = biased
    if kind == "a function":  # may be told apart by the label
        before, proxy = before != valid.y, lambda x, y: biased(x).argmax(1) != y
    worst = []
    stage = task.stage(net, ce, predict=net, proxy=proxy)
    for _ in range(2):
        stage.run(epochs=1)
        worst.append(slow_worst(task, predictions(net, valid, task.recipe), before))
    found = [row.valid["acc_worst_proxy"] for row in task.journal.epochs]
    assert found == pytest.approx(worst)
    assert "acc_worst_proxy" not in task.journal.epochs[0].test


def test_a_stage_without_proxies_says_nothing_of_them():
    task = squares()
    net = task.new_net()
    task.train(net, ce, predict=net)
    assert all("acc_worst_proxy" not in row.valid for row in task.journal.epochs)


def test_proxies_take_no_number_and_no_draw():
    """A method that declares them trains as it did."""
    nets = []
    for options in ({}, {"proxy": lambda _, y: torch.zeros_like(y)}):
        task = squares()
        nets.append(task.new_net())
        task.train(nets[-1], ce, predict=nets[-1], **options)
        assert [call["kind"] for call in task.journal.calls] == ["new_net", "train"]
    assert same(*nets)


@pytest.mark.parametrize(
    "proxy",
    [
        lambda _, y: y.float(),
        lambda _, y: y - 1,
        lambda _, y: y + 65_536,
        lambda _, y: y + 1j,
        lambda _, y: y[:1],
        lambda x, _: x,
    ],
    ids=["fractions", "negative", "large", "complex", "too few", "images"],
)
def test_proxies_are_whole_numbers_a_sample(proxy):
    task = squares()
    net = task.new_net()
    with pytest.raises(BenchmarkError, match=r"one whole number in 0\.\.65535"):
        task.train(net, ce, predict=net, proxy=proxy)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda _, y: y[:1], r"\(1,\)"), (lambda _, y: torch.cat([y, y]), r"\(\d+,\)"), (lambda _, y: y.sum(), r"\(\)"),
        (lambda _, y: y.tolist(), "list"), (lambda _, y: y.numpy(), "ndarray"), (lambda *_: None, "NoneType"),
    ],
    ids=["too few", "too many", "one number", "a list", "an array", "nothing"],
)  # fmt: skip
def test_functions_of_samples_return_a_row_for_each(function, got):
    task, rest = squares(), rf": a tensor with a row for each sample, here \d+\. Got {got}\.$"
    net = task.new_net()
    with pytest.raises(BenchmarkError, match=r"^proxy= must give .* one whole number in 0\.\.65535" + rest):
        task.train(net, lambda *_: None, predict=net, proxy=function)
    with pytest.raises(BenchmarkError, match=r"^The function of task\.each must return \(B, \.\.\.\)" + rest):
        task.each(function)
    with pytest.raises(BenchmarkError, match=r"^The predictor must return logits \(N, C\)" + rest):
        task.evaluation.logits(lambda x: function(x, torch.zeros(len(x))), [], task.splits.valid, task.recipe)


@pytest.mark.parametrize(
    ("later", "got"),
    [
        (lambda y: y[:, None], r"rows \(\) of torch\.float32 first, and then \(1,\) of torch\.float32"),
        (lambda y: y.long(), r"rows \(\) of torch\.float32 first, and then \(\) of torch\.int64"),
        (lambda y: y.double(), r"rows \(\) of torch\.float32 first, and then \(\) of torch\.float64"),
    ],
    ids=["shape", "whole numbers", "precision"],
)
def test_functions_of_samples_return_rows_of_one_shape_and_type(later, got):
    task, seen = squares(), []

    def function(_, y):
        seen.append(len(y))
        return y.float() if len(seen) == 1 else later(y.float())

    task.evaluation.batch_size = 10
    with pytest.raises(BenchmarkError, match=rf": of one shape and type for all batches\. Got {got}\.$"):
        task.each(function)


def test_the_results_of_batches_are_not_kept_one_by_one():
    task, parts, n_alive = squares(), [], []

    def function(_, y):
        n_alive.append(sum(part() is not None for part in parts))
        result = y.double()
        parts.append(weakref.ref(result))
        return result

    task.evaluation.batch_size = 10
    assert torch.equal(task.each(function), task.y.double())
    assert len(parts) > 5
    assert max(n_alive) <= 1


def test_there_may_be_more_proxies_than_a_byte_tells_apart():
    """As of a dataset with a thousand classes."""
    task = squares()
    net = task.new_net()
    task.train(net, ce, predict=net, proxy=lambda _, y: 256 * (torch.arange(len(y)) % 2) + 60_000)
    predicted = predictions(net, task.splits.valid, task.recipe)
    worst = slow_worst(task, predicted, 256 * (torch.arange(len(predicted)) % 2))
    assert task.journal.epochs[-1].valid["acc_worst_proxy"] == pytest.approx(worst)


def test_proxies_go_with_a_predictor():
    task = squares()
    net = task.new_net()
    with pytest.raises(ValueError, match="goes with predict="):
        task.train(net, ce, proxy=net)


# ---- predictors ------------------------------------------------------------------------------------------------------


class HeadOnly(Method):
    """Trains a head on features of an encoder that was trained before: what was wrong by two points."""

    name = "head-only"

    def fit(self, task):
        encoder, head = task.new_net(), task.new_head(64, task.n_classes)
        task.train(encoder, ce, epochs=1)
        task.train({"head": head}, self.loss, frozen={"encoder": encoder}, predict=self.predict, epochs=3)
        return self.predict

    def loss(self, nets, batch, state):
        return cross_entropy(nets.head(nets.encoder.features(batch.x)), batch.y).mean()

    def predict(self, nets, x):
        return nets.head(nets.encoder.features(x))


class ClosedOver(HeadOnly):
    """The same, with the encoder out of the stage's sight: evaluated in eval mode all the same."""

    name = "closed-over"

    def fit(self, task):
        encoder, head = task.new_net(), task.new_head(64, task.n_classes)
        task.train(encoder, ce, epochs=1)
        object.__setattr__(self, "encoder", encoder)
        features = task.each(lambda x, _: encoder.features(x))
        task.train({"head": head}, self.loss, inputs=features, predict=self.predict, epochs=3)
        return self.predict

    def loss(self, nets, batch, state):
        return cross_entropy(nets.head(batch.x), batch.y).mean()

    def predict(self, nets, x):
        return nets.head(self.encoder.features(x))


@pytest.mark.parametrize("method", [HeadOnly(), ClosedOver()], ids=lambda method: method.name)
def test_every_network_of_the_task_is_evaluated_in_eval_mode(make_task, method):
    """The last logged row is what the final predictions say, and evaluation moves no batch statistics."""
    task = make_task(method)
    method.fit(task)
    result, arrays = result_of(task)
    right = (arrays["test_prediction"].long() == task.splits.test.y).float().mean()
    assert result.selected().test["acc_avg"] == pytest.approx(float(right))


def test_a_predictor_that_is_changed_after_its_last_evaluation_is_refused(make_task):
    task = make_task(**QUICK)
    net = task.new_net()
    task.train(net, ce, predict=net)
    with torch.no_grad():
        net.head.bias += torch.arange(10) * 100
    with pytest.raises(BenchmarkError, match=r"it was changed after that. Let fit call task.evaluate\(predict\)"):
        result_of(task)
    task.evaluate(net)
    assert result_of(task)[0].selection["last"] == len(task.journal.epochs) - 1


class TrainMode(Method):
    """A predictor that moves batch statistics."""

    name = "train-mode"

    def fit(self, task):
        net = task.new_net()
        task.train(net, ce, predict=self.predict)
        return self.predict

    def predict(self, nets, x):
        return nets.net.train()(x)


def test_an_evaluation_that_leaves_a_trace_is_refused(make_task):
    with pytest.raises(BenchmarkError, match="changed a buffer of a network"):
        TrainMode().fit(make_task(epochs=1))


def module_level(nets, x):
    return nets.net(x)


@pytest.mark.parametrize("predict", [lambda nets, x: nets.net(x), module_level, None.__class__])
def test_a_predictor_that_could_not_be_loaded_is_refused_with_the_line_to_write(make_task, predict):
    task = make_task(**QUICK)
    with pytest.raises(BenchmarkError, match=r"Write def predict\(self, nets, x\)"):
        task.stage(task.new_net(), ce, predict=predict)


def test_a_network_that_predicts_is_of_the_stage(make_task):
    task = make_task(**QUICK)
    net, other = task.new_net(), task.new_net()
    with pytest.raises(BenchmarkError, match=r"none of the stage's.*frozen="):
        task.stage(net, ce, predict=other)
    task.stage(net, ce, predict=other, frozen={"other": other})


def test_the_predictor_carries_its_recipe(make_task):
    """A stage with a recipe of its own (another normalisation) is evaluated as it was trained, also at the end."""
    task = make_task(**QUICK)
    recipe = task.recipe.replace(mean=(0.2, 0.2, 0.2), std=(0.1, 0.1, 0.1))
    net = task.new_net()
    task.train(net, ce, predict=net, recipe=recipe)
    assert task.predicting_recipe == recipe
    result, _ = result_of(task)
    logits = net.eval()(to_input(task.splits.test.x, recipe))
    right = (logits.argmax(1) == task.splits.test.y).float().mean()
    assert result.selected().test["acc_avg"] == pytest.approx(float(right))


# ---- several optimisers ----------------------------------------------------------------------------------------------


def adversarial(nets, batch, state):
    """A network that is right while a critic cannot tell the bias column from its logits."""
    logits = nets.net(batch.x)
    guess = cross_entropy(nets.critic(logits), batch.other).mean()
    return {"net": cross_entropy(logits, batch.y).mean() - 0.1 * guess, "critic": guess}


def adversary(task):
    return {"net": task.new_net(), "critic": task.new_head(10, 10)}


@pytest.mark.parametrize("turns", [(), ("critic", "critic", "net")])
def test_networks_with_recipes_of_their_own_equal_a_plain_loop(make_task, turns):
    task = make_task(**QUICK, epochs=3)
    nets = adversary(task)
    plain = copy.deepcopy(nets)
    loss, seen = noted(task, adversarial)
    other = task.splits.train.bias[:, 0]
    recipes = {"critic": task.recipe.replace(optimizer="adam", learning_rate=0.003, schedule="constant")}
    task.train(nets, loss, recipe=recipes, columns={"other": other}, turns=turns)
    decay = task.recipe.weight_decay
    sgd = torch.optim.SGD(plain["net"].parameters(), 0.02, momentum=0.9, weight_decay=decay, fused=True)
    adam = torch.optim.Adam(plain["critic"].parameters(), 0.003, weight_decay=decay, fused=True)
    per_epoch = len(seen) // 3
    for step, index in enumerate(seen):
        for group in sgd.param_groups:
            group["lr"] = learning_rate_at(task.recipe, (step // per_epoch) / 3)
        logits = plain["net"](images(task, index))
        guess = F.cross_entropy(plain["critic"](logits), other[index])
        value = F.cross_entropy(logits, task.y[index]) - 0.1 * guess
        for_net = torch.autograd.grad(value, list(plain["net"].parameters()), retain_graph=True)
        for_critic = torch.autograd.grad(guess, list(plain["critic"].parameters()))
        for parameter, gradient in zip(plain["net"].parameters(), for_net, strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(plain["critic"].parameters(), for_critic, strict=True):
            parameter.grad = gradient
        turn = turns[step % len(turns)] if turns else None
        if turn in (None, "net"):
            sgd.step()
        if turn in (None, "critic"):
            adam.step()
    assert same(nets["net"], plain["net"], rtol=1e-5, atol=1e-6)
    assert same(nets["critic"], plain["critic"], rtol=1e-5, atol=1e-6)
    assert not same(nets["critic"], task.new_head(10, 10))


def test_turns_alone_give_each_network_an_optimiser(make_task):
    """One recipe, and a plain loss: only whose turn it is moves."""
    task = make_task(**QUICK, epochs=1, momentum=0.0, weight_decay=0.0)
    nets = {"one": task.new_net(), "two": task.new_net()}
    before = copy.deepcopy(nets)

    def both(nets, batch, state):
        return cross_entropy(nets.one(batch.x) + nets.two(batch.x), batch.y).mean()

    task.train(nets, both, turns=("one",))
    assert not same(nets["one"], before["one"])
    assert same(nets["two"], before["two"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": {"nobody": {}}}, "name nobody; the trained networks are net"),
        ({"turns": ("nobody",)}, "name nobody; the trained networks are net"),
        ({"recipe": {"net": {"batch_size": 8}}}, "differs from the stage's in batch_size"),
        ({"recipe": {"net": {"precision": "bf16"}}}, "differs from the stage's in precision"),
        ({"turns": ("net",), "combine": lambda gradients: gradients["a"]}, "does not go with turns="),
    ],
)
def test_what_does_not_go_together_is_refused(make_task, options, message):
    task = make_task(**QUICK)
    if "recipe" in options:
        options = {"recipe": {name: task.recipe.replace(**changes) for name, changes in options["recipe"].items()}}
    with pytest.raises(ValueError, match=message):
        task.stage(task.new_net(), ce, **options)


def test_terms_are_named_after_the_networks(make_task):
    task = make_task(**QUICK)
    nets = adversary(task)
    loss = lambda nets, batch, state: {"net": ce(nets, batch, state), "critics": ce(nets, batch, state)}  # noqa: E731
    with pytest.raises(TypeError, match=r"must be named after the networks net, critic\. Got net, critics"):
        task.train(nets, loss, turns=("net",))


# ---- terms -----------------------------------------------------------------------------------------------------------


def two_terms(nets, batch, state):
    logits = nets.net(batch.x)
    return {"right": cross_entropy(logits, batch.y).mean(), "small": 0.01 * logits.square().mean()}


def test_terms_are_added_up(make_task):
    task = make_task(**QUICK)
    net, other = task.new_net(), task.new_net()
    other.load_state_dict(net.state_dict())
    task.train(net, two_terms)

    def summed(nets, batch, state):
        return sum(two_terms(nets, batch, state).values())

    again = make_task(**QUICK)
    one = again.new_net()
    again.new_net()
    again.train(one, summed)
    assert same(net, one, rtol=1e-5, atol=1e-7)
    assert task.journal.stages[0].losses == pytest.approx(again.journal.stages[0].losses)


def surgery(gradients):
    """The second gradient loses what goes against the first (Yu et al., 2020, in one direction)."""
    first, second = gradients["right"], gradients["small"]
    flat = [torch.cat([one.flatten() for one in part]) for part in (first, second)]
    against = (flat[0] @ flat[1]).clamp_max(0) / flat[0].square().sum().clamp_min(1e-12)
    return [a + b - against * a for a, b in zip(first, second, strict=True)]


def test_combined_gradients_equal_a_plain_loop(make_task):
    task = make_task(**QUICK)
    net = task.new_net()
    plain = copy.deepcopy(net)
    loss, seen = noted(task, two_terms)
    task.train(net, loss, combine=surgery)
    optimizer = torch.optim.SGD(
        plain.parameters(), 0.02, momentum=0.9, weight_decay=task.recipe.weight_decay, fused=True
    )
    per_epoch = len(seen) // 2
    for step, index in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(task.recipe, (step // per_epoch) / 2)
        logits = plain(images(task, index))
        parameters = list(plain.parameters())
        terms = {"right": F.cross_entropy(logits, task.y[index]), "small": 0.01 * logits.square().mean()}
        gradients = {key: torch.autograd.grad(term, parameters, retain_graph=True) for key, term in terms.items()}
        for parameter, gradient in zip(parameters, surgery(gradients), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert same(net, plain, rtol=1e-5, atol=1e-7)


def test_combine_gives_a_gradient_a_parameter(make_task):
    task = make_task(**QUICK)
    with pytest.raises(TypeError, match="must return a gradient for each of the 8 trained parameters"):
        task.train(task.new_net(), two_terms, combine=lambda gradients: gradients["right"][:3])


@pytest.mark.parametrize("value", [{"a": torch.zeros(3)}, {"a": 1.0}, {}])
def test_terms_are_numbers(make_task, value):
    task = make_task(**QUICK)
    with pytest.raises(TypeError, match="or a dictionary of such terms"):
        task.train(task.new_net(), lambda *_: value)


def test_the_lint_says_what_to_do_instead_of_autograd_grad(make_task):
    task = make_task(**QUICK)
    net = task.new_net()

    def penalised(nets, batch, state):
        value = cross_entropy(nets.net(batch.x), batch.y).mean()
        (gradient,) = torch.autograd.grad(value, nets.net.head.weight, create_graph=True)
        return value + gradient.square().sum()

    with pytest.raises(AssertionError, match=r"calls autograd.grad.*combine="):
        lint_loss(penalised, {"net": net}, sample_batch(task), {})


# ---- noise and views -------------------------------------------------------------------------------------------------

BETA = torch.distributions.Beta(2.0, 2.0)


def run_with_noise(make_task, seed=0, epochs=2, disturb=False, in_parts=False):
    task = make_task(**QUICK, seed=seed, epochs=epochs)
    drawn = []

    def loss(nets, batch, state):
        drawn.append((int(batch.epoch), batch.index, batch.lam, batch.shift))
        if disturb:
            torch.rand(5)
        return (batch.lam * cross_entropy(nets.net(batch.x + batch.shift.mean()), batch.y)).mean()

    noise = {"lam": BETA, "shift": torch.distributions.Normal(0.0, 0.1)}
    stage = task.stage(task.new_net(), loss, noise=noise)
    for _ in range(epochs if in_parts else 1):
        stage.run(epochs=1 if in_parts else None)
    return task, drawn


def test_noise_follows_its_place_alone(make_task):
    _, drawn = run_with_noise(make_task)
    _, again = run_with_noise(make_task, disturb=True)
    _, other = run_with_noise(make_task, seed=1)
    for (epoch, index, lam, shift), same_place in zip(drawn, again, strict=True):
        assert lam.shape == shift.shape == index.shape
        assert epoch == same_place[0]
        assert torch.equal(lam, same_place[2])
        assert torch.equal(shift, same_place[3])
    assert not torch.equal(drawn[0][2], other[0][2])
    everything = torch.cat([lam for _, _, lam, _ in drawn])
    assert len(everything) == 400
    assert everything.unique().numel() > 390  # drawn anew for each sample and epoch
    assert float(everything.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(everything.var()) == pytest.approx(0.05, abs=0.01)
    shifts = torch.cat([shift for *_, shift in drawn])
    assert float(shifts.std()) == pytest.approx(0.1, abs=0.02)


def test_noise_leaves_order_augmentation_and_dropout_alone(make_task):
    """What else is drawn does not depend on it."""

    def weights(noise):
        task = make_task(epochs=1)
        net = task.new_net()
        task.train(net, ce, noise=noise)
        return net

    assert same(weights({}), weights({"lam": BETA}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": {"y": BETA}}, "A batch has y already"),
        ({"columns": {"x": torch.zeros(200)}}, "A batch has x already"),
        ({"columns": {"bias": torch.zeros(200)}}, "A batch has bias already"),
        ({"noise": {"lam": BETA}, "columns": {"lam": torch.zeros(200)}}, "A batch has lam already"),
        ({"noise": {"lam": torch.distributions.Beta(torch.ones(3), torch.ones(3))}}, "a distribution of one number"),
        ({"views": 0}, "views= must be at least 1. Got 0"),
        ({"views": 2}, "they need images and a recipe that augments"),
    ],
)
def test_what_cannot_be_put_into_a_batch_is_refused(make_task, options, message):
    task = make_task(**QUICK)
    with pytest.raises(ValueError, match=message):
        task.stage(task.new_net(), ce, **options)


def test_a_loss_that_draws_is_told_to_declare_it(make_task):
    task = make_task(**QUICK)

    def drawing(nets, batch, state):
        return torch.rand(()) * ce(nets, batch, state)

    with pytest.raises(AssertionError, match="declare what it needs with the stage"):
        lint_loss(drawing, {"net": task.new_net()}, sample_batch(task), {})


def test_views_are_augmented_anew_and_the_first_is_x(make_task):
    task = make_task(epochs=1)
    seen = []

    def loss(nets, batch, state):
        seen.append((batch.index, batch.x, batch.views))
        return ce(nets, batch, state)

    net = task.new_net()
    task.train(net, loss, views=3)
    call = task.journal.stages[0].call
    for step, (index, x, views) in enumerate(seen):
        assert views.shape == (3, *x.shape)
        assert torch.equal(views[0], x)
        place = (task.seed, call, 0, step)
        assert torch.equal(x, augmented(task.x[index], task.recipe, derived_generator("augment", *place)))
        for view in (1, 2):
            expected = augmented(task.x[index], task.recipe, derived_generator("augment", *place, view))
            assert torch.equal(views[view], expected)
        assert not torch.equal(views[1], views[2])
    plain = make_task(epochs=1)
    one = plain.new_net()
    plain.train(one, ce)
    assert same(net, one)  # what x is does not depend on the views


def test_texts_have_no_views(make_task):
    text = Samples(torch.zeros(8, 4, dtype=torch.int32), torch.arange(8) % 2, torch.zeros(8, 1, dtype=torch.int64))
    task = make_task(splits=Splits(text, text, text))
    with pytest.raises(BenchmarkError, match="they need images"):
        task.batches(views=2)


# ---- learnt tensors, snapshots, columns ------------------------------------------------------------------------------


def test_learnt_tensors_are_trained_and_saved_as_networks(make_task):
    """Weights of samples: those of wrong labels sink."""
    task = make_task(**QUICK, epochs=2)
    net, weights = task.new_net(), task.new_parameter(task.n_samples, start=1.0)
    temperature = task.new_parameter(start=2.0)
    assert weights.value.shape == (200,)
    assert temperature.value.shape == ()

    def loss(nets, batch, state):
        losses = cross_entropy(nets.net(batch.x) / nets.temperature.value, batch.y)
        return (nets.weights.value[batch.index] * losses).mean()

    seen = []
    task.train(
        {"net": net, "weights": weights, "temperature": temperature}, lambda *a: seen.append(a[1].index) or loss(*a)
    )
    assert bool((weights.value != 1.0).all())  # each was in a batch
    assert temperature.value.item() != 2.0
    again = make_task(**QUICK)
    again.new_net()
    assert torch.equal(again.new_parameter(3, start=0.5).value, torch.full((3,), 0.5))


def test_snapshots_are_numbered_and_put_a_network_back(make_task):
    task = make_task(epochs=1)
    net = task.new_net()
    snapshot = task.snapshot(net)
    before = copy.deepcopy(net)
    task.train(net, ce)
    assert not same(net, before)
    task.restore(snapshot)
    assert same(net, before)
    assert [call["kind"] for call in task.journal.calls] == ["new_net", "snapshot", "train", "restore"]
    with pytest.raises(BenchmarkError, match="were not made by"):
        task.snapshot(nn.Linear(2, 2))


def test_losses_of_a_stage_are_known_between_its_runs(make_task):
    task = make_task(**QUICK, epochs=4)
    stage = task.stage(task.new_net(), ce)
    assert stage.losses == []
    stage.run(epochs=1)
    stage.run(epochs=2)
    assert len(stage.losses) == 3
    assert stage.losses == task.journal.stages[0].losses + task.journal.stages[1].losses


def test_a_column_stands_in_for_the_images(make_task, monkeypatch):
    """Images are then neither gathered nor augmented, and the steps are those of a plain loop on the column."""
    task = make_task(epochs=2)
    encoder, head = task.new_net(), task.new_head(64, 10)
    features = task.each(lambda x, _: encoder.features(x))
    plain = copy.deepcopy(head)
    monkeypatch.setattr(Samples, "read", lambda *_: pytest.fail("images were gathered"))
    seen = []

    def loss(nets, batch, state):
        seen.append(batch.index)
        assert torch.equal(batch.x, features[batch.index])
        return cross_entropy(nets.head(batch.x), batch.y).mean()

    task.train({"head": head}, loss, inputs=features)
    optimizer = torch.optim.SGD(
        plain.parameters(), 0.02, momentum=0.9, weight_decay=task.recipe.weight_decay, fused=True
    )
    per_epoch = len(seen) // 2
    for step, index in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(task.recipe, (step // per_epoch) / 2)
        optimizer.zero_grad()
        F.cross_entropy(plain(features[index]), task.y[index]).backward()
        optimizer.step()
    assert same(head, plain, rtol=1e-5, atol=1e-7)


def test_columns_in_place_of_images_have_a_row_a_sample(make_task):
    task = make_task(**QUICK)
    with pytest.raises(ValueError, match="Column 'inputs' has 3 rows"):
        task.stage(task.new_net(), ce, inputs=torch.zeros(3, 4))


# ---- loops of a method's own -----------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_is_the_stage(make_task):
    """The same optimiser, schedule and batches: the same weights, bit for bit."""
    task = make_task(epochs=3)
    net = task.new_net()
    weight = torch.rand(200, generator=torch.Generator().manual_seed(0))
    loop = task.batches(columns={"weight": weight}, noise={"lam": BETA})
    optimizer = loop.optimizer(net)
    for batch in loop:
        assert torch.equal(batch.weight, weight[batch.index])
        value = (batch.lam * cross_entropy(net(batch.x), batch.y)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loop.note(value)
    other = make_task(epochs=3)
    one = other.new_net()
    other.train(
        one, lambda nets, batch, _: (batch.lam * cross_entropy(nets.net(batch.x), batch.y)).mean(),
        columns={"weight": weight}, noise={"lam": BETA},
    )  # fmt: skip
    assert same(net, one)
    assert loop.losses == pytest.approx(other.journal.stages[0].losses)
    run = task.journal.stages[0]
    assert (run.epochs, len(run.losses)) == (3, 3)
    assert run.seconds > 0


def test_a_loop_tells_its_progress_and_diverges_in_words(make_task):
    told = []
    task = make_task(**QUICK, epochs=2, progress=lambda *what: told.append(what))
    loop = task.batches()
    for _ in loop:
        loop.note(torch.tensor(1.0))
    assert told == [("stage 1", epoch, 2, [("stage 1/train_loss", 1.0, epoch)]) for epoch in (1, 2)]
    loop = task.batches(epochs=1)

    def all_of_it():
        for _ in loop:
            loop.note(torch.tensor(math.nan))

    with pytest.raises(DivergedError, match="became nan in epoch 1 of training call"):
        all_of_it()


def test_a_loop_counts_steps_and_draws(make_task):
    task = make_task(**QUICK)
    probabilities = torch.zeros(200)
    probabilities[:5] = 1
    batches = list(task.batches(recipe=task.recipe.replace(steps=5), sample=probabilities, draws=64))
    assert len(batches) == 5
    assert max(int(batch.index.max()) for batch in batches) < 5
    assert [int(batch.epoch) for batch in batches] == [0, 0, 1, 1, 2]
