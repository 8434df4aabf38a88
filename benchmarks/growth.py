"""Training time and memory by the number of samples, classes and pixels: `python benchmarks/growth.py`.

Prints JSON. For each method: microseconds of CPU time per trained sample, per evaluated sample, and per sample in the
plan of an epoch, and the peak memory in MB. Images are synthetic, and the network is an MLP whose work grows only with
the pixels, so that any growth that is not linear shows. Each line is measured in its own process after a first
training, because the first step imports torch's compiler (1.5 s).
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

import torch

from debiasbench.datasets import Dataset
from debiasbench.methods import registry as methods
from debiasbench.recipe import Recipe
from debiasbench.samples import Samples, Splits
from debiasbench.testing import make_task
from debiasbench.training.batches import plan_epoch

SAMPLES, CLASSES, PIXELS = (10_000, 40_000, 160_000), (2, 10, 100, 1000), (16, 32, 64)
USUAL = {"samples": 10_000, "classes": 10, "pixels": 16}


class MadeUp(Dataset):
    """Images of noise with labels and biases."""

    name = "made-up"
    samples: int = 10_000
    classes: int = 10
    pixels: int = 16

    @property
    def class_names(self):
        """The numbers of the classes."""
        return tuple(map(str, range(self.classes)))

    @property
    def n_bias_values(self):
        """The number of classes."""
        return self.classes

    @property
    def conflict_ratio(self):
        """One in twenty."""
        return 0.05

    def part(self, n):
        """A split of `n` samples."""
        generator = torch.Generator().manual_seed(n)
        y = torch.arange(n) % self.classes
        bias = torch.where(torch.rand(n, generator=generator) < 0.05, (y + 1) % self.classes, y)
        x = torch.randint(0, 256, (n, 3, self.pixels, self.pixels), dtype=torch.uint8, generator=generator)
        return Samples(x, y, bias[:, None])

    def build(self, _):
        """Training samples, and in addition a tenth as many for validation and a fifth for test."""
        return Splits(self.part(self.samples), self.part(self.samples // 10 + 10), self.part(self.samples // 5 + 10))


def measure(name, **sizes):
    """Measure one line in this process."""
    torch.set_num_threads(1)
    dataset = MadeUp(**sizes)
    splits = dataset.build(None)
    recipe = Recipe(net="mlp", epochs=1, batch_size=128, flip=True)
    method = methods.get(name)[0]()
    method.fit(make_task(method))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    task = make_task(method, dataset=dataset, splits=splits, recipe=recipe)
    evaluated, row = [0.0, 0], task.evaluation.row

    def timed_row(*arguments):
        started = time.process_time()
        result = row(*arguments)
        evaluated[0] += time.process_time() - started
        evaluated[1] += len(splits.valid) + len(splits.test)
        return result

    task.evaluation.row = timed_row
    started = time.process_time()
    method.fit(task)
    fitting = time.process_time() - started - evaluated[0]
    started = time.process_time()
    plan_epoch(None, n_samples=len(splits.train), batch_size=128, generator=torch.Generator())
    planning = time.process_time() - started
    n_trained = sum(run.epochs for run in task.journal.stages) * len(splits.train)
    return {
        "method": name, **sizes, "us_trained": round(1e6 * fitting / n_trained, 1),
        "us_evaluated": round(1e6 * evaluated[0] / evaluated[1], 1),
        "us_planned": round(1e6 * planning / len(splits.train), 3),
        "peak_MB_besides_data": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before),
    }  # fmt: skip


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=["vanilla", "pgd", "lff"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    lines = []
    for name in options.methods:
        for what, values in (("samples", SAMPLES), ("classes", CLASSES), ("pixels", PIXELS)):
            for value in values:
                one = json.dumps({"name": name, **USUAL, what: value})
                if any(line == one for line, _ in lines):
                    continue
                command = [sys.executable, __file__, "--one", one]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                shown = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=environment)
                lines.append((one, json.loads(shown.stdout)))
                print(lines[-1][1], file=sys.stderr)
    result = {"device": f"cpu ({platform.machine()})", "torch": torch.__version__, "lines": [line for _, line in lines]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
