"""More of what methods may do, each interrupted at each of its checkpoints."""

import copy

import pytest
import torch
from torch import nn

from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Method
from debiasbench.testing import compare_with_interrupted, make_task
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.journal import Journal, StoppedError


class EveryOption(Method):
    """Noise, views, a state table, turns, a learnt tensor, a frozen teacher, steps, several evaluations."""

    name = "every-option"

    def fit(self, task):
        recipe = task.recipe.replace(
            steps=7, eval_every=2, precision="bf16", clip_norm=0.5, optimizer="adamw", schedule="cosine"
        )
        teacher, net, scale = task.new_net(), task.new_net(), task.new_parameter(4, start=1.0)
        task.train(teacher, mean_cross_entropy, recipe=task.recipe.replace(drop_last=True))
        task.train(
            {"net": net, "scale": scale}, self.loss, recipe=recipe, frozen={"teacher": teacher}, views=2,
            noise={"lam": torch.distributions.Beta(2.0, 2.0)}, state={"seen": task.column(0.0)},
            turns=("net", "net", "scale"), predict=self.predict,
        )  # fmt: skip
        head = task.new_head(net.n_features, 4)
        features = task.each(lambda x, _: net.features(x), augment=True)
        task.train({"head": head}, self.head_loss, inputs=features, frozen={"net": net}, predict=self.of_head)
        task.evaluate(self.of_head, {"head": head, "net": net})
        task.evaluate(self.of_head, {"head": head, "net": net})
        return self.of_head

    def loss(self, nets, batch, state):
        logits = nets.net(batch.x) * nets.scale.value
        each = cross_entropy(logits, batch.y) + batch.lam * (
            nets.net(batch.views[1]) - nets.teacher(batch.x)
        ).abs().mean(1)
        return {"net": each.mean(), "scale": each.mean()}, {
            "seen": state["seen"].index_put((batch.index,), each.detach().float())
        }

    def predict(self, nets, x):
        return nets.net(x) * nets.scale.value

    def head_loss(self, nets, batch, state):
        return cross_entropy(nets.head(batch.x), batch.y).mean()

    def of_head(self, nets, x):
        return nets.head(nets.net.features(x))


class Tied(Method):
    """Networks with a part in common, each trained in its turn."""

    name = "tied"

    def fit(self, task):
        one, other = task.new_net(), task.new_net()
        other.body = one.body
        first, second = task.stage(one, mean_cross_entropy), task.stage(other, mean_cross_entropy, predict=other)
        for _ in range(2):
            first.run(epochs=1)
            second.run(epochs=1)
        task.log(score=task.each(lambda x, y: cross_entropy(one(x), y)))
        task.train(other, mean_cross_entropy, epochs=1, predict=other)
        return other


class Rewinds(Method):
    """Several snapshots of two networks, and early stopping."""

    name = "rewinds"

    def fit(self, task):
        one, other = task.new_net(), task.new_net()
        start, kept = task.snapshot(one), []
        stage = task.stage({"one": one, "other": other}, self.loss, epochs=4)
        while len(stage.losses) < 3:
            stage.run(epochs=1)
            kept.append((task.snapshot(one), task.snapshot(other)))
        best = min(range(3), key=stage.losses.__getitem__)
        task.restore(kept[best][1])
        task.restore(kept[0][0])
        kept.clear()
        task.log(score=task.each(lambda x, y: cross_entropy(other(x) + one(x), y)))
        task.restore(start)
        one.head = nn.utils.parametrizations.weight_norm(one.head)
        task.train(one, mean_cross_entropy, predict=one)
        return one

    def loss(self, nets, batch, state):
        return cross_entropy(nets.one(batch.x) + nets.other(batch.x), batch.y).mean()


class CopyOfWeights(Method):
    """A second network starts where the first one ended; a deep copy is used in a pass."""

    name = "copy-of-weights"

    def fit(self, task):
        net, other = task.new_net(), task.new_net()
        task.train(net, mean_cross_entropy)
        other.load_state_dict(net.state_dict())
        held = copy.deepcopy(net).eval()
        score = task.each(lambda x, y: cross_entropy(held(x), y))
        for number in range(3):
            task.log(score=score, number=torch.tensor(number))
            task.log(other=score * number)
        task.train(other, mean_cross_entropy, sample=(score * 4 / score.max()).round().long() + 1, predict=other)
        return other


class Listed(Method):
    """Results in lists and dictionaries, generators, numpy, and results that are no tensors."""

    name = "listed"

    def fit(self, task):
        net = task.new_net()
        stage = task.stage(net, self.loss, columns={"weight": (weight := task.column(1.0))}, predict=net)
        history = {}
        for epoch, scores in enumerate(self.scores(task, net)):
            history[epoch] = scores
            stage.run(epochs=1)
            weight.mul_(1 + scores.sigmoid())
            if epoch == 1:
                break
        found = task.once(lambda *s, **_: {"n": {0: float("nan")}, "s": torch.stack(s).numpy()}, *history.values())
        task.log(score=torch.from_numpy(found["s"][0]))
        return net

    def scores(self, task, net):
        while True:
            yield task.each(lambda x, y: cross_entropy(net(x), y))

    def loss(self, nets, batch, state):
        return (batch.weight * cross_entropy(nets.net(batch.x), batch.y)).mean()


class LogsInTurns(Method):
    """One column is logged again and again, another once in between."""

    name = "logs-in-turns"

    def fit(self, task):
        net = task.new_net()
        stage = task.stage(net, mean_cross_entropy, predict=net)
        for epoch in range(2):
            stage.run(epochs=1)
            task.log(score=task.each(lambda x, y: cross_entropy(net(x), y)))
            if epoch == 0:
                task.log(selected=task.y > 1)
        assert list(task.journal.columns) == ["score", "selected"]  # the order in the record
        return net


@pytest.mark.parametrize("cls", [EveryOption, Tied, Rewinds, CopyOfWeights, Listed, LogsInTurns])
def test_goes_on(cls):
    compare_with_interrupted(cls())


def test_what_was_finished_is_written_when_a_stage_after_a_loop_is_stopped(tmp_path):
    """A stage that has no place of its own is done again; the calls before it are not."""
    checkpoints = Checkpoints(tmp_path / "cell", {})
    checkpoints.fraction = 1e-9  # after the first one, none is cheap
    task = make_task(Tied(), journal=Journal(checkpoints=checkpoints))
    net = task.new_net()
    task.train(net, mean_cross_entropy)
    task.each(lambda x, _: net(x).amax(1))
    task.batches()
    stage = task.stage(net, mean_cross_entropy)
    task.journal.number, number = (
        lambda *_: task.journal.__setattr__("stopping", True) or number(*_),
        task.journal.number,
    )
    task.journal.stop_if_asked = lambda: None
    with pytest.raises(StoppedError):
        stage.run()
    assert len(checkpoints.read()["ended"]) == 3
