"""A grid sorted into what to run and what is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from debiasbench.cell import Cell
from debiasbench.errors import BenchmarkError
from debiasbench.grid import Grid
from debiasbench.nets.build import check_net
from debiasbench.nets.pretrained import weights_sha256
from debiasbench.records import Result, find_record, read_record

if TYPE_CHECKING:
    from debiasbench.datasets import Dataset
RERUN = ("missing", "failed", "all")


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

    datasets = {data_key(cell): cell.build_dataset() for cell in grid.cells}
    check_data(list(datasets.values()), data_dir)
    nets = ((cell.recipe["net"], cell.recipe["pretrained"], datasets[data_key(cell)].input) for cell in grid.cells)
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
        elif record.failure is not None and record.failure.type == "LostWorker":
            to_run.append(cell)  # not the cell's own fault
        elif record.result is None:
            (to_run.append(cell) if rerun == "failed" else failed.update({cell.hash: path}))
        elif weights and not has_weights(record):
            to_run.append(cell)
        elif _made_from(record.result) == (fingerprints[data_key(cell)], _weights_of(cell)):
            finished[cell.hash] = path
        else:
            to_run.append(cell)
    return Plan(grid, to_run, finished, failed)


def _made_from(result: Result) -> tuple[str, str]:
    """Fingerprint of the data and of the pretrained weights."""
    return result.data.fingerprint, result.pretrained_sha256


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


def data_key(cell: Cell) -> str:
    """Equal for cells whose data are the same."""
    return f"{cell.dataset} {cell.dataset_parameters} {cell.root}"


def build_all(datasets: dict[str, Dataset], data_dir: Path) -> dict[str, str]:
    """Build each dataset once and return the fingerprints: damaged files are told before anything trains."""
    from debiasbench.datasets import check_splits

    fingerprints, problems = {}, []
    for key, dataset in datasets.items():
        try:
            fingerprints[key] = check_splits(dataset, dataset.build(data_dir)).fingerprint()
        except BenchmarkError as error:
            problems.append(str(error))
    if problems:
        raise BenchmarkError("\n".join(dict.fromkeys(problems)))
    return fingerprints
