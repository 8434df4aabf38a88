"""Our training step on Colored MNIST against those of others, as ratios in one run: `python benchmarks/references.py`.

Prints JSON: milliseconds of CPU time per step of 128 images, from whole epochs with data loading, as the median of
several rounds in which all take turns. The references are all written here, and use one thread each:

official    As in the authors' programs: one PNG per sample, opened and augmented one by one by PIL and torchvision;
            torch's DataLoader in this process; torch's dropout and memory format; losses read back at each step; and
            the tables of LfF and Disen searched class by class.
v2          The same network and optimiser. Images are tensors in memory, augmented one by one by
            torchvision.transforms.v2, which gives the same distribution.
v2, a batch The same, but all images of a batch are augmented alike: another distribution, and the fastest that v2 can
            be.
bare        A loop with the same operations as ours, but nothing of the engine.
spuco       SpuCo's ERM (pip install spuco), on the images of `official`, with the workers that it starts itself.

PGD's scoring is compared with one backward pass per sample, as in the official program. Scoring and evaluation are both
compared with bare forward passes over the same images.
"""

import argparse
import contextlib
import io
import json
import platform
import resource
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from debiasbench.data.augment import augmented, to_input
from debiasbench.datasets import registry as datasets
from debiasbench.evaluation.evaluation import Evaluation
from debiasbench.losses import cross_entropy
from debiasbench.methods import registry as methods
from debiasbench.nets.build import build_net
from debiasbench.nets.small import HalfDropout
from debiasbench.testing import make_task

