"""What a method may do between its calls, and what must not change its result when it was interrupted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debiasbench.losses import cross_entropy, mean_cross_entropy
from debiasbench.methods import Method
from debiasbench.testing import Tiny, compare_with_interrupted, make_task
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.ends import StaleJournalError
from debiasbench.training.journal import Journal, StoppedError
from debiasbench.training.reuse import Reuse


def weighted(nets, batch, state):
    return (batch.weight * cross_entropy(nets.net(batch.x), batch.y)).mean()


class LogsThenNormalises(Method):
    """What was logged is written into afterwards."""

    name = "logs-then-normalises"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        score = task.each(lambda x, y: cross_entropy(net(x), y))
        task.log(score=score)
        score /= score.sum()
        task.train(net, mean_cross_entropy, sample=score, predict=net)
        return net


class GoesOnAfterTheEnd(Method):
    """A stage that was run to its end is run for longer, with the optimiser that it has."""

    name = "goes-on-after-the-end"

    def fit(self, task):
        net = task.new_net()
        stage = task.stage(net, mean_cross_entropy, predict=net)
        stage.run()
        stage.run(epochs=1)
        return net


class StateOfItsOwn(Method):
    """A tensor that a stage was given as its state is changed by hand between two runs."""

    name = "state-of-its-own"

    def fit(self, task):
        net = task.new_net()
        weight = torch.ones(task.n_classes, device=task.device)
        stage = task.stage(net, self.loss, state={"weight": weight}, predict=net)
        for _ in range(2):
            stage.run(epochs=1)
            wrong = task.each(lambda x, y: (net(x).argmax(1) != y).float())
            weight += torch.zeros_like(weight).index_add(0, task.y, wrong) / 10
        return net

    def loss(self, nets, batch, state):
        return (state["weight"][batch.y] * cross_entropy(nets.net(batch.x), batch.y)).mean(), state


class SolvesTheHead(Method):
    """Work outside the loop writes into a network."""

    name = "solves-the-head"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        features = task.each(lambda x, _: net.features(x))

        def solve(features, y, *, generator):
            means = torch.stack([features[y == label].mean(0) for label in range(task.n_classes)])
            with torch.no_grad():
                net.head.weight.copy_(means / means.norm())
                net.head.bias.zero_()

        task.once(solve, features, task.y)
        task.train(net, mean_cross_entropy, predict=net)
        return net


class RelabelsInPlace(Method):
    """Work outside the loop writes into what it was given."""

    name = "relabels-in-place"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        weight = task.each(lambda x, y: net(x).softmax(1).gather(1, y[:, None])[:, 0])

        def clean(weight, *, generator):
            weight[weight < weight.median()] = 0.0
            return weight

        task.once(clean, weight)
        task.train(net, weighted, columns={"weight": weight}, predict=net)
        return net


class BatchStatistics(Method):
    """A pass over all samples that renews the statistics of batch normalisation."""

    name = "batch-statistics"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)

        def renew(x, y):
            for part in net.modules():
                part.train(isinstance(part, nn.BatchNorm2d))
            return net(x).amax(1)

        task.each(renew)
        task.evaluate(net)
        task.train(net, mean_cross_entropy, predict=net)
        return net


class ReadsANewHead(Method):
    """The head of a network was replaced, and is read between two stages that train it."""

    name = "reads-a-new-head"

    def fit(self, task):
        net = task.new_net()
        net.head = task.new_head(net.n_features, task.n_classes)
        task.train(net, mean_cross_entropy)
        size = net.head.weight.detach().norm()
        task.train(net, mean_cross_entropy)
        task.log(score=task.each(lambda x, _: net(x).amax(1)) * float(size))
        task.train(net, mean_cross_entropy, predict=net)
        return net


class AppliesALayer(Method):
    """A layer without values is applied by hand."""

    name = "applies-a-layer"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        features = task.each(lambda x, _: net.features(x))
        score = F.linear(features, net.head.weight.detach()).amax(1)
        task.train(net, mean_cross_entropy)
        task.train(net, weighted, columns={"weight": score.abs()}, predict=net)
        return net


class AddsUpWeights(Method):
    """The weights of several times are added up in a tensor of the method's own."""

    name = "adds-up-weights"

    def fit(self, task):
        net, mean = task.new_net(), task.new_net()
        stage = task.stage(net, mean_cross_entropy)
        total = torch.zeros_like(net.head.weight)
        for _ in range(2):
            stage.run(epochs=1)
            total += net.head.weight.detach() / 2
        score = task.each(lambda x, _: F.linear(net.features(x), total).amax(1))
        task.train(mean, weighted, columns={"weight": score.abs()}, predict=mean)
        return mean


