"""Tries the wheel that is installed, in the current folder: the packages are found, and a tiny grid runs to its end."""

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import debiasbench
from debiasbench.datasets import registry as datasets
from debiasbench.methods import registry as methods
from debiasbench.records import read_records

installed = metadata.distribution("debiasbench")
assert Path(debiasbench.__file__).parent == installed.locate_file("debiasbench"), debiasbench.__file__
assert debiasbench.__version__ == installed.version
assert {"vanilla", "pgd"} <= set(methods.classes()), methods.broken
assert {"cmnist5k", "celeba"} <= set(datasets.classes()), datasets.broken

beside = importlib.util.find_spec("datasets")
if beside:
    from datasets import Dataset

    assert Dataset.from_dict({"y": [0, 1]})[1] == {"y": 1}

results = f"results-{'beside' if beside else 'alone'}"
grid = ["--methods", "vanilla", "pgd", "--datasets", "cmnist5k", "--seeds", "1", "--epochs", "1", "--workers", "1"]
subprocess.run(["debiasbench", "run", *grid, "--device", "cpu", "--results-dir", results], check=True)
subprocess.run(["debiasbench", "report", results], check=True, stdout=subprocess.DEVNULL)
records, complaints = read_records(Path(results))
assert not complaints, complaints
assert [record.provenance.versions["debiasbench"] for record in records] == [installed.version] * 2
assert all(record.result for record in records)
print(f"debiasbench {installed.version} on Python {sys.version.split()[0]}: the wheel works ({results})")
