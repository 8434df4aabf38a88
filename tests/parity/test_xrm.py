"""XRM: twin networks whose confident mistakes spread, the environments of what they get wrong, and GroupDRO."""

import copy

import pytest
import torch
from reference import SGD, SlowGroups, images, logits_of, masses, replay, samples_of, slow_ce, task_for


class SlowTwins:
    """The twins' loss over single samples, and the labels that flip after each step."""

    def __init__(self, y, in_a):
        self.labels, self.in_a, self.flips, self.weights = y.tolist(), in_a.tolist(), 0, set()

    def __call__(self, nets, batch):
        labels, value, changed = list(self.labels), 0.0, {}
        n_classes = 4
        for sample, (x, _), draw in zip(batch.index.tolist(), samples_of(batch), batch.draw.tolist(), strict=True):
            own, other = ("a", "b") if self.in_a[sample] else ("b", "a")
            label = labels[sample]
            weight = len(labels) / n_classes / labels.count(label)
            self.weights.add(weight)
            value = value + weight * slow_ce(logits_of(nets[own], x), label)
            p = logits_of(nets[other], x).softmax(0).tolist()
            if draw < (max(p) - 1 / n_classes) * n_classes / (n_classes - 1):
                changed[sample] = p.index(max(p))
                self.flips += changed[sample] != label
        for sample, label in changed.items():
            self.labels[sample] = label
        return value / len(batch.y)


def test_xrm_equals_a_loop_over_samples(new_method, way, agree):
    """Labels as they are in each step, environments by the given ones, and GroupDRO on (label, environment)."""
    method = new_method("xrm", step_size=0.1)
    task = task_for(method, way, epochs=4)
    method.fit(task)
    first, second = task.runs
    in_a = first.options["columns"]["in_a"]
    assert 4 < int(in_a.sum()) < 28
    slow = SlowTwins(task.y, in_a)
    twins = replay(first, slow, way(), agree)
    assert slow.flips > 5
    assert len(slow.weights) > 4  # classes change their size
    flipped = [one != y for one, y in zip(slow.labels, task.y.tolist(), strict=True)]
    agree("flipped", task.journal.values["flipped"], sum(flipped) / len(flipped))
    wrong = [any(int(logits_of(twins[name], x).argmax()) != y for name in "ab") for x, y in images(task)]
    assert task.journal.columns["selected"].tolist() == wrong
    assert 0 < sum(wrong) < 32
    group = 2 * task.y + torch.tensor(wrong)
    drawn = masses(second.options["sample"], group)
    agree("drawn", list(drawn.values()), [1 / len(drawn)] * len(drawn))
    replay(second, SlowGroups(group, step_size=0.1), way(), agree)


def test_a_twin_learns_nothing_from_what_is_held_out(new_method):
    """Its gradient is that of its own samples alone, and none comes from the flips."""
    method = new_method("xrm")
    task = task_for(method, SGD, epochs=4)
    method.fit(task)
    run = task.runs[0]
    batch = copy.copy(run.steps[0].batch)
    nets = run.start
    for held_in in (True, False):
        batch.in_a = torch.full((8,), held_in)
        value, _ = method.twin_loss(nets, batch, {"label": task.y})
        slopes = torch.autograd.grad(value, list(nets.parameters()), allow_unused=True)
        sizes = {name: 0.0 for name in "ab"}
        for (name, _), slope in zip(nets.named_parameters(), slopes, strict=True):
            sizes[name[0]] += 0.0 if slope is None else float(slope.abs().sum())
        assert sizes["a" if held_in else "b"] > 0
        assert sizes["b" if held_in else "a"] == 0


@pytest.mark.parametrize(("p", "expected"), [(0.25, 0.0), (0.5, 1 / 3), (0.85, 0.8), (1.0, 1.0)])
def test_how_often_a_label_flips(new_method, p, expected):
    """(p - 1/C) C / (C - 1) of 4 classes: never by chance, always when sure; in steps of a thousandth."""
    method = new_method("xrm")
    rest = (1 - p) / 3
    logits = torch.tensor([[p, rest, rest, rest]], dtype=torch.float64).clamp_min(1e-12).log().expand(1000, 4)

    class Nets:
        a = b = staticmethod(lambda _: logits)

    class Batch:
        x, index, in_a = torch.zeros(1000), torch.arange(1000), torch.arange(1000) % 2 == 0
        draw = (torch.arange(1000) + 0.5) / 1000

    _, state = method.twin_loss(Nets(), Batch(), {"label": torch.full((1000,), 3)})
    assert float((state["label"] == 0).double().mean()) == pytest.approx(expected, abs=1e-3)
    assert set(state["label"].tolist()) <= {0, 3}


@pytest.mark.parametrize(("wrong", "how_many", "advice"), [(True, "all", "longer"), (False, "none", "for fewer")])
def test_an_empty_environment_of_xrm_is_told(new_method, monkeypatch, wrong, how_many, advice):
    method = new_method("xrm")
    task = task_for(method, SGD)
    monkeypatch.setattr(task, "each", lambda _: torch.full((task.n_samples,), wrong))
    with pytest.raises(RuntimeError, match=f"is empty: the twins get {how_many} of the .* Train {advice}"):
        method.fit(task)
