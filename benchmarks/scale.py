"""Time and memory of a report and a plan by the number of cells: `python benchmarks/scale.py --cells 1000 10000`.

Prints JSON. For each number of cells, it measures `debiasbench report` on synthetic records of that many cells, and
`run --dry-run` on such a grid, once with an empty folder and once with those records. It gives wall-clock seconds, CPU
seconds, peak memory in MB (the first line, with one cell, shows what the libraries take), and for the report the sizes
of the page and of all records. Each measurement runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from debiasbench.cell import Cell
from debiasbench.grid import expand
from debiasbench.records import record_path

METHODS = ["vanilla", "pgd", "lff", "disen", "jtt", "bpa", "eiil", "cnc", "groupdro", "resample-oracle"]
DATASETS = [f"cmnist5k:rho={rho}" for rho in (0.005, 0.01, 0.02, 0.05, 0.1)]
N_CLASSES, N_SAMPLES = 10, 1000
FINGERPRINTS: dict[str, str] = {}


def metrics(fraction: float, rng: random.Random) -> dict[str, float]:
    """Metrics of one split at one epoch, as many as a run writes."""
    names = ("acc_avg", "acc_unbiased", "acc_aligned", "acc_conflict", "acc_worst", "acc_cellmean", "acc_groupmean")
    found = {name: min(1.0, max(0.0, fraction + rng.gauss(0, 0.01))) for name in names}
    counts = {"n_conflict": 900.0, "n_worst": 7.0, "n_groups": 100.0}
    return {"loss": 2 - fraction + rng.random(), "n": float(N_SAMPLES)} | found | counts


def fingerprint(cell: Cell) -> str:
    """The fingerprint of a cell's data, which are made from its parameters."""
    key = str(cell.dataset_parameters)
    if key not in FINGERPRINTS:
        FINGERPRINTS[key] = cell.build_dataset().build(Path()).fingerprint()
    return FINGERPRINTS[key]


def record(cell: Cell, n_epochs: int) -> dict[str, object]:
    """A finished record with synthetic numbers and all fields that a run of `n_epochs` writes."""
    rng = random.Random(cell.hash)
    height = 0.5 + 0.04 * METHODS.index(cell.method)
    heights = [height * (1 - 0.5 * 0.9**epoch) + rng.gauss(0, 0.02) for epoch in range(n_epochs)]
    epochs = [
        {
            "epoch": epoch, "valid": metrics(one, rng), "test": metrics(one, rng), "learning_rate": 0.02,
            "train_loss": rng.random(),
            "correct_by_class": {part: rng.choices(range(100), k=N_CLASSES) for part in ("valid", "test")},
        }
        for epoch, one in enumerate(heights, 1)
    ]  # fmt: skip
    splits = {"n": N_SAMPLES, "n_conflict": {"bias": 900}, "n_by_class": [100] * N_CLASSES}
    groups = [{"n": 10, "acc": rng.random(), "y": y, "bias": b} for y in range(N_CLASSES) for b in range(N_CLASSES)]
    stage = {
        "call": 2, "epochs": n_epochs, "evaluated": True, "parameters": {"net": 38210},
        "train_loss": [rng.random() for _ in range(n_epochs)],
    }  # fmt: skip
    seconds = {"total": 100 + rng.random(), "data": 1.0, "evaluation": 9.0, "stages": [90.0]}
    return {
        "schema": 2, "status": "done", "hash": cell.hash, "cell": cell.to_record(),
        "result": {
            "data": {
                "fingerprint": fingerprint(cell), "official": True,
                "splits": dict.fromkeys(("train", "valid", "test", "tune"), splits),
            },
            "selection": {rule: rng.randrange(n_epochs) for rule in ("val_loss", "val_acc", "group_val", "test_oracle")}
            | {"last": n_epochs - 1},
            "epochs": epochs, "stages": [stage], "groups": {"test": groups},
            "identification": {"score": {"auroc": rng.random()}} if cell.method == "pgd" else {},
        },
        "provenance": {
            "finished": "2026-11-26T00:00:00+00:00", "seconds": seconds, "device": "cpu (x86_64)", "device_kind": "cpu",
            "precision": "fp32", "versions": {"protocol": 1, "debiasbench": "0.1.0", "torch": "2.15.0"},
        },
    }  # fmt: skip


def grid_of(n_cells: int) -> dict[str, object]:
    """Methods, datasets and a number of seeds for about `n_cells` cells."""
    n_methods, n_datasets = (len(METHODS), len(DATASETS)) if n_cells >= len(METHODS) * len(DATASETS) else (1, 1)
    return {
        "methods": METHODS[:n_methods], "datasets": DATASETS[:n_datasets], "seeds": n_cells // (n_methods * n_datasets),
    }  # fmt: skip


def write_records(folder: Path, n_cells: int, n_epochs: int) -> int:
    """Write the records of a grid unless they exist; returns their size in bytes."""
    size = 0
    for cell in expand(**grid_of(n_cells)).cells:
        path = record_path(folder, cell)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record(cell, n_epochs)), encoding="utf-8")
        size += path.stat().st_size
    return size


def measured(*words: str) -> dict[str, float]:
    """Run a command; returns its seconds and its peak memory, libraries included."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "debiasbench", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return {
        "seconds": round(seconds, 1), "seconds of the processor": round(used.ru_utime + used.ru_stime, 1),
        "peak MB": round(used.ru_maxrss / 1e3),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 1000, 10_000])
    parser.add_argument("--epochs", type=int, default=30, help="that each record has")
    parser.add_argument("--folder", type=Path, help="where records are kept from run to run (default: a temporary one)")
    options = parser.parse_args()
    result: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine()}
    result |= {"epochs of a record": options.epochs}
    with tempfile.TemporaryDirectory() as temporary:
        for n_cells in options.cells:
            folder = (options.folder or Path(temporary)) / f"{n_cells}-{options.epochs}"
            size = write_records(folder, n_cells, options.epochs)
            report = measured("report", str(folder))
            page = (folder / "report.html").stat().st_size
            grid = grid_of(n_cells)
            words = ["run", "--methods", *grid["methods"], "--datasets", *grid["datasets"]]
            words += ["--seeds", str(grid["seeds"]), "--dry-run", "--device", "cpu", "--results-dir"]
            result[f"{n_cells:,} cells"] = {
                "records MB": round(size / 1e6, 1),
                "report": report | {"page MB": round(page / 1e6, 2)},
                "plan of a new grid": measured(*words, str(Path(temporary) / "empty")),
                "plan of a finished grid": measured(*words, str(folder)),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
