"""The time until a user gets an answer, and until the first training step: `python benchmarks/start.py`.

Prints JSON: wall-clock seconds as the median of several rounds, and in the same rounds for the import of torch alone;
then how much faster a grid is with two workers than with one (vanilla on cmnist5k, loading and tables included).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TELLING = '''
import time
from pathlib import Path
from debiasbench.losses import cross_entropy
from debiasbench.methods import Method

class Telling(Method):
    """Vanilla that tells when its first step begins."""

    name = "telling"

    def fit(self, task):
        net = task.new_net()
        task.train(net, self.loss, predict=net)
        return net

    def loss(self, nets, batch, state):
        if not Path({told!r}).exists():
            Path({told!r}).write_text(str(time.time()))
        return cross_entropy(nets.net(batch.x), batch.y).mean()
'''


def seconds(*words, expected=0):
    """Seconds that a command takes; its output is discarded."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=False)
    if done.returncode != expected:
        raise SystemExit(done.stderr.decode())
    return time.perf_counter() - started


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=6, help="of the grid for the workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told")
        Path(folder, "methods").mkdir()
        Path(folder, "methods", "telling.py").write_text(TELLING.format(told=str(told)), encoding="utf-8")
        suite = ("-m", "debiasbench")
        grid = ("--datasets", "cmnist5k:steps=40", "--device", "cpu", "--results-dir")

        def first_step():
            told.unlink(missing_ok=True)
            results = str(Path(folder, f"results-{time.time_ns()}"))
            started = time.time()
            more = ("--methods-dir", str(Path(folder, "methods")), "--seeds", "1", "--workers", "1")
            seconds(*suite, "run", "--methods", "telling", *grid, results, *more)
            return float(told.read_text(encoding="utf-8")) - started

        asked = {
            "import torch": lambda: seconds("-c", "import torch"),
            "--help": lambda: seconds(*suite, "--help"),
            "a misspelt method": lambda: seconds(*suite, "run", "--methods", "pgdd", "--datasets", "bar", expected=2),
            "data that are missing": lambda: seconds(
                *suite, "run", "--methods", "pgd", "--datasets", "bar", "--data-dir", folder, expected=2
            ),
            "first training step": first_step,
        }
        taken = {name: [] for name in asked}
        for _ in range(options.rounds):
            for name, run in asked.items():
                taken[name].append(run())
        by_workers = {}
        for n in (1, 2, 1, 2):
            results = str(Path(folder, f"workers-{time.time_ns()}"))
            command = ("run", "--methods", "vanilla", "--datasets", "cmnist5k", "--device", "cpu")
            more = ("--seeds", str(options.cells), "--workers", str(n), "--results-dir", results)
            one = seconds(*suite, *command, *more)
            by_workers.setdefault(n, []).append(one)
    result = {
        "device": f"cpu ({platform.machine()})", "torch": torch.__version__, "rounds": options.rounds,
        "seconds": {name: round(statistics.median(values), 2) for name, values in taken.items()},
        "seconds_by_workers": {str(n): [round(one, 1) for one in values] for n, values in by_workers.items()},
        "two_workers_over_one": round(statistics.mean(by_workers[1]) / statistics.mean(by_workers[2]), 2),
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