class MarksByIndex(Method):
    """What a state of an earlier run says is marked in a mask of the method's own."""

    name = "marks-by-index"

    def fit(self, task):
        net = task.new_net()
        stage = task.stage(net, self.loss, state={"seen": task.column(0.0)})
        often = task.column(1.0)
        for _ in range(2):
            hardest = stage.run(epochs=1)["seen"].topk(50).indices
            often[hardest] = 4.0
        task.train(net, weighted, columns={"weight": often}, predict=net)
        return net

    def loss(self, nets, batch, state):
        each = cross_entropy(nets.net(batch.x), batch.y)
        return each.mean(), {"seen": state["seen"].index_put((batch.index,), each.detach())}


class FreezesAndClips(Method):
    """Layers are frozen after a stage that trained them; gradients are clipped."""

    name = "freezes-and-clips"

    def fit(self, task):
        recipe = task.recipe.replace(clip_norm=0.05)
        net = task.new_net()
        task.train(net, mean_cross_entropy, recipe=recipe)
        for parameter in net.parameters():
            parameter.requires_grad_(parameter is net.head.weight or parameter is net.head.bias)
        task.train(net, mean_cross_entropy, recipe=recipe, predict=net)
        return net


class FreezesMeanwhile(Method):
    """Layers are frozen between two runs of a stage whose networks have recipes of their own."""

    name = "freezes-meanwhile"

    def fit(self, task):
        net, other = task.new_net(), task.new_net()
        slow = task.recipe.replace(learning_rate=0.001)
        stage = task.stage({"net": net, "other": other}, self.loss, recipe={"other": slow}, predict=self.predict)
        stage.run(epochs=1)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith("head"))
        stage.run(epochs=1)
        return self.predict

    def loss(self, nets, batch, state):
        return {name: cross_entropy(getattr(nets, name)(batch.x), batch.y).mean() for name in ("net", "other")}

    def predict(self, nets, x):
        return nets.net(x) + nets.other(x)


class UnfreezesMeanwhile(Method):
    """Layers are unfrozen between two runs of a stage, whose optimiser does not know them."""

    name = "unfreezes-meanwhile"

    def fit(self, task):
        recipe = task.recipe.replace(clip_norm=0.05)
        net = task.new_net()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith("head"))
        stage = task.stage(net, mean_cross_entropy, recipe=recipe, predict=net)
        stage.run(epochs=1)
        net.requires_grad_(True)
        stage.run(epochs=1)
        return net


class ForwardByHand(Method):
    """A pass of the method's own, in the mode that a stage has left a network in."""

    name = "forward-by-hand"

    def fit(self, task):
        net = task.new_net().eval()
        task.train(net, mean_cross_entropy)
        for part in net.modules():
            if "Dropout" in type(part).__name__:
                part.eval()
        x = task.x[:64].float() / 255
        with torch.no_grad():
            weight = torch.cat([net(x).softmax(1).amax(1), task.column(1.0)[64:]])
        other = task.new_net()
        task.train(other, weighted, columns={"weight": weight}, predict=other)
        return other


class CatchesErrors(Method):
    """What cannot be computed is replaced, whatever the reason."""

    name = "catches-errors"

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        try:
            largest = float(torch.linalg.svdvals(net.head.weight.detach())[0])
        except RuntimeError:
            largest = 1.0
        task.train(net, mean_cross_entropy)
        task.train(net, weighted, columns={"weight": task.column(largest)}, predict=net)
        return net


class StateAsSample(Method):
    """What a stage returns says how another one draws, in turns."""

    name = "state-as-sample"

    def fit(self, task):
        one, other = task.new_net(), task.new_net()
        first = task.stage(one, self.loss, state={"seen": task.column(0.0)})
        second = task.stage(other, mean_cross_entropy, predict=other)
        for _ in range(2):
            seen = first.run(epochs=1)["seen"]
            second.run(epochs=1, sample=seen + 0.1)
        return other

    loss = MarksByIndex.loss


PASSES = []


