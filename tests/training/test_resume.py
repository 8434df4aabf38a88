"""A cell that was interrupted goes on where it stood, and comes to the result of an undisturbed one.

Every registered method, and every example, is interrupted at each of its checkpoints by the contract suite
(`check_goes_on_after_an_interruption`). Here are their variants, and what the suite cannot know.
"""

import json
from functools import partial

import pytest
import torch
from torch import nn

from debiasbench import ensembles
from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Method, registry
from debiasbench.recipe import Recipe
from debiasbench.testing import compare_with_interrupted
from debiasbench.training import checkpoints
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.ends import fill, from_bytes, put_state, state_of, to_bytes, without_values
from debiasbench.training.journal import StoppedError
from debiasbench.training.updates import new_optimizer

VARIANTS = {
    "pgd: in turns": ("pgd", {"use": "single-stage"}),
    "pgd: a snapshot goes on": ("pgd", {"bias_ckpt": "best"}),
    "pgd: a second network": ("pgd", {"inherit": False, "use": "upsample"}),
    "pgd: a score from nothing": ("pgd", {"score": "random"}),
    "jtt: errors while training": ("jtt", {"error_pass": "online", "T": 1}),
    "jtt: copies are drawn": ("jtt", {"lambda_up": 2.5}),
    "eiil: IRM": ("eiil", {"backend": "irm"}),
    "george: a snapshot of features": ("george", {"reduction": "pca"}),
    "lff: gradients": ("lff", {"score": "gradnorm"}),
    "lff: an ensemble": ("lff", {"ensemble": 3, "ensemble_steps": 4}),
    "disen: an ensemble": ("disen", {"ensemble": 3, "ensemble_steps": 4}),
}


QUICK = ("pgd: in turns", "pgd: a snapshot goes on", "jtt: errors while training", "lff: an ensemble")


@pytest.mark.parametrize(
    "variant", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in VARIANTS]
)
def test_a_variant_goes_on(variant, monkeypatch):
    monkeypatch.setattr(ensembles, "SURE", 0.2)  # what four steps reach
    name, parameters = VARIANTS[variant]
    compare_with_interrupted(registry.get(name)[0](**parameters))


class OwnLoop(Method):
    """A stage, a loop of its own, and another stage: loop and what follows are done again, the first stage is not."""

    name = "own-loop"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        weight = task.each(lambda x, y: net(x).softmax(1).gather(1, y[:, None])[:, 0])
        loop = task.batches(epochs=1, columns={"weight": weight})
        optimizer = loop.optimizer(net)
        for batch in loop:
            optimizer.zero_grad()
            (batch.weight * cross_entropy(net(batch.x), batch.y)).mean().backward()
            optimizer.step()
        task.evaluate(net)
        task.train(net, mean_cross_entropy, predict=net)
        return net


class CallInACall(Method):
    """A call that makes others has no place of its own: it is done again, with all that follows."""

    name = "call-in-a-call"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        score = task.once(lambda **_: task.each(lambda x, _: net(x).amax(1)))
        task.train(net, mean_cross_entropy, sample=score - score.min() + 1, predict=net)
        return net


class Stateful(Method):
    """State tables, results of several forms, snapshots that come and go, losses that are looked at, two networks."""

    name = "stateful"

    def fit(self, task):
        net, head = task.new_net(), task.new_head(10, 10)
        before = task.snapshot(net)
        stage = task.stage({"net": net}, self.loss, state={"seen": task.column(0.0)})
        while len(stage.losses) < 2 and stage.losses != sorted(stage.losses, reverse=True):
            stage.run(epochs=1)
        seen = stage.run(epochs=1)["seen"]
        sums, words = task.once(self.several, seen, task.y)
        assert words == {"most": [4.5, True, None], "name": "sums"}
        task.log(score=seen, total=sums.sum())
        task.restore(before)
        net.head.load_state_dict({"weight": net.head.weight * 2, "bias": net.head.bias + 1})
        task.train({"head": head, "net": net}, self.both, predict=self.predict)
        return self.predict

    def several(self, seen, y, *, generator):
        sums = torch.zeros(10).index_add(0, y, seen) + torch.rand(10, generator=generator)
        return sums.reshape(2, 5).t(), {"most": [4.5, True, None], "name": "sums"}

    def loss(self, nets, batch, state):
        each = cross_entropy(nets.net(batch.x), batch.y)
        return each.mean(), {"seen": state["seen"].index_put((batch.index,), each.detach())}

    def both(self, nets, batch, state):
        return cross_entropy(self.predict(nets, batch.x), batch.y).mean()

    def predict(self, nets, x):
        logits = nets.net(x)
        return logits + nets.head(logits.new_ones(len(logits), 10))[:, : logits.shape[1]]


class LeavesTraces(Method):
    """Functions that do something besides what they return: fill lists, write into tensors, adapt a network."""

    name = "leaves-traces"

    def fit(self, task):
        net, seen, sizes, count = task.new_net(), [], {}, torch.zeros(10)
        task.each(lambda x, y: seen.append(len(x)) or y)
        task.each(lambda x, y: self.counted(count, y) if len(x) else y)
        task.once(partial(self.measured, sizes=sizes), task.y)
        task.each(lambda x, y: self.adapted(net, x, y))
        task.train(net, partial(weighted, factor=float(len(seen) + count[0] / 26 + sizes["all"] / 256)), predict=net)
        return net

    def counted(self, count, y):
        count.add_(torch.bincount(y, minlength=10))
        return y

    def measured(self, y, *, sizes, generator):
        sizes["all"] = len(y)
        return 0

    def adapted(self, net, x, y):
        """Batch statistics of images that are not trained on."""
        for layer in net.modules():
            layer.train(isinstance(layer, nn.BatchNorm2d))
        net(x)
        net.eval()
        return y


