"""Run one grid with every executor that works here: `python benchmarks/executors.py`, prints JSON.

The executors are worker processes of this machine, a Ray cluster of two nodes (processes of this machine, with one core
each), SLURM jobs, and four shards whose folders are read together. For each it prints seconds, the number of cells, and
in how many cells the `result` equals that of the first executor, bit for bit. Executors that are not installed are
named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debiasbench.records import read_records

SHARDS = 4


def run(folder: Path, options: argparse.Namespace, *words: str) -> float:
    """Run the grid, and return the seconds that it took."""
    command = [sys.executable, "-m", "debiasbench", "run", "--methods", *options.methods, "--datasets", options.dataset]
    command += ["--seeds", str(options.seeds), "--epochs", str(options.epochs), "--device", "cpu"]
    started = time.perf_counter()
    subprocess.run([*command, "--results-dir", str(folder), *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@contextlib.contextmanager
def ray_of_two_nodes() -> Iterator[str]:
    """Start a Ray cluster of two nodes, and yield its address."""
    from ray.cluster_utils import Cluster

    memory = 80_000_000
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": memory},
    )
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def results(*folders: Path) -> dict[str, Any]:
    """Hash of each cell -> its result."""
    found: dict[str, Any] = {}
    for folder in folders:
        found |= {record.hash: record.result for record in read_records(folder / "records")[0]}
    return found


def main() -> None:
    """Run the grid with each executor in turn, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["vanilla", "lff", "jtt", "disen", "pgd"])
    parser.add_argument("--dataset", default="cmnist5k")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    told: dict[str, Any] = {"left out": []}
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        seconds, folders = {"local": run(top / "local", options, "--workers", "2")}, {"local": [top / "local"]}
        if importlib.util.find_spec("ray") is None:
            told["left out"].append("ray: not installed")
        else:
            with ray_of_two_nodes() as address:
                seconds["ray"] = run(top / "ray", options, "--executor", f"ray:{address}")
            folders["ray"] = [top / "ray"]
        if importlib.util.find_spec("submitit") is None or shutil.which("sbatch") is None:
            told["left out"].append("slurm: submitit or sbatch is not there")
        else:
            jobs = ["--executor", "slurm", "--workers", "2", "--slurm", "time=30min"]
            seconds["slurm"] = run(top / "slurm", options, *jobs)
            folders["slurm"] = [top / "slurm"]
        folders["shards"] = [top / f"shard{number}" for number in range(1, SHARDS + 1)]
        seconds["shards"] = sum(
            run(folder, options, "--shard", f"{number}/{SHARDS}", "--workers", "2")
            for number, folder in enumerate(folders["shards"], 1)
        )
        expected = results(*folders["local"])
        for name, parts in folders.items():
            found = results(*parts)
            equal = sum(found.get(cell) == result for cell, result in expected.items())
            told[name] = {"seconds": round(seconds[name]), "cells": len(found), "equal": equal}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