class CountsItsPasses(Method):
    """A pass whose function counts: skipped after an interruption, it leaves another number behind."""

    name = "counts-its-passes"

    def fit(self, task):
        PASSES.clear()
        net = task.new_net()
        task.each(self.counted)
        weight = task.column(float(len(PASSES)))
        task.train(net, weighted, columns={"weight": weight}, predict=net)
        return net

    def counted(self, x, y):
        PASSES.append(len(x))
        return y


GO_ON = [
    LogsThenNormalises, GoesOnAfterTheEnd, StateOfItsOwn, SolvesTheHead, RelabelsInPlace, BatchStatistics,
    FreezesAndClips, FreezesMeanwhile, UnfreezesMeanwhile, ForwardByHand,
]  # fmt: skip
READ_BETWEEN = [ReadsANewHead, AppliesALayer, AddsUpWeights, MarksByIndex, CatchesErrors, StateAsSample]


@pytest.mark.parametrize("cls", GO_ON)
def test_what_a_method_does_between_calls_is_done_again(cls):
    compare_with_interrupted(cls())


@pytest.mark.parametrize("cls", READ_BETWEEN)
def test_what_has_no_values_is_never_computed_with(cls):
    """The cell then starts anew: torch itself would give whatever lies in memory, or do nothing."""
    with pytest.raises(AssertionError, match="what has no values yet is read"):
        compare_with_interrupted(cls())


def test_a_stage_does_not_go_on_with_other_values(tmp_path):
    """Where a method keeps something that calls do not return, a stage that is under way tells it as a finished one."""
    recipe = Tiny.recipe.replace(batch_size=100)

    def fit(stops_in_stage):
        method, journal = CountsItsPasses(), Journal(checkpoints=Checkpoints(tmp_path / "cell", {}, interval=0.0))
        task = make_task(method, recipe=recipe, journal=journal)
        if stops_in_stage:
            train = task.stage

            def stage(*arguments, **options):
                journal.stopping = True
                return train(*arguments, **options)

            task.stage = stage
            journal.stop_if_asked = lambda: None
        try:
            return method.fit(task)
        finally:
            journal.close()

    with pytest.raises(StoppedError):
        fit(stops_in_stage=True)
    with pytest.raises(StaleJournalError, match="with other values"):
        fit(stops_in_stage=False)


class Mixes(Method):
    """A reusable stage with noise."""

    name = "mixes"
    strength: float = 16.0

    def fit(self, task):
        net = task.new_net()
        beta = torch.distributions.Beta(self.strength, self.strength)
        task.train(net, mixed, noise={"lam": beta}, reuse=True)
        task.train(net, mean_cross_entropy, predict=net)
        return net


def mixed(nets, batch, state):
    return (batch.lam * cross_entropy(nets.net(batch.x), batch.y)).mean()


class LaysOut(Method):
    """A reusable stage whose batches a method of the class lays out."""

    name = "lays-out"
    strength: float = 16.0

    def fit(self, task):
        net = task.new_net()
        task.train(net, mean_cross_entropy, sample=self.layout, reuse=True)
        task.train(net, mean_cross_entropy, predict=net)
        return net

    def layout(self, generator):
        return list(torch.randperm(256, generator=generator)[: int(self.strength)].split(8))


class Combines(Method):
    """A reusable stage whose gradients a method of the class combines."""

    name = "combines"
    strength: float = 16.0

    def fit(self, task):
        net = task.new_net()
        task.train(net, terms, combine=self.combine, reuse=True)
        task.train(net, mean_cross_entropy, predict=net)
        return net

    def combine(self, gradients):
        return [one + self.strength * other for one, other in zip(*gradients.values(), strict=True)]


def terms(nets, batch, state):
    loss = mean_cross_entropy(nets, batch, state)
    return {"one": loss, "other": loss**2}


@pytest.mark.parametrize("cls", [Mixes, LaysOut, Combines])
def test_stages_that_differ_in_a_value_are_not_one(cls, tmp_path):
    """Neither in a distribution of noise, nor in what a function that lays out or combines is bound to."""

    def reused(strength):
        method = cls(strength=strength)
        task = make_task(method, recipe=Tiny.recipe.replace(epochs=1, batch_size=100))
        task.reuse = Reuse(tmp_path, data="tiny", device=torch.device("cpu"))
        method.fit(task)
        return any(call.get("reused") for call in task.journal.calls)

    assert not reused(16.0)
    assert not reused(8.0)