DATASET = datasets.get("cmnist5k")[0](rho=0.02)
SPLITS = DATASET.build(Path())
TRAIN, RECIPE = SPLITS.train, DATASET.recipe.replace(epochs=1)
SHAPE, N = tuple(TRAIN.x.shape[1:]), len(TRAIN)
N_STEPS = -(-N // RECIPE.batch_size)


def processor_seconds():
    """CPU time of this process and of its finished children."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def seconds_of(function):
    """CPU time of a call."""
    started = processor_seconds()
    function()
    return processor_seconds() - started


# ---- as others do it -------------------------------------------------------------------------------------------------


class Files(Dataset):
    """One PNG per sample."""

    def __init__(self, folder):
        self.paths = [folder / f"{number}.png" for number in range(N)]
        self.y = TRAIN.y.tolist()
        for path, x in zip(self.paths, TRAIN.x, strict=True):
            Image.fromarray(x.permute(1, 2, 0).numpy()).save(path)
        steps = [
            transforms.RandomResizedCrop(28, RECIPE.crop_scale, RECIPE.crop_ratio),
            transforms.RandomRotation(RECIPE.rotation),
            transforms.ColorJitter(saturation=RECIPE.saturation, hue=RECIPE.hue),
            transforms.ToTensor(),
        ]
        self.transform = transforms.Compose(steps)

    def __len__(self):
        return N

    def __getitem__(self, number):
        return self.transform(Image.open(self.paths[number]).convert("RGB")), self.y[number], number


class Pairs(Files):
    """The same without sample numbers, for programs that do not use them."""

    def __getitem__(self, number):
        return super().__getitem__(number)[:2]


class Tensors(Dataset):
    """Images in memory, augmented one by one by torchvision.transforms.v2 if `alone`; otherwise not augmented here."""

    def __init__(self, alone):
        self.transform = transform_of_v2() if alone else None

    def __len__(self):
        return N

    def __getitem__(self, number):
        x = TRAIN.x[number]
        return (self.transform(x) if self.transform else x), TRAIN.y[number], number


def transform_of_v2():
    """The recipe's augmentation in torchvision.transforms.v2."""
    return v2.Compose([
        v2.RandomResizedCrop(28, RECIPE.crop_scale, RECIPE.crop_ratio, antialias=True),
        v2.RandomRotation(RECIPE.rotation),
        v2.ColorJitter(saturation=RECIPE.saturation, hue=RECIPE.hue),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip


def plain_net(n_features=None):
    """The network with torch's dropout; `n_features`: another width of its head."""
    net = build_net("simconv1", SHAPE, 10)
    for name, layer in net.body.named_children():
        if isinstance(layer, HalfDropout):
            setattr(net.body, name, nn.Dropout(0.5))
    if n_features:
        net.head = nn.Linear(n_features, 10)
    return net


class Table:
    """A moving average per sample; the largest one of a class is found by a search over all its samples."""

    def __init__(self):
        self.values = torch.zeros(N)

    def update(self, losses, index):
        """Update the rows of a batch, and return a copy of them."""
        self.values[index] = 0.7 * self.values[index] + 0.3 * losses.detach()
        return self.values[index].clone()

    def maximum(self, label):
        """The largest value of one label."""
        return self.values[torch.where(TRAIN.y == label)[0]].max()


def weights(tables, losses, y, index):
    """Sample weights of LfF."""
    relative = []
    for table, one in zip(tables, losses, strict=True):
        value = table.update(one, index)
        for label in range(10):
            members = torch.where(y == label)[0]
            value[members] = value[members] / table.maximum(label)
        relative.append(value)
    return relative[0] / (relative[0] + relative[1] + 1e-8)


def gce(logits, y, q=0.7):
    """Generalised cross-entropy as in the released code."""
    p = logits.softmax(1).gather(1, y[:, None])[:, 0]
    return q * p.detach() ** q * F.cross_entropy(logits, y, reduction="none")


def others(loader, method="vanilla", whole=None):
    """One epoch of a plain program; `whole` augments a batch at once."""
    tables = (Table(), Table())
    nets = [plain_net(128 if method == "disen" else None) for _ in range(1 if method == "vanilla" else 2)]
    optimizers = [torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-4) for net in nets]
    for net in nets:
        net.train()

    def epoch():
        for x, y, index in loader:
            x = whole(x) if whole else x
            if method == "vanilla":
                losses = [F.cross_entropy(nets[0](x), y)]
            elif method == "lff":
                logits = [net(x) for net in nets]
                each = [F.cross_entropy(one, y, reduction="none") for one in logits]
                losses = [gce(logits[0], y).mean(), (weights(tables, each, y, index) * each[1]).mean()]
            else:
                z_b, z_i = (net.features(x) for net in nets)
                pairs = torch.cat([z_i.detach(), z_b], 1), torch.cat([z_i, z_b.detach()], 1)
                logits = [net.head(pair) for net, pair in zip(nets, pairs, strict=True)]
                each = [F.cross_entropy(one, y, reduction="none") for one in logits]
                weight = weights(tables, each, y, index)
                order = torch.randperm(len(y))
                swapped = torch.cat([z_i.detach(), z_b[order]], 1), torch.cat([z_i, z_b[order].detach()], 1)
                losses = [
                    gce(logits[0], y).mean(), (weight * each[1]).mean(), gce(nets[0].head(swapped[0]), y[order]).mean(),
                    (weight * F.cross_entropy(nets[1].head(swapped[1]), y, reduction="none")).mean(),
                ]  # fmt: skip
            for optimizer in optimizers:
                optimizer.zero_grad()
            sum(losses).backward()
            for optimizer in optimizers:
                optimizer.step()
            for one in losses:
                one.item()

    return epoch


def spuco_epoch(files):
    """One epoch of SpuCo's ERM; None if it is not installed."""
    try:
        from spuco.robust_train import ERM
    except ImportError:
        return None
    net = plain_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    program = ERM(model=net, trainset=files, batch_size=128, optimizer=optimizer, num_epochs=1)

    def epoch():
        with contextlib.redirect_stderr(io.StringIO()):
            program.train_epoch(0)

    return epoch


# ---- ours ------------------------------------------------------------------------------------------------------------


def bare():
    """One epoch of a step's operations without the engine."""
    net = build_net("simconv1", SHAPE, 10).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def epoch():
        total = torch.zeros((), dtype=torch.float64)
        for index in torch.randperm(N, generator=generator).split(128):
            loss = cross_entropy(net(augmented(TRAIN.x[index], RECIPE, generator)), TRAIN.y[index]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
        total.item()

    return epoch


def ours(name):
    """One epoch of a method's stage with the engine, without evaluation."""
    method = methods.get(name)[0]()
    task = make_task(method, dataset=DATASET, splits=SPLITS, recipe=RECIPE)
    nothing = task.evaluation.row(lambda x: torch.zeros(len(x), 10), [], RECIPE)
    task.evaluation.row = lambda *_: nothing
    return lambda: method.fit(task)


def one_by_one(net, n):
    """One backward pass per sample, for the norm of the last layer's gradient."""
    x = to_input(TRAIN.x[:n], RECIPE)
    for row in range(n):
        net.zero_grad()
        F.cross_entropy(net(x[row : row + 1]), TRAIN.y[row : row + 1]).backward()
        net.head.weight.grad.norm().item()


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        load = {"batch_size": 128, "shuffle": True}
        programs = {
            "ours": ours("vanilla"), "bare": bare(), "official": others(DataLoader(files, **load)),
            "v2": others(DataLoader(Tensors(True), **load)),
            "v2, a batch": others(DataLoader(Tensors(False), **load), whole=transform_of_v2()),
            "spuco": spuco_epoch(Pairs(Path(folder))),
            "ours, lff": ours("lff"), "official, lff": others(DataLoader(files, **load), "lff"),
            "ours, disen": ours("disen"), "official, disen": others(DataLoader(files, **load), "disen"),
        }  # fmt: skip
        programs = {name: program for name, program in programs.items() if program}
        rounds = {name: [] for name in programs}
        for number in range(options.rounds + 1):
            for name, program in programs.items():
                taken = 1000 * seconds_of(program) / N_STEPS
                if number:  # the first round is to warm up
                    rounds[name].append(taken)
    milliseconds = {name: statistics.median(taken) for name, taken in rounds.items()}
    ratios = {
        name: value / milliseconds["ours"] for name, value in milliseconds.items() if "," not in name or "v2" in name
    }
    for name in ("lff", "disen"):
        ratios[f"official, {name}"] = milliseconds[f"official, {name}"] / milliseconds[f"ours, {name}"]

    net, pgd, n = build_net("simconv1", SHAPE, 10).eval(), methods.get("pgd")[0](), 400
    evaluation = Evaluation(DATASET, SPLITS)
    scoring = {"one by one": [], "ours": [], "evaluation": [], "bare passes": []}

    def score():
        with torch.no_grad():
            TRAIN.map(lambda _, rows, x: pgd.scores(net, to_input(x, RECIPE), TRAIN.y[rows]), 500)

    def passes():
        with torch.no_grad():
            for x in TRAIN.x.split(500):
                net(x.to(memory_format=torch.channels_last).float().div_(255))

    def evaluated():
        logits = evaluation.logits(net, [net], TRAIN, RECIPE)
        evaluation.metrics("valid", logits[: len(SPLITS.valid)])

    for number in range(options.rounds + 1):
        taken = {
            "one by one": seconds_of(lambda: one_by_one(net, n)) / n, "ours": seconds_of(score) / N,
            "evaluation": seconds_of(evaluated) / N, "bare passes": seconds_of(passes) / N,
        }  # fmt: skip
        for name, value in taken.items():
            scoring[name] += [value] if number else []
    microseconds = {name: 1e6 * statistics.median(taken) for name, taken in scoring.items()}
    result = {
        "device": f"cpu ({platform.machine()}), one thread", "torch": torch.__version__, "rounds": options.rounds,
        "ms_a_step": {name: round(value, 1) for name, value in milliseconds.items()},
        "over_ours": {name: round(value, 2) for name, value in ratios.items() if name != "ours"},
        "ours_over_bare": round(milliseconds["ours"] / milliseconds["bare"], 3),
        "us_a_scored_sample": {name: round(value, 1) for name, value in microseconds.items()},
        "scoring_one_by_one_over_ours": round(microseconds["one by one"] / microseconds["ours"], 1),
        "scoring_over_bare_passes": round(microseconds["ours"] / microseconds["bare passes"], 2),
        "evaluation_over_bare_passes": round(microseconds["evaluation"] / microseconds["bare passes"], 2),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
