"""The methods of examples/: each passes the contract suite, is its description in a slow loop, and can be loaded.

They are known as by `--methods-dir examples/methods`, as long as this file is tested.
"""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import grad

from debiasbench import weights
from debiasbench.data.augment import to_input
from debiasbench.datasets import registry as datasets
from debiasbench.grid import expand
from debiasbench.methods import registry
from debiasbench.records import read_arrays, read_record
from debiasbench.running.runner import Runner
from debiasbench.schedule import learning_rate_at
from debiasbench.testing import METHOD_CHECKS, make_task
from debiasbench.training.task import Task

FOLDER = Path(__file__).parent.parent.parent / "examples" / "methods"
NAMES = {
    "adversary": "adversary", "two_views": "two-views",
    "sample_weights": "sample-weights", "surgery": "surgery", "distillation": "distillation",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def known():
    """The folder is one of those that methods are found in."""
    package = sys.modules["debiasbench.methods"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(package, "__path__", [*package.__path__, str(FOLDER)])
        yield
    for file in NAMES:
        sys.modules.pop(f"debiasbench.methods.{file}", None)


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES.values())
def test_it_passes_the_contract_suite(name, check):
    check(registry.get(name)[0])


def test_every_file_is_tested_and_short():
    lengths = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.glob("*.py")}
    del lengths["focal"]  # that of the documents: see test_docs.py
    assert lengths.keys() == NAMES.keys()
    assert min(lengths.values()) >= 20
    assert max(lengths.values()) <= 70


def test_they_are_found_in_their_folder_alone(monkeypatch):
    package = sys.modules["debiasbench.methods"]
    assert registry.classes().keys() >= set(NAMES.values())
    monkeypatch.setattr(package, "__path__", [path for path in package.__path__ if path != str(FOLDER)])
    assert not registry.classes().keys() & set(NAMES.values())


# ---- against slow loops ----------------------------------------------------------------------------------------------
# One step of a stage, sample by sample as it is described: (method, nets, batch) -> (the loss of the step, {network:
# [gradient of each parameter]}). Networks and batch are in float64, and the batch tells the bias.


def gradients(value, **nets):
    """The gradients of a value, for some networks by name."""
    return {name: list(grad(value, list(net.parameters()), retain_graph=True)) for name, net in nets.items()}


def mean(values):
    return sum(values) / len(values)


def number(value):
    return float(value.detach())


def log_p(logits):
    """Logarithms of the probabilities of one sample's classes."""
    return logits - logits.exp().sum().log()


def losses_of(logits, y):
    """The cross-entropy of each sample, as a list."""
    return [-log_p(row)[label] for row, label in zip(logits, y.tolist(), strict=True)]


def plain_step(method, nets, batch):
    value = mean(losses_of(nets.net(batch.x), batch.y))
    return value, gradients(value, net=nets.net)


def adversary_step(method, nets, batch):
    """The critic on features that stand still; the network with what the critic then says."""
    features = nets.net.features(batch.x)
    bias = mean(losses_of(nets.critic(features.detach()), batch.bias[:, 0]))
    fooled = mean(losses_of(nets.critic(features), batch.bias[:, 0]))
    value = mean(losses_of(nets.net(batch.x), batch.y)) - method.strength * fooled
    return bias + value, gradients(bias, critic=nets.critic) | gradients(value, net=nets.net)


def two_views_step(method, nets, batch):
    """Each view of each image looks for the other one among all but itself."""
    n = len(batch.x)
    first, second = batch.views
    features = [*nets.encoder.features(first), *nets.encoder.features(second)]
    unit = [nets.projection(nets.hidden(row).clamp_min(0)) for row in features]
    unit = [row / row.norm() for row in unit]
    losses = []
    for i in range(2 * n):
        heat = {j: (unit[i] @ unit[j] / method.temperature).exp() for j in range(2 * n) if j != i}
        losses.append(-(heat[(i + n) % (2 * n)] / sum(heat.values())).log())
    value = mean(losses)
    return value, gradients(value, encoder=nets.encoder, hidden=nets.hidden, projection=nets.projection)


def two_views_second_step(method, nets, batch):
    value = mean(losses_of(nets.head(nets.encoder.features(batch.x)), batch.y))
    return value, gradients(value, encoder=nets.encoder, head=nets.head)