def weighted(nets, batch, state, *, factor):
    return factor * mean_cross_entropy(nets, batch, state)


@pytest.mark.parametrize("cls", [OwnLoop, CallInACall, Stateful, LeavesTraces])
def test_what_a_method_may_do_goes_on(cls):
    compare_with_interrupted(cls())


def test_a_cell_stops_in_a_loop_of_its_own(make_task):
    task = make_task(OwnLoop())
    batches = iter(task.batches())
    next(batches)
    task.journal.stopping = True
    with pytest.raises(StoppedError):
        next(batches)


# ---- optimisers and networks -----------------------------------------------------------------------------------------


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    return net.to(memory_format=torch.channels_last)


def train(net, optimizer, steps):
    for step in steps:
        x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_step_after_loading_is_the_step_without(optimizer):
    """Buffers of an optimiser lie in memory as their parameters do: fused kernels walk through both."""
    recipe = Recipe(epochs=1, batch_size=5, optimizer=optimizer, weight_decay=0.01)
    net = small_net()
    straight = new_optimizer({"net": net}, recipe)
    train(net, straight, range(3))
    weights = to_bytes(net.state_dict(), {})
    state = to_bytes(state_of(straight), {})
    other = small_net()
    resumed = new_optimizer({"net": other}, recipe)
    without_values(other)
    fill(other, from_bytes(weights)[0], torch.device("cpu"))
    put_state(resumed, from_bytes(state)[0])
    for one, parameter in zip(resumed.state.values(), other.parameters(), strict=True):
        assert all(v.stride() == parameter.stride() for v in one.values() if v.shape == parameter.shape)
    train(net, straight, range(3, 6))
    train(other, resumed, range(3, 6))
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_network_without_values_cannot_be_read():
    net = small_net()
    held = net[0].weight
    without_values(net)
    assert net[0].weight is held  # also for whoever holds it
    with pytest.raises(RuntimeError, match="meta"):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        small_net().load_state_dict(net.state_dict())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        float(net[0].weight.sum())


def test_what_a_network_may_be_given_meanwhile_stays():
    """Another head, and layers that are not trained."""
    net, weights = small_net(), small_net().state_dict()
    without_values(net)
    net[0].requires_grad_(False)
    head = net[3] = nn.Linear(8 * 36, 4)
    fill(net, weights, torch.device("cpu"))
    assert [one.requires_grad for one in net.parameters()] == [False, False, True, True, True, True]
    assert net[3] is head
    assert torch.equal(head.weight, weights["3.weight"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).t(),
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.zeros(3).expand(2, 3),
        torch.zeros(0, 3),
        torch.tensor(True),
        torch.randn(3).bfloat16(),
    ],
    ids=["transposed", "channels last", "expanded", "empty", "a truth", "bfloat16"],
)
def test_tensors_come_back_as_they_were(tensor):
    back = from_bytes(to_bytes({"a": tensor, "b": tensor}, {"x": [1, None]}))
    assert back[1] == {"x": [1, None]}
    assert all(torch.equal(one, tensor) and one.dtype == tensor.dtype for one in back[0].values())
    if 0 not in tensor.stride():
        assert back[0]["a"].stride() == tensor.stride()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign"])
def test_damaged_files_are_told(damage):
    data = bytearray(to_bytes({"a": torch.randn(100)}, {"x": 1}))
    if damage == "bit":
        data[-5] ^= 1
    changed = {"cut": data[:-9], "bit": data, "empty": b"", "foreign": b"no safetensors" * 9}[damage]
    with pytest.raises(ValueError, match="cannot be read"):
        from_bytes(bytes(changed))


@pytest.mark.parametrize("change", ["nothing", "header", "journal", "cut", "empty", "a list"])
def test_a_journal_of_something_else_is_not_gone_on_from(change, tmp_path):
    header = {"cell": "1a", "machine": {"threads": 1}}
    kept = Checkpoints(tmp_path / "cell", header)
    kept.keep("net-0", b"weights")
    kept.write({"calls": [1, 2], "spent": 0.1})
    file = tmp_path / "cell" / "journal.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if change == "header":
        content["header"]["machine"]["threads"] = 2
    elif change == "journal":
        content["journal"]["calls"].append(3)
    text = json.dumps(content)
    text = {"cut": text[: len(text) // 2], "empty": "", "a list": "[]"}.get(change, text)
    file.write_text(text, encoding="utf-8")
    again = Checkpoints(tmp_path / "cell", header)
    if change == "nothing":
        assert again.read() == {"calls": [1, 2], "spent": 0.1}
        assert again.bytes_of("net-0") == b"weights"
    else:
        assert again.read() is None
        assert again.unused
        assert again.bytes_of("net-0") is None


def test_what_cannot_be_written_takes_no_room(tmp_path, monkeypatch):
    """Files of an attempt are removed; what was there stays, and the next attempt writes all."""
    kept = Checkpoints(tmp_path, {})
    kept.keep("net-0", b"first")
    kept.write({"n": 1})
    write = checkpoints.write_atomically

    def full(path, data):
        if path.name == "journal.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    for _ in range(3):
        monkeypatch.setattr(checkpoints, "write_atomically", full)
        kept.keep("net-1", b"second")
        kept.write({"n": 2})
    assert len(list(tmp_path.iterdir())) == 2
    assert Checkpoints(tmp_path, {}).read() == {"n": 1}
    monkeypatch.undo()
    kept.write({"n": 3})
    again = Checkpoints(tmp_path, {})
    assert again.read() == {"n": 3}
    assert (again.bytes_of("net-0"), again.bytes_of("net-1")) == (b"first", b"second")
