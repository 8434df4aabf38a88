"""The cost of checkpoints, as a fraction of training time in one run: `python benchmarks/checkpoints.py`.

Prints JSON. It trains a stage that makes a checkpoint every `--every` steps, compares the steps with and without one,
and computes the cost at the default interval from that. The look at the clock after each step is measured separately.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from debiasbench.datasets import registry as datasets
from debiasbench.files import default_data_dir, readable_size
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import registry as methods
from debiasbench.training.checkpoints import Checkpoints
from debiasbench.training.journal import Journal
from debiasbench.training.task import Task


class Now(Checkpoints):
    """Checkpoints after a fixed number of steps."""

    every = 10
    looks = 0

    @property
    def is_due(self):
        """Whether a checkpoint is due, as in `Checkpoints`."""
        self.looks += 1
        return self.looks % self.every == 0


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cmnist")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = datasets.get(options.dataset)[0]()
    splits = dataset.build(default_data_dir())
    method = methods.get("vanilla")[0]()
    recipe = dataset.recipe.replace(steps=options.steps)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Now(Path(folder, "cell"), {})
        checkpoints.every = options.every
        journal = Journal(checkpoints=checkpoints)
        times, last = [], time.perf_counter()

        look = journal.between_steps

        def timed(run, epoch, epochs):
            nonlocal last
            now = time.perf_counter()
            times.append(now - last)
            last = now
            return look(run, epoch, epochs)

        journal.between_steps = timed
        task = Task(splits, dataset=dataset, recipe=recipe, seed=0, access=method.access, journal=journal)
        net = task.new_net()
        task.train(net, mean_cross_entropy)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        plain = Checkpoints(Path(folder, "other"), {})
        started = time.perf_counter()
        for _ in range(10_000):
            _ = plain.is_due
        clock = (time.perf_counter() - started) / 10_000
    # a checkpoint follows the look at the clock, so it counts in the time of the next step
    after = [seconds for number, seconds in enumerate(times) if number and number % options.every == 0]
    other = [seconds for number, seconds in enumerate(times) if number > 1 and number % options.every]
    step, with_one = statistics.median(other), statistics.median(after)
    print(json.dumps({
        "dataset": options.dataset, "torch": torch.__version__, "machine": platform.machine(),
        "milliseconds a step": round(1000 * step, 2),
        "milliseconds a checkpoint": round(1000 * (with_one - step), 2),
        "size in a stage": readable_size(size),
        "checkpoint each minute, of training time": f"{100 * (with_one - step) / 60:.3f} %",
        "look at the clock each step, of training time": f"{100 * clock / step:.4f} %",
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
