"""What the methods are compared with: slow loops over samples, in float64, written from the papers.

`Traced` is a task that keeps what each stage of a method did: the batches that it saw, the value of the loss, its
gradients and the weights in each step. `replay` trains copies of the same networks on the same batches by a slow loss,
with gradients by autograd and an optimiser written out, and compares all of them. Nothing here knows the methods.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits
from debiasbench.testing import Tiny
from debiasbench.training.task import Task

N, N_CLASSES, EPOCHS, BATCH = 32, 4, 3, 8


# ---- what is compared -----------------------------------------------------------------------------------------------


def flat(values):
    """Numbers, tensors or lists of them as one tensor in float64."""
    if isinstance(values, (list, tuple)):
        return torch.cat([flat(value) for value in values])
    return torch.as_tensor(values, dtype=torch.float64).detach().flatten()


def apart(found, expected):
    """The largest difference, as a fraction of the largest value that is expected; nan equals nan."""
    found, expected = flat(found), flat(expected)
    assert found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    largest = float((found - expected).nan_to_num().abs().max())
    return largest and largest / max(float(expected.nan_to_num().abs().max()), 1e-300)


# ---- a small task, and what a method does with it -------------------------------------------------------------------


def small_splits(n=N, *, seed=0, conflicts=0.25):
    """Random images of 3 x 4 x 4 pixels whose first channel tells the label and whose second the bias, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def part(n):
        y = torch.randint(N_CLASSES, (n,), generator=generator)
        other = (y + torch.randint(1, N_CLASSES, (n,), generator=generator)) % N_CLASSES
        bias = torch.where(torch.rand(n, generator=generator) < conflicts, other, y)
        x = torch.randint(0, 256, (n, 3, 4, 4), generator=generator)
        x[range(n), 0, y] += 60
        x[range(n), 1, bias] += 150
        return Samples((x / 2).clamp(0, 255).to(torch.uint8), y, bias[:, None])

    return Splits(part(n), part(n // 2), part(n // 2))


@dataclass
class Step:
    """One step of a stage, before its update."""

    batch: Any
    weights: list
    value: Any
    gradients: list


@dataclass
class Run:
    """A stage: what it was asked for, the networks as they were before its first step, its steps, and its end."""

    options: dict
    start: Any = None
    steps: list = field(default_factory=list)
    end: list = field(default_factory=list)
    samples: list = field(default_factory=list)  # what `sample` each part of it was run with


@dataclass
class Work:
    """What a method did outside the loop (`task.once`): the tensors that it was given, its generator, its result."""

    given: tuple
    generator: torch.Generator
    result: Any = None


def weights(nets):
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in nets.parameters()]


def gradients(value, nets):
    """By autograd, of all parameters; 0 where nothing reaches."""
    found = torch.autograd.grad(value, list(nets.parameters()), retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(parameter) if one is None else one
        for parameter, one in zip(nets.parameters(), found, strict=True)
    ]


class Traced(Task):
    """A task that keeps the runs of its stages, and has networks that learn something in a few steps."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.runs, self.passes, self.work = [], [], []

    def new_net(self, **options):
        net = super().new_net(**options)
        for place in (2, 4, 6):
            net.body[place] = nn.Tanh()  # no feature is 0 for all samples, and no gradient has a step
        net.body.register_forward_pre_hook(pixels)
        return net

    def each(self, function, **options):
        self.passes.append(super().each(function, **options))
        return self.passes[-1]

    def once(self, function, *tensors):
        def noted(*given, generator):
            self.work.append(Work(given, generator.clone_state()))
            self.work[-1].result = function(*given, generator=generator)
            return self.work[-1].result

        return super().once(noted, *tensors)

    def stage(self, nets, loss, **options):
        run = Run(options)
        named = nn.ModuleDict({"net": nets} if isinstance(nets, nn.Module) else dict(nets))
        self.runs.append(run)

        def noted(given, batch, state):
            if not run.steps:
                run.start = copy.deepcopy(named)
            result = loss(given, batch, state)
            value = result[0] if isinstance(result, tuple) else result
            run.steps.append(Step(batch, weights(named), value.detach(), gradients(value, named)))
            return result

        stage = super().stage(nets, noted, **options)
        original = stage.run

        def run_and_note(*arguments, **given):
            run.samples.append(given.get("sample"))
            state = original(*arguments, **given)
            run.end = weights(named)
            return state

        stage.run = run_and_note
        return stage


def pixels(body, given):
    """In [-2, 2], as the network divides by 255 once more, and in the precision of the weights."""
    return 4 * 255 * given[0].to(body[1].weight.dtype) - 2


def task_for(method, way, *, splits=None, **recipe):
    """A small task for a method, trained by `way` (see the fixture of this name) for three epochs of four steps."""
    options = {"net": "mlp16", "augment": False, "schedule": "constant", "epochs": EPOCHS, "batch_size": BATCH}
    return Traced(
        splits or small_splits(), dataset=Tiny(), access=method.access, seed=0,
        recipe=Recipe(**{**options, **way.recipe, **recipe}),
    )  # fmt: skip


def images(task):
    """All training images one by one, as networks are given them, with their labels."""
    return list(zip(task.x.to(torch.float32) / 255, task.y.tolist(), strict=True))


# ---- optimisers, written out ----------------------------------------------------------------------------------------


class SlowSGD:
    """Gradient descent with momentum; decay is added to the gradient."""

    recipe: ClassVar = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01}

    def __init__(self, rate=0.05, decay=0.01):
        self.rate, self.decay, self.moving = rate, decay, None

    @torch.no_grad()
    def step(self, parameters, slopes):
        slopes = [slope + self.decay * parameter for parameter, slope in zip(parameters, slopes, strict=True)]
        old = self.moving or [torch.zeros_like(slope) for slope in slopes]
        self.moving = [0.9 * before + slope for before, slope in zip(old, slopes, strict=True)]
        for parameter, moving in zip(parameters, self.moving, strict=True):
            parameter -= self.rate * moving


class SlowAdam:
    """Adam with both means corrected for their start at 0; decay is added to the gradient."""

    recipe: ClassVar = {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.01}

    def __init__(self, rate=0.01, decay=0.01):
        self.rate, self.decay, self.means, self.squares, self.n_steps = rate, decay, {}, {}, 0

    @torch.no_grad()
    def step(self, parameters, slopes):
        self.n_steps += 1
        for place, (parameter, slope) in enumerate(zip(parameters, slopes, strict=True)):
            slope = slope + self.decay * parameter
            self.means[place] = 0.9 * self.means.get(place, 0.0) + 0.1 * slope
            self.squares[place] = 0.999 * self.squares.get(place, 0.0) + 0.001 * slope**2
            mean = self.means[place] / (1 - 0.9**self.n_steps)
            square = self.squares[place] / (1 - 0.999**self.n_steps)
            parameter -= self.rate * mean / (square.sqrt() + 1e-8)


SGD, ADAM = SlowSGD, SlowAdam


def replay(run, loss, optimizer, agree, rate=None):
    """Train copies of a run's networks on its batches by a slow loss, and compare every step.

    loss: (networks in float64, batch) -> number. rate: the learning rate of each epoch, where it changes.
    Returns the trained copies.
    """
    nets = copy.deepcopy(run.start).double()
    start, values, slopes = weights(nets), [], []
    for step, end in zip(run.steps, [*(step.weights for step in run.steps[1:]), run.end], strict=True):
        value = loss(nets, step.batch)
        values.append(value.detach())
        slopes.append(gradients(value, nets))
        if rate:
            optimizer.rate = rate[int(step.batch.epoch)]
        optimizer.step(list(nets.parameters()), slopes[-1])
        agree("weights", moved(end, start), moved(weights(nets), start))
    agree("loss", [step.value for step in run.steps], values)
    agree("gradients", [step.gradients for step in run.steps], slopes)
    return nets


def after_epoch(run, epoch):
    """Copies, in float64, of a run's networks as they were after an epoch (from 0)."""
    ends = [step.weights for step in run.steps if step.batch.epoch == epoch + 1][:1] or [run.end]
    nets = copy.deepcopy(run.start).double()
    with torch.no_grad():
        for parameter, value in zip(nets.parameters(), ends[0], strict=True):
            parameter.copy_(value)
    return nets


def moved(some, start):
    """How far weights are from where they began: a difference of these is not hidden by their size."""
    return [one.double() - before for one, before in zip(some, start, strict=True)]


# ---- slow losses ----------------------------------------------------------------------------------------------------


def samples_of(batch):
    """The images of a batch, one by one, with their labels."""
    return list(zip(batch.x, batch.y.tolist(), strict=True))


def logits_of(net, x):
    """Of one image."""
    return net(x[None])[0]


def slow_ce(logits, y):
    """Cross-entropy of one sample: -log p_y."""
    largest = logits.max().detach()
    return largest + (logits - largest).exp().sum().log() - logits[y]


def slow_gce(logits, y, alpha, form):
    """GCE of one sample: (1 - p_y^alpha) / alpha, or (official) alpha p_y^alpha times cross-entropy, held constant."""
    p_y = (-slow_ce(logits, y)).exp()
    if form == "paper":
        return (1 - p_y**alpha) / alpha
    return alpha * p_y.item() ** alpha * slow_ce(logits, y)


def plain_loss(nets, batch):
    """Mean cross-entropy."""
    return sum(slow_ce(logits_of(nets["net"], x), y) for x, y in samples_of(batch)) / len(batch.y)


def gce_loss(alpha, form):
    """Mean generalised cross-entropy."""
    return lambda nets, batch: (
        sum(slow_gce(logits_of(nets["net"], x), y, alpha, form) for x, y in samples_of(batch)) / len(batch.y)
    )


def sure_of(nets, samples, limit):
    """Of each sample, whether more than half of the networks give its label a probability above the limit."""
    votes = [[logits_of(net, x).softmax(0)[y].item() > limit for net in nets] for x, y in samples]
    return [sum(of_sample) > len(nets) / 2 for of_sample in votes]


class SlowWeights:
    """LfF's W, with dictionaries: the moving averages of both losses, and class maxima over all samples."""

    def __init__(self, y_all, smoothing):
        self.y_all, self.smoothing = y_all.tolist(), smoothing
        self.biased, self.debiased = {}, {}

    def visit(self, averages, sample, loss):
        if sample in averages:
            averages[sample] = self.smoothing * averages[sample] + (1 - self.smoothing) * loss
        else:
            averages[sample] = loss

    def relative(self, averages, sample):
        same_class = [value for other, value in averages.items() if self.y_all[other] == self.y_all[sample]]
        return averages[sample] / max(same_class)

    def weight(self, sample):
        b, d = self.relative(self.biased, sample), self.relative(self.debiased, sample)
        return b / (b + d + 1e-8)

    def step(self, index, biased_losses, debiased_losses):
        for sample, b, d in zip(index.tolist(), biased_losses, debiased_losses, strict=True):
            self.visit(self.biased, sample, b)
            self.visit(self.debiased, sample, d)
        return [self.weight(sample) for sample in index.tolist()]


class SlowGroups:
    """GroupDRO: the groups' weights, which grow with their mean losses; the loss of a batch by them."""

    def __init__(self, group, *, step_size, adjustment=0.0):
        self.size = {g: group.tolist().count(g) for g in set(group.tolist())}
        self.weight = {g: 1 / len(self.size) for g in self.size}
        self.group, self.step_size, self.adjustment = group.tolist(), step_size, adjustment

    def __call__(self, nets, batch):
        losses = {g: [] for g in self.size}
        for sample, (x, y) in zip(batch.index.tolist(), samples_of(batch), strict=True):
            losses[self.group[sample]].append(slow_ce(logits_of(nets["net"], x), y))
        means = {g: sum(values) / len(values) if values else torch.tensor(0.0) for g, values in losses.items()}
        for g, mean in means.items():
            growth = float(mean.detach()) + self.adjustment / math.sqrt(self.size[g])
            self.weight[g] *= math.exp(self.step_size * growth)
        total = sum(self.weight.values())
        self.weight = {g: value / total for g, value in self.weight.items()}
        return sum(self.weight[g] * mean for g, mean in means.items())


def masses(sample, group):
    """The mass of each group among what is drawn, from the sampling weights of samples (N,)."""
    found = {}
    for value, g in zip(sample.tolist(), group.tolist(), strict=True):
        found[g] = found.get(g, 0.0) + value / float(sample.sum())
    return found