def sample_weights_step(method, nets, batch):
    """The network goes down on the weighted losses, the scores go up."""
    phi = [1 / (1 + (-score).exp()) for score in nets.scores.value]
    weight = [1 + len(phi) * phi[i] / sum(phi) for i in batch.index.tolist()]
    weighted = [w * loss for w, loss in zip(weight, losses_of(nets.net(batch.x), batch.y), strict=True)]
    value, total = mean(weighted), sum(weighted)
    return value - total, gradients(value, net=nets.net) | gradients(-total, scores=nets.scores)


def surgery_step(method, nets, batch):
    """Both sides' gradients, each as one long vector."""
    losses = losses_of(nets.net(batch.x), batch.y)
    conflicting = (batch.bias[:, 0] != batch.y).tolist()
    values, vectors = [], []
    for side in (False, True):
        own = [loss for loss, its in zip(losses, conflicting, strict=True) if its is side]
        values.append(mean(own) if own else 0 * losses[0])
        vectors.append(torch.cat([one.flatten() for one in gradients(values[-1], net=nets.net)["net"]]))
    one, other = vectors
    if one @ other < 0:
        one, other = one - (one @ other) / (other @ other) * other, other - (one @ other) / (one @ one) * one
    parameters = list(nets.net.parameters())
    parts = (one + other).split([parameter.numel() for parameter in parameters])
    return sum(values), {"net": [part.view(its.shape) for part, its in zip(parts, parameters, strict=True)]}


def biased_step(method, nets, batch):
    p = [(-loss).exp() for loss in losses_of(nets.net(batch.x), batch.y)]
    value = mean([(1 - one**method.alpha) / method.alpha for one in p])
    return value, gradients(value, net=nets.net)


def distillation_step(method, nets, batch):
    """The teacher's probabilities to the power 1 - beta, and the student's cross-entropy with them."""
    students, teachers, others = nets.net(batch.x), nets.teacher(batch.x), nets.biased(batch.x)
    losses = []
    for student, teacher, other, label in zip(students, teachers, others, batch.y.tolist(), strict=True):
        beta = log_p(other).exp()[label]
        flat = log_p(teacher).exp() ** (1 - beta)
        losses.append(-sum(flat / flat.sum() * log_p(student)))
    value = mean(losses)
    return value, gradients(value, net=nets.net)


SLOW = {  # the stages of each method
    "adversary": [adversary_step],
    "two-views": [two_views_step, two_views_second_step],
    "sample-weights": [sample_weights_step],
    "surgery": [surgery_step],
    "distillation": [plain_step, biased_step, distillation_step],
}
PARAMETERS = {"adversary": {"strength": 0.5}}  # enough to tell
# The perceptron divides its input by 255: with these it lies in -1..1, and the networks move within a few steps.
MLP = {"net": "mlp", "mean": (0.5, 0.5, 0.5), "std": (1 / 510, 1 / 510, 1 / 510)}


class Noting(Task):
    """Notes the networks of each stage before and after it, and its batches."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.noted = []

    def stage(self, nets, loss, **options):
        stage = super().stage(nets, loss, **options)
        start, batches, end, run = copied(stage.nets | stage.frozen), [], {}, stage.run

        def noting_loss(nets, batch, state):
            batches.append(batch)
            return loss(nets, batch, state)

        def noting_run():
            state = run()
            end.update(copied(stage.nets))
            return state

        stage.loss, stage.run = noting_loss, noting_run
        self.noted.append((stage, start, batches, end))
        return stage


def copied(nets):
    return {name: copy.deepcopy(net).double() for name, net in nets.items()}


def optimizer_of(name, net, recipe):
    """That of a network, and whether it follows the recipe's schedule."""
    parameters = list(net.parameters())
    if name == "critic":
        return torch.optim.Adam(parameters, 0.001, foreach=False), False
    if name == "scores":
        return torch.optim.SGD(parameters, 1.0, foreach=False), False
    momentum, decay = recipe.momentum, recipe.weight_decay
    return torch.optim.SGD(parameters, 0.0, momentum=momentum, weight_decay=decay, foreach=False), True


