"""Run one cell, here: build the data, fit, evaluate, and make the record. Failures become records too."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import debiasbench
from debiasbench import weights
from debiasbench.about import PROTOCOL_VERSION, __version__
from debiasbench.cell import Cell
from debiasbench.datasets import Dataset, check_splits
from debiasbench.errors import BenchmarkError
from debiasbench.evaluation.metrics import identification, select
from debiasbench.nets.pretrained import weights_sha256
from debiasbench.records import SCHEMA, failed_path, record_path, write_record
from debiasbench.samples import Splits
from debiasbench.training.digests import digest_of
from debiasbench.training.reuse import Shared
from debiasbench.training.task import Progress, Task


@dataclass
class Runner:
    """Runs cells one after another in this process; equal data are built once."""

    data_dir: Path
    results_dir: Path
    device: str = "cpu"
    save_weights: bool = False
    share: bool = True  # equal first phases of several cells are trained once
    threads: int | None = None  # of torch; none: as they are
    memory_share: float = 0.5  # of the device's free memory, which the data may take
    _data: dict[str, Splits] = field(default_factory=dict)

    def run(self, cell: Cell, progress: Progress | None = None) -> Path:
        """Run a cell and write its record, done or failed; returns the record's path.

        Raises:
            OSError: the record could not be written.
        """
        path = record_path(self.results_dir, cell)
        if self.threads is not None:
            torch.set_num_threads(self.threads)  # whatever the cell before did
        started = time.perf_counter()
        record: dict[str, Any] = {"schema": SCHEMA, "status": "done", "hash": cell.hash, "cell": cell.to_record()}
        arrays: dict[str, Tensor] = {}
        seconds: dict[str, Any] = {}
        calls: list[dict[str, Any]] = []
        try:
            record["result"], arrays = self._train(cell, progress, seconds, calls, path)
        except Exception as error:  # whatever a method does wrong: the other cells go on
            record["status"] = "failed"
            record["error"] = {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
        seconds["total"] = time.perf_counter() - started - seconds.pop("waited", 0.0)
        record["provenance"] = provenance(self.device, seconds) | {"calls": calls}
        if record["status"] == "failed":
            path = failed_path(path)
        write_record(path, record, arrays)
        return path

    def splits(self, dataset: Dataset) -> Splits:
        """The dataset's splits on the device; the last ones built are kept."""
        key = repr(dataset)
        if key not in self._data:
            self._data.clear()
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()  # else what the last data took still counts as taken
            splits = check_splits(dataset, dataset.build(self.data_dir))
            self._data[key] = splits.to(torch.device(self.device), share=self.memory_share)
        return self._data[key]

    def _train(
        self, cell: Cell, progress: Progress | None, seconds: dict[str, Any], calls: list[dict[str, Any]], path: Path
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        method, dataset, recipe = cell.build_method(), cell.build_dataset(), cell.build_recipe()
        started = time.perf_counter()
        splits = self.splits(dataset)
        seconds["data"] = time.perf_counter() - started
        if torch.device(self.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        task = Task(
            splits, dataset=dataset, method=method, recipe=recipe, seed=cell.seed, device=self.device,
            progress=progress, shared=Shared(self.results_dir / "shared") if self.share else None,
        )  # fmt: skip
        task.calls = calls
        predictor = method.fit(task)
        if task.predictor is None:
            raise BenchmarkError(
                f"{cell.method}: no phase was given predict=, so there is nothing to evaluate. Pass it to the "
                "task.train whose epochs are to be selected from."
            )
        if predictor is not task.predictor and predictor != task.predictor:
            raise BenchmarkError(
                f"{cell.method}: fit must return the predictor that it gave to task.train(predict=...), so that what "
                f"was evaluated is what is returned. Got {type(predictor).__name__}."
            )
        result, arrays = outcome(task, splits)
        seconds["phases"] = [phase.seconds for phase in task.phases]
        seconds["evaluation"] = sum(phase.evaluation_seconds for phase in task.phases)
        seconds |= task.other_seconds | {"waited": task.waited}
        if self.save_weights:
            result["weights"] = weights.save(task, weights.weights_path(path))
        return result, arrays


def outcome(task: Task, splits: Splits) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `result` of a record and its arrays, from a task whose method has finished."""
    evaluation, dataset = task.evaluation, task.dataset
    predict, nets = task.final_predictor(), task.all_nets()
    logits = evaluation.logits(predict, nets, task.splits.test, task.recipe)
    arrays = {name: column.contiguous() for name, column in task.logged.items()}
    arrays["test_prediction"] = logits.argmax(1).to(torch.int16).cpu()
    conflicts_known = dataset.has_bias_labels and dataset.defines_conflicts
    if arrays.keys() & {"score", "selected"} and conflicts_known:
        arrays["train_conflict"] = splits.train.conflicting.cpu().contiguous()  # the truth, for the figures
    result: dict[str, Any] = {
        "data": {
            "fingerprint": splits.fingerprint(),
            "official": splits.official,
            "note": splits.note,
            "splits": {
                name: {
                    "n": len(part),
                    "x_sha256": part.x_sha256,  # of cached images; else they are in the fingerprint alone
                    "n_conflict": dict(
                        zip(dataset.bias_names, part.conflicting.sum(0).tolist(), strict=True)
                    ) if dataset.defines_conflicts else {},
                }
                for name, part in splits.named().items()
            },
        },
        "pretrained_sha256": weights_sha256(task.recipe.net, task.recipe.pretrained),
        "selection": select(
            task.epochs, dataset.headline,
            validation=not (splits.valid_is_test or task.method.trains_on_validation),
        ),
        "identification": {
            name: identification(column, splits.train, dataset.bias_names)
            for name, column in task.logged.items()
            if conflicts_known
        },
        "numbers": task.numbers,
        "phases": [
            {
                "call": phase.call, "share": phase.share, "epochs": phase.epochs, "evaluated": phase.evaluated,
                "parameters": phase.nets,
                "end": phase.end, "train_loss": phase.losses,
            }
            for phase in task.phases
        ],
        "epochs": task.epochs,
        "groups": {"test": evaluation.groups("test", logits)},
        "arrays": {name: digest_of(array) for name, array in arrays.items()},
    }  # fmt: skip
    if splits.tune is not None:
        tune_logits = evaluation.logits(predict, nets, task.splits.named()["tune"], task.recipe)
        result["tune"] = evaluation.metrics("tune", tune_logits)
    return result, arrays


def failed_record(cell: Cell, results_dir: Path, message: str, device: str) -> Path:
    """Record a cell whose process was lost."""
    path = failed_path(record_path(results_dir, cell))
    record = {
        "schema": SCHEMA,
        "status": "failed",
        "hash": cell.hash,
        "cell": cell.to_record(),
        "error": {"type": "LostWorker", "message": message, "traceback": ""},
        "provenance": provenance(device, {}),
    }
    write_record(path, record)
    return path


def provenance(device: str, seconds: dict[str, Any]) -> dict[str, Any]:
    """Where, when, with what and how long."""
    cuda = device.startswith("cuda") and torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "peak_memory_mib": round(peak / 2**20),
        "versions": {"debiasbench": __version__, "protocol": PROTOCOL_VERSION, "python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "torchvision", "numpy")}
        | ({"cuda": torch.version.cuda} if cuda else {}),
        "commit": git_commit(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


_COMMIT: list[str] = []


def git_commit() -> str:
    """The suite's commit, with "+changes" if the checkout differs from it; "" outside a checkout."""
    if not _COMMIT:
        _COMMIT.append(_ask_git())
    return _COMMIT[0]


def _ask_git() -> str:
    root = Path(debiasbench.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    git: Callable[..., str] = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
    try:
        code = ["debiasbench", "methods", "datasets"]
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
