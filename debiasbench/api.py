"""The Python interface: run a grid, load results, compare, and load a trained predictor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debiasbench.cache import CACHE_VARIABLE
from debiasbench.errors import BenchmarkError
from debiasbench.grid import Cell, Grid, expand
from debiasbench.nets import check_net, weights_sha256
from debiasbench.records import check_writable, find_record, read_record

if TYPE_CHECKING:
    import pandas as pd

    from debiasbench.datasets import Dataset
    from debiasbench.executor import Event

DATA_VARIABLE = "DEBIASBENCH_DATA"
RERUN = ("missing", "failed", "all")


def default_data_dir() -> Path:
    """$DEBIASBENCH_DATA, or `data` below the current folder."""
    return Path(os.environ.get(DATA_VARIABLE, "data"))


@dataclass(frozen=True)
class Plan:
    """A grid sorted into what to run and what is there already (cell hash -> record)."""

    grid: Grid
    to_run: list[Cell]
    finished: dict[str, Path]
    failed_before: dict[str, Path]


def plan(grid: Grid, *, data_dir: Path, results_dir: Path, rerun: str = "missing", weights: bool = False) -> Plan:
    """Check that the data are there and whole, and find the cells that are finished.

    A cell is finished if a record of an equal cell is done and was made with equal data. Failed cells run again
    with `rerun="failed"`; everything with `rerun="all"`; with `weights` also what has none beside its record.

    Raises:
        BenchmarkError: files are missing (what, how big, from where, where to put it) or damaged.
    """
    if rerun not in RERUN:
        raise BenchmarkError(f"rerun must be one of {', '.join(RERUN)}. Got {rerun!r}.")
    from debiasbench.weights import has_weights

    datasets = {_data_key(cell): cell.build_dataset() for cell in grid.cells}
    check_data(list(datasets.values()), data_dir)
    nets = ((cell.recipe["net"], cell.recipe["pretrained"], datasets[_data_key(cell)].input) for cell in grid.cells)
    for net, pretrained, inputs in dict.fromkeys(nets):
        check_net(net, pretrained, inputs=inputs)
    fingerprints = build_all(datasets, data_dir)
    to_run, finished, failed = [], {}, {}
    for cell in grid.cells:
        path = find_record(results_dir, cell) if rerun != "all" else None
        try:
            record = read_record(path) if path else None
        except BenchmarkError:
            record = None  # cut off or foreign: its cell runs again
        if path is None or record is None:
            to_run.append(cell)
        elif record["status"] != "done" and record["error"]["type"] == "LostWorker":
            to_run.append(cell)  # not the cell's own fault
        elif record["status"] != "done":
            (to_run.append(cell) if rerun == "failed" else failed.update({cell.hash: path}))
        elif weights and not has_weights(path, record):
            to_run.append(cell)
        elif _made_from(record) == (fingerprints[_data_key(cell)], _weights_of(cell)):
            finished[cell.hash] = path
        else:
            to_run.append(cell)
    return Plan(grid, to_run, finished, failed)


def _made_from(record: dict[str, Any]) -> tuple[str, str]:
    """Fingerprint of the data and of the pretrained weights."""
    result = record["result"]
    return result["data"]["fingerprint"], result.get("pretrained_sha256", "")


def _weights_of(cell: Cell) -> str:
    return weights_sha256(cell.recipe["net"], cell.recipe["pretrained"])


def check_data(datasets: Sequence[Dataset], data_dir: Path) -> None:
    """Refuse to start while files are missing, naming them all."""
    problems = []
    for dataset in {repr(dataset): dataset for dataset in datasets}.values():
        needed = dataset.needed_files(data_dir)
        if not needed:
            continue
        lines = [f"The data of {dataset.name} are not complete. Needed:"]
        lines += [f"  {file.path} ({file.size}) from: {file.source}" for file in needed]
        if all(file.downloads for file in needed):
            lines.append(f"  To download them: debiasbench prepare {dataset.name} --data-dir {data_dir}")
        else:
            lines.append(f"  Put them there, or name their place: --data-dir DIR, or {dataset.name}:root=DIR.")
        problems.append("\n".join(lines))
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))


def _data_key(cell: Cell) -> str:
    return f"{cell.dataset} {cell.dataset_parameters} {cell.root}"


def build_all(datasets: dict[str, Dataset], data_dir: Path) -> dict[str, str]:
    """Build each dataset once and return the fingerprints: damaged files are told before anything trains."""
    from debiasbench.samples import check_splits

    fingerprints, problems = {}, []
    for key, dataset in datasets.items():
        try:
            fingerprints[key] = check_splits(dataset, dataset.build(data_dir)).fingerprint()
        except BenchmarkError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))
    return fingerprints


def run_plan(  # noqa: PLR0913 - the command line's options
    planned: Plan,
    handle: Callable[[Event], None],
    *,
    data_dir: Path,
    results_dir: Path,
    device: str = "auto",
    workers: int | None = None,
    save_weights: bool = False,
    share: bool = True,
) -> None:
    """Run the cells of a plan in worker processes, calling `handle` for each event."""
    from debiasbench.executor import Settings, run_cells
    from debiasbench.runner import failed_record

    settings = Settings(
        data_dir=data_dir,
        results_dir=results_dir,
        devices=worker_devices(device, workers),
        save_weights=save_weights,
        share=share,
    )

    def keep(event: Event) -> None:
        if event.kind == "lost":
            with contextlib.suppress(OSError):  # a full disk, perhaps: the message is shown all the same
                failed_record(event.cell, results_dir, event.message, settings.devices[event.worker])
        handle(event)

    if planned.to_run:
        check_writable(results_dir)
        run_cells(longest_first(planned), settings, keep)


def longest_first(planned: Plan) -> list[Cell]:
    """The cells to run, dataset by dataset; short ones last, so that no worker waits long for the others at the end.

    The seeds of a method follow each other: two workers then seldom need one shared phase at the same time.
    """
    datasets = list(dict.fromkeys(_data_key(cell) for cell in planned.to_run))
    methods = list(dict.fromkeys(cell.method_label for cell in planned.to_run))
    costs = planned.grid.relative_costs
    return sorted(
        planned.to_run,
        key=lambda cell: (datasets.index(_data_key(cell)), -costs[cell.hash], methods.index(cell.method_label)),
    )


def worker_devices(device: str, workers: int | None) -> tuple[str, ...]:
    """One device for each worker: all cores or all GPUs by default.

    Raises:
        BenchmarkError: no such device here; less than one worker.
    """
    import torch

    from debiasbench.runner import default_device, n_cores

    if workers is not None and workers < 1:
        raise BenchmarkError(f"--workers must be at least 1. Got {workers}.")
    device = default_device() if device == "auto" else device
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise BenchmarkError(f"Unknown device '{device}'. Allowed: auto, cpu, cuda, cuda:0, ...") from None
    if kind.type == "cuda":
        n_gpus = torch.cuda.device_count()
        if n_gpus <= (kind.index or 0):
            raise BenchmarkError(f"--device {device}: {n_gpus} GPUs are visible to torch here. Use --device cpu.")
        if kind.index is None:
            return tuple(f"cuda:{number % n_gpus}" for number in range(workers or n_gpus))
    return (device,) * (workers or (n_cores() if kind.type == "cpu" else 1))


def run(  # noqa: PLR0913 - the command line's options
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    seeds: int | Sequence[int] = 3,
    data_dir: str | Path | None = None,
    results_dir: str | Path = "results",
    device: str = "auto",
    workers: int | None = None,
    epochs: int | None = None,
    data_seeds: int | None = None,
    shared_recipes: bool = False,
    rerun: str = "missing",
    save_weights: bool = False,
    share: bool = True,
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run a grid and return its results as one tidy table (see `debiasbench.results.to_frame`).

    Args:
        methods, datasets: names with inline parameters, as on the command line: "pgd:norm=l1,alpha=0.9".
        seeds: how many (0, 1, ...), or which.
        data_dir: default: $DEBIASBENCH_DATA, or `data`. results_dir: finished cells in it are not run again.
        device: "auto", "cpu", "cuda", ... workers: processes; default: one a core or GPU.
        cache_dir: for decoded images; default: $DEBIASBENCH_CACHE, or a folder of the user's own.
        epochs: replaces the epochs of each stage that follows the recipe.
        share: train equal first phases of several cells once.
        progress: show the live display.

    Raises:
        BenchmarkError: something asked for cannot be run; nothing has been trained then.
    """
    from debiasbench.results import to_frame

    if cache_dir:
        os.environ[CACHE_VARIABLE] = str(Path(cache_dir).absolute())  # workers inherit it
    data, results = Path(data_dir) if data_dir else default_data_dir(), Path(results_dir)
    grid = expand(
        list(methods),
        list(datasets),
        seeds=seeds,
        data_seeds=data_seeds,
        epochs=epochs,
        shared_recipes=shared_recipes,
    )
    check_writable(results)
    planned = plan(grid, data_dir=data, results_dir=results, rerun=rerun, weights=save_weights)
    options: dict[str, Any] = {"data_dir": data, "results_dir": results, "device": device, "workers": workers}
    options |= {"save_weights": save_weights, "share": share and rerun != "all"}
    if progress:
        from debiasbench.progress import Display

        with Display(planned) as display:
            run_plan(planned, display.handle, **options)
    else:
        run_plan(planned, lambda _: None, **options)
    paths = [path for cell in grid.cells if (path := find_record(results, cell))]
    return to_frame({**read_record(path), "path": path} for path in paths)


def load_results(path: str | Path) -> pd.DataFrame:
    """All records below a folder as one tidy table; see `debiasbench.results.load_results`."""
    from debiasbench.results import load_results as load

    return load(path)


def compare(table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Test methods against a reference; see `debiasbench.results.compare`."""
    from debiasbench.results import compare as compare_table

    return compare_table(table, **options)


def load_predictor(record: str | Path) -> Any:
    """The trained predictor of a cell that was run with `save_weights`: x float (B, C, H, W) -> logits (B, C).

    x is as the recipe normalises it (`debiasbench.augment.to_input` makes it from uint8 images). Of text, x holds
    token numbers (B, L) with -1 where it is padded, as in the dataset's `Samples`.

    Raises:
        BenchmarkError: the record has no weights.
    """
    from debiasbench.weights import load

    return load(Path(record))