def follow(task, method, step, nets, batches, trained):
    """Train networks in place on the batches of a stage -> the mean loss of each epoch."""
    optimizers = {name: optimizer_of(name, nets[name], task.recipe) for name in trained}
    totals = [0.0] * task.recipe.epochs
    for batch in batches:
        double = {key: one.double() if one.is_floating_point() else one for key, one in vars(batch).items()}
        seen = SimpleNamespace(**{**double, "bias": task.splits.train.bias[batch.index]})
        value, found = step(method, SimpleNamespace(**nets), seen)
        assert found.keys() == optimizers.keys()
        for name, (optimizer, follows) in optimizers.items():
            for parameter, gradient in zip(nets[name].parameters(), found[name], strict=True):
                parameter.grad = gradient.detach()
            if follows:
                optimizer.param_groups[0]["lr"] = learning_rate_at(task.recipe, int(batch.epoch) / task.recipe.epochs)
            optimizer.step()
        totals[int(batch.epoch)] += number(value) * len(batch.index)
    return [total / task.n_samples for total in totals]


def distance(one, other):
    """The greatest between two networks' weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", SLOW)
def test_it_equals_a_slow_loop(name, make_splits):
    """Its losses, and its networks after eight steps."""
    method = registry.get(name)[0](**PARAMETERS.get(name, {}))
    dataset = datasets.get("cmnist5k")[0](rho=0.1)
    recipe = dataset.recipe.replace(**MLP, epochs=2, batch_size=20, learning_rate=0.1)
    task = make_task(method, dataset=dataset, splits=make_splits(70), recipe=recipe, task_class=Noting)
    method.fit(task)
    for (stage, start, batches, end), step in zip(task.noted, SLOW[name], strict=True):
        assert len(batches) == 8
        nets = copy.deepcopy(start)
        losses = follow(task, method, step, nets, batches, stage.nets)
        assert stage.losses == pytest.approx(losses, rel=1e-5), step.__name__
        for net in end:
            assert distance(end[net], nets[net]) < 1e-5, f"{step.__name__}: {net}"
            assert distance(end[net], start[net]) > 1e-3, f"{step.__name__}: {net} hardly moves: nothing could be told"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sample-weights", "its scores have an optimiser of their own"),
        ("adversary", "it has an optimiser a network"),
        ("surgery", "it combines the gradients of a whole batch"),
    ],
)
def test_what_cannot_accumulate_gradients_says_so(name, why):
    recipe = datasets.get("cmnist5k")[0]().own_recipe
    method = registry.get(name)[0]()
    assert method.decline_recipe(recipe) is None
    assert method.decline_recipe(recipe.replace(accumulate=2)) == f"{why}: it trains with accumulate=1"


def test_gradients_that_oppose_each_other_are_projected_and_others_added():
    """By hand; the product is over all parameters together."""
    combined = registry.get("surgery")[0]().combined
    pairs = {"aligned": [[1.0, 0.0], [0.0]], "conflicting": [[-1.0, 1.0], [0.0]]}
    sums = combined({name: [torch.tensor(part) for part in parts] for name, parts in pairs.items()})
    assert [one.tolist() for one in sums] == [[0.5, 1.5], [0.0]]  # (1/2, 1/2) and (0, 1)
    pairs = {"aligned": [[1.0, 0.0], [2.0]], "conflicting": [[-1.0, 1.0], [1.0]]}
    sums = combined({name: [torch.tensor(part) for part in parts] for name, parts in pairs.items()})
    assert [one.tolist() for one in sums] == [[0.0, 1.0], [3.0]]


# ---- on real digits --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory, cmnist5k):
    """Name -> the record of two epochs on cmnist5k, with weights."""
    recipe = "epochs=2,optimizer=adam,learning_rate=0.001,net=mlp,mean=0.5/0.5/0.5,std=0.002/0.002/0.002"
    folder, methods = tmp_path_factory.mktemp("examples"), ["vanilla", *NAMES.values()]
    runner = Runner(folder, folder / "results", save_weights=True)
    return {cell.method: runner.run(cell) for cell in expand(methods, [f"cmnist5k:{recipe}"], seeds=1).cells}


@pytest.mark.parametrize("name", NAMES.values())
def test_its_saved_weights_give_the_final_predictions(records, name):
    """Loaded, without the task that trained them; and they are not those of plain training."""
    record = read_record(records[name])
    assert record.failure is None, record.failure
    test = record.cell.build_dataset().build(Path()).test
    with torch.no_grad():
        logits = weights.load(records[name])(to_input(test.x, record.cell.build_recipe()))
    predictions = torch.from_numpy(read_arrays(records[name])["test_prediction"])
    assert torch.equal(logits.argmax(1).to(torch.int16), predictions)
    assert len(predictions.unique()) > 5  # it has learnt something
    plain = torch.from_numpy(read_arrays(records["vanilla"])["test_prediction"])
    assert not torch.equal(predictions, plain)
